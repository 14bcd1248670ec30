"""Every item's result on disk, columnar (parquet), keyed by (trial, split, task, doc).

Knows no model. Each scored split of a trial is one part file, or one per rung where it is scored
rung by rung; a part is written whole or not at all. `ItemStore.compact` folds the parts into
``items.parquet``. A kill at any instant leaves files that read the same: the rename is the commit,
and a part also in the folded file is counted once. One may read while another process writes.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from .folded import FoldedFile, Key, version_of, write_folded
from .item_table import (
    StoreError,
    fold,
    header_of,
    headers,
    load,
    opened,
    to_scores,
    to_table,
)
from .scores import ItemScores

__all__ = ["ItemStore", "StoreError"]

T = TypeVar("T")

FOLDED_AT = 500
"""Parts that a search lets come together before it folds them: few enough to be read in a second,
and so many that folding, which writes all items anew, takes a few milliseconds of each."""

_FOLDED = "items.parquet"
_PART = re.compile(r"trial-(\d{6,})\.([a-z]+)(?:\.rung-(\d{3,}))?\.parquet")
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
        # Last rung first: what a kill leaves is a prefix.
        self._remove(list(self._replaced_by(trial, split, rung))[::-1])
        self._write(path, to_table(trial, split, scores))
        self._appended += 1
        return path

    def _replaced_by(self, trial: int, split: str, rung: int | None) -> Iterator[Path]:
        """Other part files of a split that a new one takes the place of: all from its rung on."""
        whole = self._part(trial, split, None)
        if rung == 0 and whole.is_file():
            yield whole
        yield from self._rungs(trial, split, 0 if rung is None else rung + 1)

    def _refuse_gap(self, previous: Path, scores: ItemScores) -> None:
        """Raise ValueError unless a rung follows the ``previous`` one of the same split."""
        if not previous.is_file():
            raise ValueError(
                f"rungs must be appended in order, from 0, got one after {previous.name}, which "
                "is not there; score the split again from its first rung"
            )
        (header,) = headers(load(previous).schema)
        if header != (mine := header_of(scores)):
            different = [name for name in mine if header.get(name) != mine[name]]
            raise ValueError(
                f"rungs of a split must have equal headers, got other {', '.join(different)} than "
                f"in {previous.name}; score the split again from its first rung"
            )

    def read(self, trial: int, split: str) -> ItemScores | None:
        """Return what was stored for (trial, split), or None."""
        rows = self._unfolding(lambda: self._rows(trial, split))
        return None if rows is None else to_scores(rows)

    def _rows(self, trial: int, split: str) -> pa.Table | None:
        parts = self._parts_of(trial, split)
        if parts:
            return fold([load(part) for part in parts])
        folded = self._folded()
        return None if folded is None else folded.rows((trial, split))

    def has(self, trial: int, split: str) -> bool:
        """Whether (trial, split) is stored."""
        if self._parts_of(trial, split):
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
        for (trial, _), rungs in self._files().items():
            if chosen(trial):
                self._remove(rungs[rung] for rung in sorted(rungs, reverse=True))
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
        tables = [load(path) for key in sorted(parts) for path in parts[key]]
        before = self._folded()
        if before is not None and tables:
            tables.insert(0, before.without(set(parts)))
        if tables:
            self._write(self.folder / _FOLDED, fold(tables))
        # First rung first: what a kill leaves has a gap, and the folded rows count.
        for rungs in self._files().values():
            self._remove(rungs[rung] for rung in sorted(rungs))
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
        for key, paths in self._parts().items():
            with opened(paths[0]) as file:
                own[key] = headers(file.schema_arrow)[0].get("fingerprint", "")
        folded = self._folded()
        return own if folded is None else folded.fingerprints() | own

    def _unfolding(self, work: Callable[[], T]) -> T:
        """Read, and read again where the search has folded a part while it was looked for."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return work()
        return work()

    def _part(self, trial: int, split: str, rung: int | None) -> Path:
        suffix = "" if rung is None else f".rung-{rung:03d}"
        return self.folder / f"trial-{trial:06d}.{split}{suffix}.parquet"

    def _rungs(self, trial: int, split: str, first: int = 0) -> Iterator[Path]:
        """Part files of a split's rungs from ``first`` on, as far as they go."""
        paths = (self._part(trial, split, rung) for rung in itertools.count(first))
        return itertools.takewhile(Path.is_file, paths)

    def _parts_of(self, trial: int, split: str) -> list[Path]:
        """The part files of a split that count: the whole one alone, or rungs up to a gap."""
        whole = self._part(trial, split, None)
        return [whole] if whole.is_file() else list(self._rungs(trial, split))

    def _files(self) -> dict[Key, dict[int, Path]]:
        """The part files by (trial, split) and rung, a whole split as rung -1.

        Other files, temporary ones too, are not looked at.
        """
        found: dict[Key, dict[int, Path]] = {}
        for path in self.folder.iterdir():
            if match := _PART.fullmatch(path.name):
                rung = -1 if match[3] is None else int(match[3])
                found.setdefault((int(match[1]), match[2]), {})[rung] = path
        return found

    def _parts(self) -> dict[Key, list[Path]]:
        """The part files that count, of every split: as `_parts_of`."""
        found: dict[Key, list[Path]] = {}
        for key, rungs in self._files().items():
            numbers = itertools.takewhile(rungs.__contains__, itertools.count())
            own = [rungs[-1]] if -1 in rungs else [rungs[number] for number in numbers]
            if own:
                found[key] = own
        return found

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink()

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
