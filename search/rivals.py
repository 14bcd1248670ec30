"""Whom a candidate is raced against: the best that its proposal knew.

Knows finished candidates and what reads their items. Looks at each candidate once, however many
there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..evals.scores import ItemScores
from .candidate import Candidate
from .pareto import front_members, is_on_front

MOST_INCUMBENTS = 8
"""Of a front, with whom a candidate is compared."""


class Incumbents:
    """The best of the candidates that it was shown, in order of number."""

    def __init__(self) -> None:
        self._best: list[Candidate] = []

    def see(self, candidate: Candidate) -> None:
        """Look at one more candidate; those that were not scored on all items do not count."""
        if candidate.value is None or candidate.raced or candidate.is_variant:
            return
        if candidate.values:
            tried = [*self._best, candidate]
            front = is_on_front(np.array([c.values for c in tried]))
            self._best = [c for c, is_best in zip(tried, front.tolist(), strict=True) if is_best]
        elif not self._best or candidate.value > (self._best[0].value or 0.0):
            self._best = [candidate]

    @property
    def chosen(self) -> list[Candidate]:
        """The best, the earlier of equals; none before there is one.

        Of several values the front, at most MOST_INCUMBENTS of it, those that stand apart.
        """
        if len(self._best) < 2:
            return list(self._best)
        members = front_members(np.array([c.values for c in self._best]))
        return [self._best[index] for index in members[:MOST_INCUMBENTS]]


class Rivals:
    """Items of the incumbents that a proposal knew.

    Args:
        read: Search items of a candidate.
    """

    def __init__(self, read: Callable[[Candidate], ItemScores]) -> None:
        self._read = read
        self._incumbents = Incumbents()
        self._looked = self._searched = 0
        self._items: dict[int, ItemScores] = {}

    def known(self, candidates: Sequence[Candidate], known: int) -> tuple[ItemScores, ...]:
        """Items of the best of the baselines and the first searched candidates.

        Args:
            candidates: All that are finished, more of them with each call.
            known: How many searched ones count: never fewer than before.
        """
        for candidate in candidates[self._looked :]:
            if candidate.is_searched and self._searched >= known:
                break
            self._searched += candidate.is_searched
            self._looked += 1
            self._incumbents.see(candidate)
        chosen = self._incumbents.chosen
        held = self._items
        self._items = {c.number: held.get(c.number) or self._read(c) for c in chosen}
        return tuple(self._items.values())
