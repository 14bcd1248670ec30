"""The study on disk: Optuna's journal, one line per finished candidate, one writer at a time.

Every `suggest_*` of a stored trial is an fsync, so the sampler's study lives in memory and each
finished trial is mirrored here by one `add_trial`. A run that was killed loses at most the
candidate in flight; a half-written last line is cut off at the next start.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
JOURNAL = "study.journal"
LOCK = ".lock"
MANIFEST = "manifest"


class StudyError(ValueError):
    """A results folder that cannot be used as asked; the message says why and what to do."""


class NotBegun(StudyError):  # noqa: N818 - a state, which passes
    """A study whose search is still starting, or ended while it was."""


WARN_AFTER = 0.5
"""Seconds that a search waits for the lock: who looks whether it is held lets it go at once."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a results folder against other processes; the lock dies with the process.

    Raises:
        StudyError: If another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=WARN_AFTER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StudyError(
            f"{folder}: another process is searching in this folder; wait for it, or give "
            "this search a folder of its own with --results"
        ) from None
    except OSError as error:
        raise StudyError(
            f"{folder}: not a folder that can be written to ({error}); give another by --results"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a search is at work in a folder; false where that cannot be told."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


class Journal:
    """The record of one study.

    Args:
        folder: The study's results folder.
        write: Whether this process may write: then the folder must be locked by the caller.
        n_values: Values of each trial, where the study is made.

    Raises:
        StudyError: If there is no study in the folder and ``write`` is false, or the journal
            is damaged before its last line.
    """

    def __init__(self, folder: Path, *, write: bool = False, n_values: int = 1) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        if write:
            cut_torn_tail(self.path)
        elif not self.path.is_file():
            raise StudyError(f"{folder}: holds no study ({JOURNAL} is missing)")
        try:
            self._study = self._open(write, n_values)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise damaged(self.path, error) from error
        self._size = self.path.stat().st_size

    def _open(self, write: bool, n_values: int) -> optuna.Study:
        storage = JournalStorage(
            JournalFileBackend(str(self.path), lock_obj=_HeldLock(str(self.path)))
        )
        names = [study.study_name for study in storage.get_all_studies()]
        if names:
            return optuna.load_study(study_name=names[0], storage=storage)
        if not write:
            raise ValueError("it holds no study")
        return optuna.create_study(
            study_name=self.folder.resolve().name,
            storage=storage,
            directions=[StudyDirection.MAXIMIZE] * n_values,
            pruner=optuna.pruners.NopPruner(),
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All finished trials, in order of number."""
        return self._study.get_trials(deepcopy=False)

    def append(self, trial: FrozenTrial) -> None:
        """Add a finished trial: one line, on disk when this returns.

        Raises:
            OSError: If it cannot be written; the journal is then as before.
            StudyError: As `check_alone`.
        """
        self.check_alone()
        try:
            self._study.add_trial(trial)
        except OSError:
            cut_torn_tail(self.path)
            raise
        self._size = self.path.stat().st_size

    def check_alone(self) -> None:
        """Refuse to write where the journal is not as this process has left it.

        The lock does not tell: it goes with the folder, if that is removed under a search and
        another search makes it anew.

        Raises:
            StudyError: If the folder was removed, or somebody else has written.
        """
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != self._size:
            raise StudyError(
                f"{self.path}: must be written by this search alone, but was removed or changed "
                f"while it ran ({self._size} bytes were left there, now "
                f"{'nothing' if size is None else size}); nothing more is written there: see who "
                "uses the folder, then run the same command again"
            )

    @property
    def manifest(self) -> dict[str, Any]:
        """What was searched, with what; empty before the study has begun."""
        return self._study.user_attrs.get(MANIFEST, {})

    @property
    def begun(self) -> dict[str, Any]:
        """The manifest of a study that has begun.

        Raises:
            NotBegun: If it has not: its search is still starting, or ended while it was.
        """
        if not self.manifest:
            raise not_begun(self.folder)
        return self.manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Record what is searched."""
        self._study.set_user_attr(MANIFEST, dict(manifest))
        self._size = self.path.stat().st_size


def damaged(path: Path, reason: object) -> StudyError:
    """What is said of a journal that cannot be read."""
    return StudyError(
        f"{path}: the journal is damaged ({reason}); restore it from a backup, or search in "
        "another folder with --results"
    )


def not_begun(folder: Path) -> NotBegun:
    """What is said of a study without a manifest."""
    return NotBegun(f"{folder}: this study has not begun yet; run its search again")


class _HeldLock(JournalFileOpenLock):
    """Stands for the folder's lock, which the writing process holds all the time.

    Optuna's own lock file survives a kill and costs the next start 30 seconds.
    """

    def acquire(self) -> bool:
        """Do nothing: the folder is locked."""
        return True

    def release(self) -> None:
        """Do nothing: the folder stays locked."""


def cut_torn_tail(path: Path) -> int:
    """Cut a journal back to its last whole record; return the bytes that were cut."""
    if not path.is_file():
        return 0
    data = path.read_bytes()
    whole = len(data) if data.endswith(b"\n") else data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(whole - 1, 0)) + 1
    if whole and not _is_record(data[last:whole]):
        whole = last
    torn = len(data) - whole
    if torn:
        log.warning("%s: the last record was not written whole; %d bytes were cut off", path, torn)
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
    return torn


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def find_studies(results: Path) -> list[Path]:
    """Return the study folders in a results folder, or the folder itself if it is a study.

    Raises:
        StudyError: If there is none.
    """
    if (results / JOURNAL).is_file():
        return [results]
    found = sorted(path.parent for path in results.glob(f"*/{JOURNAL}"))
    if not found:
        raise StudyError(
            f"{results}: holds no study; give the folder that a search printed, as results/NAME"
        )
    return found


UNREADABLE = (OSError, LookupError, TypeError, ValueError)
"""What reading a study may raise that is damaged, or written to this moment; a StudyError is a
ValueError."""


def stamp(folder: Path) -> list[int]:
    """What is another after any change of journal or items: confirmation adds items, no trial.

    Args:
        folder: The study's.
    """
    found: list[int] = []
    for path in (folder / JOURNAL, folder / "items"):
        try:
            status = path.stat()
        except OSError:
            continue
        found += [status.st_size, status.st_mtime_ns]
    return found
