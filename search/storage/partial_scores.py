"""What candidates in flight have met: kept after each rung, so that a kill loses one rung of each.

Knows the item store's files; no sampler, no race. Of a candidate that lands nothing stays here: its
items are in the study's own store then.
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

SECONDS = 1.0
"""Of scoring, from which they are worth a file: less is soon scored again."""


@dataclass
class _Pending:
    recipe: Recipe
    kept_at: float

    def mark(self, fingerprint: str) -> str:
        """What scores are of: the recipe, and the requests of a fingerprint."""
        return f"{self.recipe.digest} {fingerprint}"


class PartialScores:
    """The scores of unfinished candidates, in a folder of their own.

    Args:
        folder: Made when something is kept.
        write: Calls what writes, as often as the disk needs.
        clock: Tells seconds.
    """

    def __init__(
        self,
        folder: Path,
        write: Callable[[Callable[[], object]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._write, self._clock = folder, write, clock
        self._flying: dict[int, _Pending] = {}

    def begin(self, number: int, recipe: Recipe, fingerprint: str) -> ItemScores | None:
        """Take up a candidate.

        Args:
            number: Its number in the journal.
            recipe: Its own; what another recipe of this number has met does not count.
            fingerprint: Of the requests that are scored now.

        Returns:
            What it has met in an earlier run; None if that is nothing.
        """
        flight = self._flying[number] = _Pending(recipe, self._clock())
        met = self._store.read(number, SEARCH) if self._folder.is_dir() else None
        if met is None or met.fingerprint != flight.mark(fingerprint):
            return None
        return replace(met, fingerprint=fingerprint)

    def keep(self, number: int, met: ItemScores) -> None:
        """Keep all that a candidate has met so far; a no-op soon after the last time."""
        flight = self._flying[number]
        if self._clock() - flight.kept_at < SECONDS:
            return
        marked = replace(met, fingerprint=flight.mark(met.fingerprint))
        self._write(lambda: self._store.append(number, SEARCH, marked))
        flight.kept_at = self._clock()

    def land(self, number: int) -> None:
        """Forget a candidate: its items are where they belong."""
        self._flying.pop(number)
        if self._folder.is_dir():
            self._store.drop([number])

    def close(self) -> None:
        """Remove the folder, unless a candidate is in flight."""
        if not self._flying:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _store(self) -> ItemStore:
        return ItemStore(self._folder)
