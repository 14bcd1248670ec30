"""A study's journal: Optuna's file format, one line per finished candidate, one writer at a time.

Every `suggest_*` of a stored trial costs an fsync, so the sampler's study lives in memory and each
finished trial is copied here by one `add_trial`. A killed run loses at most the unfinished
candidates; an incomplete last line is cut off at the next start.
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
    """A results folder that cannot be used as requested; the message gives reason and remedy."""


class NotBegun(StudyError):  # noqa: N818 - a state, which passes
    """A study without a manifest: its search is still starting, or was killed at the start."""


UNREADABLE = (OSError, LookupError, TypeError, ValueError)
"""Errors of reading a study that is damaged or being written right now; a StudyError is a
ValueError."""
LOCK_TIMEOUT = 0.5
"""Seconds that a search waits for the lock: `is_locked` of another process holds it briefly."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a results folder against other processes; the lock ends with the process.

    Raises:
        StudyError: If another process has locked it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK, timeout=LOCK_TIMEOUT)
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
            f"{folder}: not a folder that can be written to ({error}); give another with --results"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a search is running in a folder; false if that cannot be determined."""
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
    """The journal of one study.

    Args:
        folder: The study's results folder.
        write: Whether this process may write; the caller must then hold the folder's lock.
        n_values: Values per trial of a new study.

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
            raise no_study(folder)
        try:
            self._study = self._open(write, n_values)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise damaged(self.path, error) from error
        self._size = self.path.stat().st_size

    def _open(self, write: bool, n_values: int) -> optuna.Study:
        storage = JournalStorage(
            JournalFileBackend(str(self.path), lock_obj=_FolderLock(str(self.path)))
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
        """Finished trials in order of number."""
        return self._study.get_trials(deepcopy=False)

    def append(self, trial: FrozenTrial) -> None:
        """Write a finished trial as one line, which is on disk when this returns.

        Raises:
            OSError: If it cannot be written; the journal is then unchanged.
            StudyError: As `check_unchanged`.
        """
        self.check_unchanged()
        try:
            self._study.add_trial(trial)
        except OSError:
            cut_torn_tail(self.path)
            raise
        self._size = self.path.stat().st_size

    def check_unchanged(self) -> None:
        """Check that the journal is as this process left it.

        The lock alone cannot tell: it disappears with a folder that is removed during a search,
        and another search may create the folder again.

        Raises:
            StudyError: If the folder was removed, or another process has written.
        """
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != self._size:
            raise StudyError(
                f"{self.path}: must be written by this search alone, but was removed or changed "
                f"while it ran ({self._size} bytes were left there, now "
                f"{'nothing' if size is None else size}); nothing more is written there: see what "
                "else uses the folder, then run the same command again"
            )

    @property
    def manifest(self) -> dict[str, Any]:
        """Configuration, identity and machine of the study; empty before it has begun."""
        return self._study.user_attrs.get(MANIFEST, {})

    @property
    def begun(self) -> dict[str, Any]:
        """The manifest of a study that must have begun.

        Raises:
            NotBegun: If it has none.
        """
        if not self.manifest:
            raise not_begun(self.folder)
        return self.manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        self._study.set_user_attr(MANIFEST, dict(manifest))
        self._size = self.path.stat().st_size


def damaged(path: Path, reason: object) -> StudyError:
    """Return the error for a journal that cannot be read."""
    return StudyError(
        f"{path}: the journal is damaged ({reason}); restore it from a backup, or search in "
        "another folder with --results"
    )


def not_begun(folder: Path) -> NotBegun:
    """Return the error for a study without a manifest."""
    return NotBegun(f"{folder}: this study has not begun yet; run its search again")


def no_study(folder: Path) -> StudyError:
    """Return the error for a folder without a journal."""
    return StudyError(
        f"{folder}: holds no study ({JOURNAL} is missing); give a study's folder, such as "
        "results/NAME"
    )


class _FolderLock(JournalFileOpenLock):
    """Optuna's lock as a no-op: the writing process holds the folder's lock throughout.

    Optuna's own lock file survives a kill and costs the next start 30 seconds.
    """

    def acquire(self) -> bool:
        """Do nothing: the folder is locked already."""
        return True

    def release(self) -> None:
        """Do nothing: the folder stays locked."""


def cut_torn_tail(path: Path) -> int:
    """Cut a journal back to its last complete record; return the number of bytes cut."""
    if not path.is_file():
        return 0
    data = path.read_bytes()
    end = len(data) if data.endswith(b"\n") else data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
    if end and not _is_record(data[last:end]):
        end = last
    torn = len(data) - end
    if torn:
        log.warning("%s: the last record is incomplete; %d bytes were cut off", path, torn)
        with path.open("r+b") as file:
            file.truncate(end)
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
    studies = sorted(path.parent for path in results.glob(f"*/{JOURNAL}"))
    if not studies:
        raise StudyError(
            f"{results}: holds no study; give the folder that a search printed, such as "
            "results/NAME"
        )
    return studies


def file_stamp(folder: Path) -> list[int]:
    """Return sizes and times of a study's files, which change with every write.

    The items count too: confirmation writes items, but no trial.
    """
    stamp: list[int] = []
    for path in (folder / JOURNAL, folder / "items"):
        try:
            status = path.stat()
        except OSError:
            continue
        stamp += [status.st_size, status.st_mtime_ns]
    return stamp
