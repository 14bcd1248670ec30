"""Every item's result on disk, columnar (parquet), keyed by (trial, split, task, doc).

Knows no model. Each scored split of a trial is one part file, written whole or not at all.
`ItemStore.compact` folds the parts into ``items.parquet``. A kill at any instant leaves files that
read the same: the rename is the commit, and a part also in the folded file is counted once. One may
read while another process writes.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from .compacted import FoldedFile, Key, version_of, write_folded
from .item_table import StoreError, fold, headers, load, opened, to_scores, to_table
from .scores import ItemScores

__all__ = ["ItemStore", "StoreError"]
T = TypeVar("T")
COMPACT_AT = 500
"""Parts that a search lets come together before it folds them: few enough to be read in a second,
and so many that folding, which writes all items anew, takes a few milliseconds of each."""
_FOLDED = "items.parquet"
_PART = re.compile(r"trial-(\d{6,})\.([a-z]+)\.parquet")
_TEMPORARY = ".tmp-"
_TRIES = 5  # of a reader whom the search takes parts away from: it folds once in hundreds of them


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
        self._opened: FoldedFile | None = None
        self._appended = 0

    def append(self, trial: int, split: str, scores: ItemScores) -> Path:
        """Write one split of one trial in place of what was stored for it; durable on return.

        Args:
            trial: Number of the trial.
            split: Name of the split, a-z.
            scores: Of its items.

        Raises:
            ValueError: If the key is no file name.
        """
        if not re.fullmatch(r"[a-z]+", split) or trial < 0:
            raise ValueError(f"`trial` must be >= 0 and `split` a-z, got {trial} and '{split}'")
        path = self._part((trial, split))
        self._write(path, to_table(trial, split, scores))
        self._appended += 1
        return path

    def read(self, trial: int, split: str) -> ItemScores | None:
        """Return what was stored for (trial, split), or None."""
        rows = self._unfolding(lambda: self._rows(trial, split))
        return None if rows is None else to_scores(rows)

    def _rows(self, trial: int, split: str) -> pa.Table | None:
        part = self._part((trial, split))
        if part.is_file():
            return load(part)
        folded = self._folded()
        return None if folded is None else folded.rows((trial, split))

    def has(self, trial: int, split: str) -> bool:
        """Whether (trial, split) is stored."""
        if self._part((trial, split)).is_file():
            return True
        folded = self._unfolding(self._folded)
        return folded is not None and (trial, split) in folded.spans

    def keys(self) -> set[Key]:
        """All stored (trial, split) pairs."""
        found = set(self._parts())
        folded = self._unfolding(self._folded)
        return found if folded is None else found | folded.spans.keys()

    def drop(self, trials: Callable[[int], bool] | Collection[int]) -> None:
        """Remove trials: those in a collection, or those for which a function says true."""
        chosen = trials if callable(trials) else set(trials).__contains__
        folded = self._folded()
        if folded is not None and (gone := {key for key in folded.spans if chosen(key[0])}):
            self._write(self.folder / _FOLDED, folded.without(gone))
        for (trial, _), part in self._parts().items():
            if chosen(trial):
                part.unlink()
        _sync_folder(self.folder)

    def compact(self, least: int = 0) -> Path | None:
        """Fold all parts into ``items.parquet``.

        Args:
            least: Do nothing while fewer parts than this were appended since the last time.

        Returns:
            Its path; None if nothing is stored, or nothing was done.
        """
        if self._appended < least:
            return None
        parts = self._parts()
        tables = [load(parts[key]) for key in sorted(parts)]
        before = self._folded()
        if before is not None and tables:
            tables.insert(0, before.without(set(parts)))
        if tables:
            self._write(self.folder / _FOLDED, fold(tables))
        for part in parts.values():
            part.unlink()
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            path.unlink(missing_ok=True)
        _sync_folder(self.folder)
        self._appended = 0
        return self.folder / _FOLDED if tables or before is not None else None

    def fingerprints(self) -> dict[Key, str]:
        """Fingerprint of every stored (trial, split); "" where none was kept."""
        return self._unfolding(self._fingerprints)

    def _fingerprints(self) -> dict[Key, str]:
        own = {}
        for key, path in self._parts().items():
            with opened(path) as file:
                own[key] = headers(file.schema_arrow)[0].get("fingerprint", "")
        folded = self._folded()
        return own if folded is None else folded.fingerprints() | own

    def _unfolding(self, work: Callable[[], T]) -> T:
        """Read, and read again where the search has folded a part while it was looked for."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return work()
        return work()

    def _part(self, key: Key) -> Path:
        trial, split = key
        return self.folder / f"trial-{trial:06d}.{split}.parquet"

    def _parts(self) -> dict[Key, Path]:
        """The part files; others, temporary ones too, are not looked at."""
        found = {}
        for path in self.folder.iterdir():
            if match := _PART.fullmatch(path.name):
                found[int(match[1]), match[2]] = path
        return found

    def _folded(self) -> FoldedFile | None:
        """The folded file, opened once per version."""
        path = self.folder / _FOLDED
        try:
            if self._opened is None or self._opened.version != version_of(path):
                self._opened = FoldedFile(path)
        except FileNotFoundError:
            if path.is_file():  # it has been written anew meanwhile
                raise
            return None
        return self._opened

    def _write(self, path: Path, table: pa.Table) -> None:
        """Write a temporary file beside ``path``, make it durable, then rename it over ``path``."""
        temporary = path.with_name(f"{_TEMPORARY}{path.name}")
        with temporary.open("wb") as file:
            write_folded(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)
