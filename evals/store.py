"""Every item's result on disk, columnar (parquet), keyed by (trial, split, task, doc).

Knows no model. Each scored split of a trial is one part file, or one per rung where it is scored
rung by rung; a part is written whole or not at all. `ItemStore.compact` folds the parts into
``items.parquet``. A kill at any instant leaves files that read the same: the rename is the commit,
and a part also in the folded file is counted once.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .scores import COLUMNS, OPTIONAL, PER_TASK, ItemScores, item_scores

_FOLDED = "items.parquet"
_PART = re.compile(r"trial-(\d{6,})\.([a-z]+)(?:\.rung-(\d{3,}))?\.parquet")
_TEMPORARY = ".tmp-"
_HEADERS = b"heterosis.headers"
_SCHEMA = pa.schema(
    [
        ("trial", pa.int64()),
        ("split", pa.string()),
        ("header", pa.int64()),  # row of the JSON list in the file's metadata: tasks, metrics, ...
        ("task", pa.string()),
        ("task_index", pa.int64()),
        ("doc_id", pa.int64()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        *((name, pa.float64()) for name in OPTIONAL),
    ]
)


class StoreError(ValueError):
    """A file in the store's folder cannot be read as what its name says."""


def _header(scores: ItemScores) -> dict[str, Any]:
    """What an `ItemScores` says once, ready for JSON: lists per task, and the fingerprint."""
    per_task: dict[str, Any] = {name: list(getattr(scores, name)) for name in PER_TASK}
    return per_task | {"fingerprint": scores.fingerprint}


def _to_table(trial: int, split: str, scores: ItemScores) -> pa.Table:
    """One part: n rows and the header in the metadata."""
    columns: dict[str, Any] = {
        "trial": np.full(scores.n, trial, dtype=np.int64),
        "split": [split] * scores.n,
        "header": np.zeros(scores.n, dtype=np.int64),
        "task": [scores.tasks[i] for i in scores.task_index],
    }
    columns |= {name: np.asarray(getattr(scores, name)) for name in COLUMNS}
    table = pa.table(columns, schema=_SCHEMA)
    return table.replace_schema_metadata({_HEADERS: json.dumps([_header(scores)])})


def _headers(table: pa.Table) -> list[dict[str, Any]]:
    """The headers that a file carries in its metadata."""
    return json.loads((table.schema.metadata or {})[_HEADERS])


def _to_scores(table: pa.Table) -> ItemScores:
    """Rows of one (trial, split), in any order, back to `ItemScores`; (n,) columns."""
    header = _headers(table)[table["header"][0].as_py() if table.num_rows else 0]
    order = np.lexsort((table["doc_id"].to_numpy(), table["task_index"].to_numpy()))
    columns = {name: table[name].to_numpy()[order] for name in COLUMNS}
    return item_scores(header, columns, header.get("fingerprint", ""))


def _completed(table: pa.Table) -> pa.Table:
    """A table of a study from before some optional columns were kept, with nan in their place."""
    missing = [name for name in OPTIONAL if name not in table.schema.names]
    if not missing or {*table.schema.names, *missing} != set(_SCHEMA.names):
        return table
    empty = pa.array(np.full(table.num_rows, np.nan))
    for name in missing:
        table = table.append_column(_SCHEMA.field(name), empty)
    return table.select(_SCHEMA.names)


def _fold(tables: list[pa.Table]) -> pa.Table:
    """Join tables, sharing equal headers between them."""
    headers: list[dict[str, Any]] = []
    for position, table in enumerate(tables):
        own = _headers(table)
        headers += [header for header in own if header not in headers]
        rows = np.array([headers.index(header) for header in own], dtype=np.int64)
        column = pa.array(rows[table["header"].to_numpy()])
        at = table.schema.get_field_index("header")
        tables[position] = table.set_column(at, "header", column).replace_schema_metadata(None)
    return pa.concat_tables(tables).replace_schema_metadata({_HEADERS: json.dumps(headers)})


def _contiguous(rungs: Mapping[int, Path]) -> list[Path]:
    """The whole file (-1) alone, else the files of rungs 0, 1, ... as far as they go."""
    if -1 in rungs:
        return [rungs[-1]]
    return list(map(rungs.__getitem__, itertools.takewhile(rungs.__contains__, itertools.count())))


def _remove(rungs: Mapping[int, Path]) -> None:
    """Remove part files of a split, last rung first: what a kill leaves is a prefix."""
    for rung in sorted(rungs, reverse=True):
        rungs[rung].unlink()


def _sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder last; a no-op where folders cannot be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ItemStore:
    """Per-item results of a study in one folder; one writer at a time: the study's lock.

    Args:
        folder: Made if missing.

    Raises:
        StoreError: From any method that meets a torn or foreign parquet file.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the folder; reads nothing yet."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._folded: tuple[tuple[int, int], pa.Table] | None = None

    def append(
        self, trial: int, split: str, scores: ItemScores, *, rung: int | None = None
    ) -> Path:
        """Write one split of one trial, or the next rung of it; durable on return.

        Args:
            trial: Number of the trial.
            split: Name of the split, a-z.
            scores: Of all items; with ``rung``, of the items that this rung added
                (`ItemScores.added_to`).
            rung: Number of the rung, from 0. Rung 0 and a whole split replace all that was stored
                for the split before; every other rung is added to it.

        Raises:
            ValueError: If the key is no file name, the rung before is not there, or its header
                (tasks, metrics, fingerprint) differs.
        """
        if not re.fullmatch(r"[a-z]+", split) or trial < 0:
            raise ValueError(f"`trial` must be >= 0 and `split` a-z, got {trial} and '{split}'")
        path = self._part(trial, split, rung)
        if rung:
            self._refuse_gap(self._part(trial, split, rung - 1), scores)
        first = rung or -1
        _remove({k: old for k, old in self._of(trial, split).items() if k >= first and old != path})
        self._write(path, _to_table(trial, split, scores))
        return path

    def _of(self, trial: int, split: str) -> dict[int, Path]:
        """The part files of one (trial, split) by rung."""
        return self._files().get((trial, split), {})

    def _refuse_gap(self, previous: Path, scores: ItemScores) -> None:
        """Raise ValueError unless a rung follows the ``previous`` one of the same split."""
        if not previous.is_file():
            raise ValueError(
                f"rungs must be appended in order, from 0, got one after {previous.name}, which "
                "is not there; score the split again from its first rung"
            )
        (header,) = _headers(self._load(previous))
        if header != (mine := _header(scores)):
            different = [name for name in mine if header.get(name) != mine[name]]
            raise ValueError(
                f"rungs of a split must have equal headers, got other {', '.join(different)} than "
                f"in {previous.name}; score the split again from its first rung"
            )

    def read(self, trial: int, split: str) -> ItemScores | None:
        """Return what was stored for (trial, split), or None."""
        parts = self._parts().get((trial, split))
        if parts:
            return _to_scores(_fold([self._load(part) for part in parts]))
        table = self._folded_table()
        if table is None:
            return None
        of_trial = table["trial"].to_numpy() == trial
        rows = table.filter(pa.array(of_trial))
        rows = rows.filter(
            pa.array([name == split for name in rows["split"].to_pylist()], pa.bool_())
        )
        return _to_scores(rows) if rows.num_rows else None

    def has(self, trial: int, split: str) -> bool:
        """Whether (trial, split) is stored."""
        return (trial, split) in self.keys()

    def keys(self) -> set[tuple[int, str]]:
        """All stored (trial, split) pairs."""
        found = set(self._parts())
        table = self._folded_table()
        if table is not None:
            pairs = table.group_by(["trial", "split"]).aggregate([])
            found |= set(zip(pairs["trial"].to_pylist(), pairs["split"].to_pylist(), strict=True))
        return found

    def drop(self, trials: Callable[[int], bool] | Collection[int]) -> None:
        """Remove trials: those in a collection, or those for which a function says true."""
        chosen = trials if callable(trials) else set(trials).__contains__
        table = self._folded_table()
        if table is not None:
            keep = pa.array([not chosen(trial) for trial in table["trial"].to_pylist()], pa.bool_())
            if keep.false_count:
                self._write(self.folder / _FOLDED, table.filter(keep))
        for (trial, _), rungs in self._files().items():
            if chosen(trial):
                _remove(rungs)
        _sync_folder(self.folder)

    def compact(self) -> Path | None:
        """Fold all parts into ``items.parquet``; returns its path, None if nothing is stored."""
        parts = self._parts()
        paths = [path for key in sorted(parts) for path in parts[key]]
        tables = [self._load(path) for path in paths]
        before = self._folded_table()
        if before is not None:
            tables.insert(0, self._without(before, set(parts)))
        if not tables:
            return None
        self._write(self.folder / _FOLDED, _fold(tables))
        for rungs in self._files().values():
            _remove(rungs)
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            path.unlink(missing_ok=True)
        _sync_folder(self.folder)
        return self.folder / _FOLDED

    def fingerprints(self) -> dict[tuple[int, str], str]:
        """Fingerprint of every stored (trial, split); "" where none was kept."""
        found: dict[tuple[int, str], str] = {}
        table = self._folded_table()
        if table is not None:
            headers = _headers(table)
            rows = table.group_by(["trial", "split", "header"]).aggregate([]).to_pylist()
            for row in rows:
                kept = headers[row["header"]].get("fingerprint", "")
                found[row["trial"], row["split"]] = kept
        for key, paths in self._parts().items():
            found[key] = _headers(self._load(paths[0]))[0].get("fingerprint", "")
        return found

    def _part(self, trial: int, split: str, rung: int | None) -> Path:
        suffix = "" if rung is None else f".rung-{rung:03d}"
        return self.folder / f"trial-{trial:06d}.{split}{suffix}.parquet"

    def _files(self) -> dict[tuple[int, str], dict[int, Path]]:
        """The part files by (trial, split) and rung, a whole split as rung -1.

        Other files, temporary ones too, are not looked at.
        """
        found: dict[tuple[int, str], dict[int, Path]] = {}
        for path in self.folder.iterdir():
            if match := _PART.fullmatch(path.name):
                rung = -1 if match[3] is None else int(match[3])
                found.setdefault((int(match[1]), match[2]), {})[rung] = path
        return found

    def _parts(self) -> dict[tuple[int, str], list[Path]]:
        """The part files that count: a split's whole file, or its rungs up to the first gap."""
        found = {key: _contiguous(rungs) for key, rungs in self._files().items()}
        return {key: paths for key, paths in found.items() if paths}

    @staticmethod
    def _without(table: pa.Table, keys: set[tuple[int, str]]) -> pa.Table:
        """Rows of a folded table whose (trial, split) is not in ``keys``."""
        pairs = zip(table["trial"].to_pylist(), table["split"].to_pylist(), strict=True)
        return table.filter(pa.array([pair not in keys for pair in pairs], pa.bool_()))

    def _folded_table(self) -> pa.Table | None:
        """The folded file's table, read once per version of the file."""
        path = self.folder / _FOLDED
        if not path.is_file():
            return None
        status = path.stat()
        version = (status.st_mtime_ns, status.st_size)
        if self._folded is None or self._folded[0] != version:
            self._folded = (version, self._load(path))
        return self._folded[1]

    @staticmethod
    def _load(path: Path) -> pa.Table:
        """Read a file of ours, or say what is wrong with it."""
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise StoreError(
                f"{path} must be a readable parquet file, got: {str(error).splitlines()[0]}; "
                "remove it: the same search command scores again what it held"
            ) from error
        table = _completed(table)
        if not table.schema.equals(_SCHEMA) or _HEADERS not in (table.schema.metadata or {}):
            raise StoreError(
                f"{path} must hold the item columns {', '.join(_SCHEMA.names)}, got "
                f"{', '.join(table.schema.names)}; it was not written by heterosis: move it away"
            )
        return table

    def _write(self, path: Path, table: pa.Table) -> None:
        """Write a temporary file beside ``path``, make it durable, then rename it over ``path``."""
        temporary = path.with_name(f"{_TEMPORARY}{path.name}")
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)
