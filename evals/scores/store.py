"""Item scores of a study on disk, as parquet, by (trial, split, task, document). Knows no model.

Each scored split of a trial is one part file, written atomically. `ItemStore.compact` merges the
parts into ``items.parquet``. A kill at any moment leaves a store that reads the same: the rename is
the commit, and a part that is also in the compacted file counts once. Other processes may read
while one writes.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from .compacted import CompactedFile, Key, version_of, write_compacted
from .item_table import concatenate, headers, load, opened, to_scores, to_table
from .scores import ItemScores

T = TypeVar("T")
COMPACT_AT = 500
"""Part files after which a search compacts: few enough to be read in a second, and enough that
compacting, which rewrites all items, costs a few milliseconds per part."""
_COMPACTED = "items.parquet"
_PART = re.compile(r"trial-(\d{6,})\.([a-z]+)\.parquet")
_TEMPORARY = ".tmp-"
_TRIES = 5  # attempts to read while a search compacts, once in hundreds of parts


def _sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable; a no-op where folders cannot be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ItemStore:
    """Item scores of a study in one folder; the study's lock allows one writer at a time.

    Args:
        folder: Folder of the store, made if missing.

    Raises:
        StoreError: From any method that reads a damaged or foreign parquet file.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder if needed; reads nothing yet."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file: CompactedFile | None = None
        self._appended = 0

    def append(self, trial: int, split: str, scores: ItemScores) -> Path:
        """Write one split of one trial, replacing what was stored for it; durable on return.

        Args:
            trial: Number of the trial.
            split: Name of the split, a-z.
            scores: Scores of its items.

        Raises:
            ValueError: If ``trial`` is negative or ``split`` is not a-z.
        """
        if not re.fullmatch(r"[a-z]+", split) or trial < 0:
            raise ValueError(f"`trial` must be >= 0 and `split` a-z, got {trial} and '{split}'")
        path = self._part((trial, split))
        self._write(path, to_table(trial, split, scores))
        self._appended += 1
        return path

    def read(self, trial: int, split: str) -> ItemScores | None:
        """Read the scores of (trial, split); None if there are none."""
        rows = self._retried(lambda: self._rows(trial, split))
        return None if rows is None else to_scores(rows)

    def _rows(self, trial: int, split: str) -> pa.Table | None:
        part = self._part((trial, split))
        if part.is_file():
            return load(part)
        compacted = self._compacted()
        return None if compacted is None else compacted.rows((trial, split))

    def has(self, trial: int, split: str) -> bool:
        """Whether (trial, split) is stored."""
        if self._part((trial, split)).is_file():
            return True
        compacted = self._retried(self._compacted)
        return compacted is not None and (trial, split) in compacted.spans

    def keys(self) -> set[Key]:
        """Return all stored (trial, split) pairs."""
        parts = set(self._parts())
        compacted = self._retried(self._compacted)
        return parts if compacted is None else parts | compacted.spans.keys()

    def drop(self, trials: Callable[[int], bool] | Collection[int]) -> None:
        """Remove trials: those in a collection, or those for which a function returns True."""
        chosen = trials if callable(trials) else set(trials).__contains__
        compacted = self._compacted()
        if compacted is not None and (gone := {key for key in compacted.spans if chosen(key[0])}):
            self._write(self.folder / _COMPACTED, compacted.without(gone))
        for (trial, _), part in self._parts().items():
            if chosen(trial):
                part.unlink()
        _sync_folder(self.folder)

    def compact(self, least: int = 0) -> Path | None:
        """Merge all part files into ``items.parquet``.

        Args:
            least: Do nothing if fewer parts were appended since the last time.

        Returns:
            Path of the file; None if nothing is stored or nothing was done.
        """
        if self._appended < least:
            return None
        parts = self._parts()
        tables = [load(parts[key]) for key in sorted(parts)]
        before = self._compacted()
        if before is not None and tables:
            tables.insert(0, before.without(set(parts)))
        if tables:
            self._write(self.folder / _COMPACTED, concatenate(tables))
        for part in parts.values():
            part.unlink()
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            path.unlink(missing_ok=True)
        _sync_folder(self.folder)
        self._appended = 0
        return self.folder / _COMPACTED if tables or before is not None else None

    def fingerprints(self) -> dict[Key, str]:
        """Return the fingerprint of every stored (trial, split); "" if none is stored."""
        return self._retried(self._fingerprints)

    def _fingerprints(self) -> dict[Key, str]:
        of_parts = {}
        for key, path in self._parts().items():
            with opened(path) as file:
                of_parts[key] = headers(file.schema_arrow)[0].get("fingerprint", "")
        compacted = self._compacted()
        return of_parts if compacted is None else compacted.fingerprints() | of_parts

    def _retried(self, read: Callable[[], T]) -> T:
        """Read, and read again if a search has compacted a part file in the meantime."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return read()
        return read()

    def _part(self, key: Key) -> Path:
        trial, split = key
        return self.folder / f"trial-{trial:06d}.{split}.parquet"

    def _parts(self) -> dict[Key, Path]:
        """Return the part files by key; all other files are ignored."""
        parts = {}
        for path in self.folder.iterdir():
            if match := _PART.fullmatch(path.name):
                parts[int(match[1]), match[2]] = path
        return parts

    def _compacted(self) -> CompactedFile | None:
        """Return the compacted file, opened once per version; None if there is none."""
        path = self.folder / _COMPACTED
        try:
            if self._file is None or self._file.version != version_of(path):
                self._file = CompactedFile(path)
        except FileNotFoundError:
            if path.is_file():  # replaced in the meantime
                raise
            return None
        return self._file

    def _write(self, path: Path, table: pa.Table) -> None:
        """Write a temporary file beside ``path``, make it durable, then rename it over ``path``."""
        temporary = path.with_name(f"{_TEMPORARY}{path.name}")
        with temporary.open("wb") as file:
            write_compacted(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)
