"""Partial scores of unfinished candidates, saved after every rung.

So a kill costs each candidate at most one rung. Knows the item store's files; no sampler, no race.
When a candidate is finished its items are in the study's own store, and nothing of it stays here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...evals.scores.scores import ItemScores
from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import SEARCH
from ...merge.recipe.recipe import Recipe
from .files import Disk

SECONDS = 1.0
"""Scoring time that is worth a file: less is soon repeated."""


@dataclass
class _Pending:
    recipe: Recipe
    saved_at: float

    def fingerprint(self, requests: str) -> str:
        """Return the fingerprint of a file: the recipe, and the fingerprint of the requests."""
        return f"{self.recipe.digest} {requests}"


class PartialScores:
    """Scores of unfinished candidates, in a folder of their own.

    Args:
        folder: Created by the first save.
        disk: Writes them.
        clock: Returns seconds.
    """

    def __init__(
        self, folder: Path, disk: Disk, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._disk, self._clock = folder, disk, clock
        self._pending: dict[int, _Pending] = {}

    def begin(self, number: int, recipe: Recipe, fingerprint: str) -> ItemScores | None:
        """Register a candidate.

        Args:
            number: Its number in the journal.
            recipe: Its recipe; scores of another recipe with this number do not count.
            fingerprint: Fingerprint of the requests that are scored now.

        Returns:
            Its scores from an earlier run; None if there are none.
        """
        pending = self._pending[number] = _Pending(recipe, self._clock())
        scores = self._store.read(number, SEARCH) if self._folder.is_dir() else None
        if scores is None or scores.fingerprint != pending.fingerprint(fingerprint):
            return None
        return replace(scores, fingerprint=fingerprint)

    def save(self, number: int, scores: ItemScores) -> None:
        """Save a candidate's scores so far; a no-op within SECONDS of the last time."""
        pending = self._pending[number]
        if self._clock() - pending.saved_at < SECONDS:
            return
        marked = replace(scores, fingerprint=pending.fingerprint(scores.fingerprint))
        self._disk.write(lambda: self._store.append(number, SEARCH, marked))
        pending.saved_at = self._clock()

    def finish(self, number: int) -> None:
        """Remove a finished candidate."""
        self._pending.pop(number)
        if self._folder.is_dir():
            self._store.drop([number])

    def close(self) -> None:
        """Remove the folder, unless a candidate is unfinished."""
        if not self._pending:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _store(self) -> ItemStore:
        return ItemStore(self._folder)
