"""A study as optuna-dashboard shows it: a copy of its journal that follows the search, with notes.

The search's own file is only read: what a person writes in the dashboard stays in the copy, which
goes when the dashboard ends. Knows Optuna's journal and candidates; serves nothing itself.
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
FOLLOWED_EVERY = 5.0
"""Seconds between two looks at the search's journal."""


class Mirror:
    """A journal beside the study's own, to which notes are added.

    A new trial gets a note of what it says itself at once; what only the leaderboard knows (confirm
    scores, verdicts) follows when journal or items have changed, as often as deriving it takes at
    most SHARE of a core.

    Args:
        study: The study's results folder.
        folder: Where the copy is kept; it must exist.
        clock: Seconds, never put back.

    Attributes:
        storage: The copy, for a dashboard.

    Raises:
        StudyError: If there is no study, or its journal is damaged.
    """

    def __init__(
        self, study: Path, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        Journal(study)  # refuses what is no study
        self._source, self._copy = study / JOURNAL, folder / JOURNAL
        self._clock = clock
        self._due = clock()
        self._at: list[int] = []
        self._read = self._noted = self._version = 0
        self._alone = threading.Lock()
        self._notes: dict[str, str] = {}
        self._append()
        self.storage = JournalStorage(JournalFileBackend(str(self._copy)))
        self._gathered = _Gathering(str(self._copy))
        self._writer = JournalStorage(self._gathered)

    def _append(self) -> bool:
        """Append the whole lines that the search has written since; say whether there are any."""
        with self._source.open("rb") as source:
            source.seek(self._read)
            new = source.read()
        new = new[: new.rfind(b"\n") + 1]
        with self._copy.open("ab") as copy:
            copy.write(new)
        self._read += len(new)
        return bool(new)

    def follow(self) -> None:
        """Take over what is new in the search's journal, and write the notes that changed.

        Raises:
            StudyError: If the leaderboard cannot be derived now; what is new is taken over.
            OSError: If a file cannot be read.
        """
        with self._alone:
            self._follow()

    def _follow(self) -> None:
        if self._append() and self._version:
            self._note_new_trials()
        at = file_stamp(self._source.parent)
        if at == self._at or self._clock() < self._due:
            return
        begun = time.thread_time()
        try:
            board = read_leaderboard(self._source.parent)
        finally:
            self._due = self._clock() + (time.thread_time() - begun) / SHARE
        rows = {f"{row.candidate.number}:": trial_note(row) for row in board.rows}
        self._write({"": study_note(board), **rows})
        self._noted, self._at = max(self._noted, len(board.rows)), at

    def _note_new_trials(self) -> None:
        """Say of each new trial what its own record says."""
        new = self.storage.get_all_trials(0, deepcopy=False)[self._noted :]
        rows = (Row(candidate_of(trial)) for trial in new)
        self._write({f"{row.candidate.number}:": trial_note(row) for row in rows})
        self._noted += len(new)

    def _write(self, notes: Mapping[str, str]) -> None:
        """Write those notes that are not there yet, all at once."""
        self._version += 1
        with self._gathered.held():
            for owner, note in notes.items():
                if self._notes.get(owner) != note:
                    self._set(f"dashboard:{owner}note_ver", self._version)
                    self._set(f"dashboard:{owner}note_str:0", note)
        self._notes |= notes

    def _set(self, key: str, value: Any) -> None:
        # A journal of one study: its id is 0, and a trial's is its number.
        self._writer.set_study_system_attr(0, key, value)


class _Gathering(JournalFileBackend):
    """A journal file that can be appended to in one piece: every append waits for the disk."""

    _kept: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, or keep for later."""
        if self._kept is None:
            super().append_logs(logs)
        else:
            self._kept += logs

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep what is appended, and append it at the end."""
        self._kept = []
        try:
            yield
        finally:
            logs, self._kept = self._kept, None
            if logs:
                super().append_logs(logs)


def study_note(board: Leaderboard) -> str:
    """Say in Markdown what the search has found."""
    return "\n\n".join([f"# {board.name}", *summary_lines(board)])


def trial_note(row: Row) -> str:
    """Say in Markdown what a candidate is and how well it does."""
    candidate = row.candidate
    parts = [f"# {candidate.name}", f"`{recipe_line(candidate.recipe, candidate.origin)}`"]
    if candidate.failure:
        parts.append(f"Failed: {candidate.failure}")
    parts += [
        f"{task}: {score(found.value, found.se)} on {found.n} search items"
        for task, found in candidate.scores.items()
    ]
    if candidate.raced:
        parts.append(f"Stopped in the race after {candidate.items} items: scores are estimates.")
    if row.confirm:
        parts.append(f"Confirmed: {score(row.confirm.value, row.confirm.se)} ({row.verdict}).")
    if row.to_parent:
        gain = row.to_parent
        parts.append(f"Against the best parent: {signed(gain.value)} (p {p_value(gain.p)}).")
    return "\n\n".join(parts)


@contextmanager
def mirrored(study: Path) -> Iterator[Mirror]:
    """A mirror that follows the search from a thread of its own, until the context ends.

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


def keep_following(mirror: Mirror, ended: threading.Event, every: float = FOLLOWED_EVERY) -> None:
    """Follow until the event is set; what cannot be read is told once, and tried again.

    Args:
        mirror: What follows.
        ended: Ends it.
        every: Seconds between two looks.
    """
    told = ""
    while True:
        try:
            mirror.follow()
            told = ""
        except UNREADABLE as error:
            if str(error) != told:
                log.warning("the notes wait: %s", error)
                told = str(error)
        if ended.wait(every):
            return
