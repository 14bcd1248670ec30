"""Every item's result on disk, columnar (parquet), keyed by (trial, split, task, doc).

Knows no model. Each scored split of a trial is one part file, written whole or not at all;
`ItemStore.compact` folds the parts into ``items.parquet``. A kill at any instant leaves files that
read the same: the rename is the commit, and a part also in the folded file is counted once.
"""

import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .scores import AUDIT, COLUMNS, PER_TASK, ItemScores, item_scores

_FOLDED = "items.parquet"
_PART = re.compile(r"trial-(\d{6,})\.([a-z]+)\.parquet")
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
        *((name, pa.float64()) for name in AUDIT),
    ]
)
_UNAUDITED = pa.schema([field for field in _SCHEMA if field.name not in AUDIT])


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
    """Rows of one (trial, split) back to `ItemScores`; (n,) columns."""
    header = _headers(table)[table["header"][0].as_py() if table.num_rows else 0]
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    return item_scores(header, columns, header.get("fingerprint", ""))


def _with_empty_audit(table: pa.Table) -> pa.Table:
    """A table of a study from before generated answers were audited, with nan in its place."""
    empty = pa.array(np.full(table.num_rows, np.nan))
    for name in AUDIT:
        table = table.append_column(_SCHEMA.field(name), empty)
    return table


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

    def append(self, trial: int, split: str, scores: ItemScores) -> Path:
        """Write one split of one trial, replacing what was stored for it; durable on return."""
        if not re.fullmatch(r"[a-z]+", split) or trial < 0:
            raise ValueError(f"`trial` must be >= 0 and `split` a-z, got {trial} and '{split}'")
        path = self._part(trial, split)
        self._write(path, _to_table(trial, split, scores))
        return path

    def read(self, trial: int, split: str) -> ItemScores | None:
        """Return what was stored for (trial, split), or None."""
        part = self._part(trial, split)
        if part.is_file():
            return _to_scores(self._load(part))
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
        for (trial, _), path in self._parts().items():
            if chosen(trial):
                path.unlink()
        _sync_folder(self.folder)

    def compact(self) -> Path | None:
        """Fold all parts into ``items.parquet``; returns its path, None if nothing is stored."""
        parts = self._parts()
        tables = [self._load(parts[key]) for key in sorted(parts)]
        before = self._folded_table()
        if before is not None:
            tables.insert(0, self._without(before, set(parts)))
        if not tables:
            return None
        self._write(self.folder / _FOLDED, _fold(tables))
        for path in [*parts.values(), *self.folder.glob(f"{_TEMPORARY}*")]:
            path.unlink(missing_ok=True)
        _sync_folder(self.folder)
        return self.folder / _FOLDED

    def _part(self, trial: int, split: str) -> Path:
        return self.folder / f"trial-{trial:06d}.{split}.parquet"

    def _parts(self) -> dict[tuple[int, str], Path]:
        """The part files by (trial, split); other files, temporary ones too, are not looked at."""
        matches = ((_PART.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {(int(m[1]), m[2]): path for m, path in matches if m}

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
        if table.schema.equals(_UNAUDITED):
            table = _with_empty_audit(table)
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
