"""A study as optuna-dashboard shows it: a copy of its journal that follows the search, with notes.

The search's own file is only read: what a person writes in the dashboard stays in the copy, which
goes when the dashboard ends. Knows Optuna's journal and candidates; serves nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from .format import p_value, recipe_line, score, signed
from .journal import JOURNAL, Journal
from .leaderboard import Leaderboard, Row, read_leaderboard
from .views import found_lines

FOLLOWED_EVERY = 5.0
"""Seconds between two looks at the search's journal."""


class Mirror:
    """A journal beside the study's own, to which notes are added.

    Args:
        study: The study's results folder.
        folder: Where the copy is kept; it must exist.

    Attributes:
        storage: The copy, for a dashboard.

    Raises:
        StudyError: If there is no study, or its journal is damaged.
    """

    def __init__(self, study: Path, folder: Path) -> None:
        Journal(study)  # refuses what is no study
        self._source = study / JOURNAL
        self._copy = folder / JOURNAL
        self._read = 0
        self._version = 0
        self._notes: dict[str, str] = {}
        self._append()
        self.storage = JournalStorage(JournalFileBackend(str(self._copy)))

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
        """Take over what is new in the search's journal, and write the notes that changed."""
        if not self._append() and self._notes:
            return
        board = read_leaderboard(self._source.parent)
        notes = {"": study_note(board)}
        notes |= {f"{row.candidate.number}:": trial_note(row) for row in board.rows}
        self._version += 1
        for owner, note in notes.items():
            if self._notes.get(owner) != note:
                self._set(f"dashboard:{owner}note_ver", self._version)
                self._set(f"dashboard:{owner}note_str:0", note)
        self._notes = notes

    def _set(self, key: str, value: Any) -> None:
        # A journal of one study: its id is 0, and a trial's is its number.
        self.storage.set_study_system_attr(0, key, value)


def study_note(board: Leaderboard) -> str:
    """Say in Markdown what the search has found."""
    return "\n\n".join([f"# {board.name}", *found_lines(board)])


def trial_note(row: Row) -> str:
    """Say in Markdown what a candidate is and how well it does."""
    candidate = row.candidate
    parts = [f"# {candidate.name}", f"`{recipe_line(candidate.recipe)}`"]
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

        def keep() -> None:
            mirror.follow()
            while not ended.wait(FOLLOWED_EVERY):
                mirror.follow()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield mirror
        finally:
            ended.set()
            thread.join()
