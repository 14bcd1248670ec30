"""The race of a study: its references, rungs and incumbents.

Opened when the baselines are scored; a resumed study opens the same race. Knows candidates, the
item store and the scorer; the tests that stop a candidate are in `evals/stats/racing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...evals.scorer.scorer import Scorer
from ...evals.scores.scores import ItemScores
from ...evals.scores.store import ItemStore
from ...evals.stats.racing import Race, item_order, rung_ends
from ...evals.tasks.splits import SEARCH
from ..config.search import SearchSection
from ..storage.candidate import Candidate
from .objective import Objective
from .pareto import front_members, is_on_front
from .scoring import objective_on_parents_scale


def open_race(
    scorer: Scorer,
    store: ItemStore,
    candidates: Sequence[Candidate],
    section: SearchSection,
    objective: Objective,
) -> Race | None:
    """Open the race: choose its references and plan the scorer's rungs.

    Args:
        scorer: Gets the order of the search items and the ends of the rungs.
        store: Holds the baselines' items.
        candidates: All finished candidates.
        section: Settings of the race, and the seed of the order.
        objective: Combines the scores.

    Returns:
        None if candidates are not raced: racing is off, no baseline has a score, or one rung holds
        all items.
    """
    if not section.racing or len(rung_ends(scorer.items(SEARCH), section.racing.first)) == 1:
        return None
    references = _references(store, candidates)
    if not references:
        return None
    objective = objective_on_parents_scale(objective, candidates)
    race = Race(references, objective.criteria, section.racing.alpha, objective.terms)
    plan_rungs(scorer, race, section)
    return race


def plan_rungs(scorer: Scorer, race: Race, section: SearchSection) -> None:
    """Plan a scorer's rungs for a race: the same on every worker."""
    assert section.racing
    ends = rung_ends(scorer.items(SEARCH), section.racing.first)
    scorer.plan_rungs(SEARCH, item_order(race.references, section.run_seed), ends)


def _references(store: ItemStore, candidates: Sequence[Candidate]) -> tuple[ItemScores, ...]:
    """Return the items of the better half of the baselines.

    The search begins among them, so the items on which they disagree, or nearly, are those by which
    good candidates differ. The other half may hold parents that solve one task each and disagree on
    nearly everything.
    """
    baselines = [(c.value, c) for c in candidates if c.is_baseline and c.value is not None]
    best = better_half([value for value, _ in baselines])
    items = [store.read(baselines[index][1].number, SEARCH) for index in best]
    return tuple(scores for scores in items if scores is not None)


def better_half(values: Sequence[float]) -> list[int]:
    """Return the indices of the better half of values, at least two, best first (stable)."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    return order[: max(len(values) // 2, 2)]


def rungs_up_to(scorer: Scorer, items: int) -> ItemScores:
    """Score the search items rung by rung, until at least ``items`` are scored."""
    rungs: Iterator[ItemScores] = scorer.rungs(SEARCH)
    return next(scores for scores in rungs if scores.n >= items)


MOST_INCUMBENTS = 8
"""Largest number of incumbents, where several values make a front."""


class Incumbents:
    """The best of the candidates added so far, in order of number."""

    def __init__(self) -> None:
        self._best: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        """Consider one more candidate; one that was not scored on all items does not count."""
        if candidate.value is None or candidate.raced or candidate.is_variant:
            return
        if candidate.values:
            both = [*self._best, candidate]
            front = is_on_front(np.array([c.values for c in both]))
            self._best = [c for c, is_best in zip(both, front.tolist(), strict=True) if is_best]
        elif not self._best or candidate.value > (self._best[0].value or 0.0):
            self._best = [candidate]

    @property
    def members(self) -> list[Candidate]:
        """The best candidate, the first of equal ones; empty before any has a value.

        With several values, up to MOST_INCUMBENTS members of the front, the least crowded first.
        """
        if len(self._best) < 2:
            return list(self._best)
        order = front_members(np.array([c.values for c in self._best]))
        return [self._best[index] for index in order[:MOST_INCUMBENTS]]


class IncumbentItems:
    """Items of the incumbents that a proposal knew.

    Args:
        read: Reads the search items of a candidate.
    """

    def __init__(self, read: Callable[[Candidate], ItemScores]) -> None:
        self._read = read
        self._incumbents = Incumbents()
        self._n_added = self._n_searched = 0
        self._items: dict[int, ItemScores] = {}

    def of_proposal(self, candidates: Sequence[Candidate], n_known: int) -> tuple[ItemScores, ...]:
        """Return the items of the best of the baselines and the first searched candidates.

        Args:
            candidates: All finished candidates, more of them with each call.
            n_known: Number of searched candidates that the proposal knew; never decreases.
        """
        for candidate in candidates[self._n_added :]:
            if candidate.is_searched and self._n_searched >= n_known:
                break
            self._n_searched += candidate.is_searched
            self._n_added += 1
            self._incumbents.add(candidate)
        cached, members = self._items, self._incumbents.members
        self._items = {c.number: cached.get(c.number) or self._read(c) for c in members}
        return tuple(self._items.values())
