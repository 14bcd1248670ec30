"""A study for optuna-dashboard: a copy of its journal, with notes, that follows the search.

The search's own journal is only read: what users write in the dashboard stays in the copy, which is
deleted when the dashboard ends. Knows Optuna's journal and candidates; serves nothing itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ..format import p_value, recipe_line, score, signed
from ..leaderboard.board import Leaderboard, Row, read_leaderboard
from ..leaderboard.sentences import summary_lines
from ..storage.candidate import candidate_of
from ..storage.journal import JOURNAL, UNREADABLE, Journal, file_stamp
from ..study.page_refresh import SHARE

log = logging.getLogger(__name__)
POLL_SECONDS = 5.0
"""Seconds between two looks at the search's journal."""


class Mirror:
    """A copy of a study's journal with notes.

    A new trial gets a note from its own record at once. Notes from the leaderboard (confirm scores,
    verdicts) follow when the journal or the items have changed, as often as reading it takes at
    most SHARE of a core.

    Args:
        study: The study's results folder.
        folder: An existing folder for the copy.
        clock: Monotonic seconds.

    Attributes:
        storage: The copy, for a dashboard.

    Raises:
        StudyError: If there is no study, or its journal is damaged.
    """

    def __init__(
        self, study: Path, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        Journal(study)  # raises if there is no study
        self._source, self._copy = study / JOURNAL, folder / JOURNAL
        self._clock = clock
        self._due = clock()
        self._stamp: list[int] = []
        self._bytes_copied = self._noted = self._version = 0
        self._lock = threading.Lock()
        self._notes: dict[str, str] = {}
        self._append()
        self.storage = JournalStorage(JournalFileBackend(str(self._copy)))
        self._batch = _BatchingBackend(str(self._copy))
        self._writer = JournalStorage(self._batch)

    def _append(self) -> bool:
        """Copy the complete lines that the search has added; return whether there are any."""
        with self._source.open("rb") as source:
            source.seek(self._bytes_copied)
            new = source.read()
        new = new[: new.rfind(b"\n") + 1]
        with self._copy.open("ab") as copy:
            copy.write(new)
        self._bytes_copied += len(new)
        return bool(new)

    def follow(self) -> None:
        """Copy what is new in the search's journal, and write the notes that changed.

        Raises:
            StudyError: If the leaderboard cannot be read now; what is new is copied.
            OSError: If a file cannot be read.
        """
        with self._lock:
            self._follow()

    def _follow(self) -> None:
        if self._append() and self._version:
            self._note_new_trials()
        stamp = file_stamp(self._source.parent)
        if stamp == self._stamp or self._clock() < self._due:
            return
        begun = time.thread_time()
        try:
            board = read_leaderboard(self._source.parent)
        finally:
            self._due = self._clock() + (time.thread_time() - begun) / SHARE
        rows = {f"{row.candidate.number}:": trial_note(row) for row in board.rows}
        self._write({"": study_note(board), **rows})
        self._noted, self._stamp = max(self._noted, len(board.rows)), stamp

    def _note_new_trials(self) -> None:
        """Write a note on each new trial from its own record."""
        new = self.storage.get_all_trials(0, deepcopy=False)[self._noted :]
        rows = (Row(candidate_of(trial)) for trial in new)
        self._write({f"{row.candidate.number}:": trial_note(row) for row in rows})
        self._noted += len(new)

    def _write(self, notes: Mapping[str, str]) -> None:
        """Write the notes that changed, all at once."""
        self._version += 1
        with self._batch.one_append():
            for owner, note in notes.items():
                if self._notes.get(owner) != note:
                    self._set(f"dashboard:{owner}note_ver", self._version)
                    self._set(f"dashboard:{owner}note_str:0", note)
        self._notes |= notes

    def _set(self, key: str, value: Any) -> None:
        # A journal of one study: its id is 0, and a trial's is its number.
        self._writer.set_study_system_attr(0, key, value)


class _BatchingBackend(JournalFileBackend):
    """A journal file with batched appends: every append waits for the disk."""

    _batch: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, or add to the batch."""
        if self._batch is None:
            super().append_logs(logs)
        else:
            self._batch += logs

    @contextmanager
    def one_append(self) -> Iterator[None]:
        """Append everything of this context in one piece at its end."""
        self._batch = []
        try:
            yield
        finally:
            logs, self._batch = self._batch, None
            if logs:
                super().append_logs(logs)


def study_note(board: Leaderboard) -> str:
    """Return a Markdown note on the result of a search."""
    return "\n\n".join([f"# {board.name}", *summary_lines(board)])


def trial_note(row: Row) -> str:
    """Return a Markdown note on a candidate: recipe, scores, verdict."""
    candidate = row.candidate
    parts = [f"# {candidate.name}", f"`{recipe_line(candidate.recipe, candidate.origin)}`"]
    if candidate.failure:
        parts.append(f"Failed: {candidate.failure}")
    parts += [
        f"{task}: {score(task_score.value, task_score.se)} on {task_score.n} search items"
        for task, task_score in candidate.scores.items()
    ]
    if candidate.raced:
        parts.append(f"Stopped early after {candidate.items} items: scores are estimates.")
    if row.confirm:
        parts.append(f"Confirmed: {score(row.confirm.value, row.confirm.se)} ({row.verdict}).")
    if row.to_parent:
        gain = row.to_parent
        parts.append(f"Against the best parent: {signed(gain.value)} (p {p_value(gain.p)}).")
    return "\n\n".join(parts)


@contextmanager
def mirrored(study: Path) -> Iterator[Mirror]:
    """Yield a mirror that follows the search in its own thread until the context ends.

    Raises:
        StudyError: If there is no study, or its journal is damaged.
    """
    with TemporaryDirectory(prefix="heterosis-dashboard-") as folder:
        mirror, ended = Mirror(study, Path(folder)), threading.Event()
        thread = threading.Thread(target=keep_following, args=(mirror, ended), daemon=True)
        thread.start()
        try:
            yield mirror
        finally:
            ended.set()
            thread.join()


def keep_following(mirror: Mirror, ended: threading.Event, every: float = POLL_SECONDS) -> None:
    """Follow until the event is set; an error is logged once and tried again.

    Args:
        mirror: The mirror.
        ended: Ends the loop.
        every: Seconds between two looks.
    """
    logged = ""
    while True:
        try:
            mirror.follow()
            logged = ""
        except UNREADABLE as error:
            if str(error) != logged:
                log.warning("the notes are not up to date: %s", error)
                logged = str(error)
        if ended.wait(every):
            return
