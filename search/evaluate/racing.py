"""A study's race: opened when the baselines are scored, the same whenever the study goes on.

Knows the item store and the scorer by what they do; the rules of racing are those of
`evals/stats/racing.py`.
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
    """Fix what candidates are raced by, the order of the search items and the scorer's rungs.

    Args:
        scorer: Its rungs of the search items are planned.
        store: Holds the baselines' items.
        candidates: All that are finished.
        section: How candidates are raced, and the seed of the order.
        objective: What they are raced for.

    Returns:
        None where candidates are not raced: it is switched off, no baseline has a score, or one
        rung takes all items.
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
    """Give a scorer the rungs of a race: the same on every worker."""
    assert section.racing
    ends = rung_ends(scorer.items(SEARCH), section.racing.first)
    scorer.plan_rungs(SEARCH, item_order(race.references, section.run_seed), ends)


def _references(store: ItemStore, candidates: Sequence[Candidate]) -> tuple[ItemScores, ...]:
    """Items of the better half of the baselines.

    The search begins among them, so what they disagree on, or nearly, is what good candidates
    differ by. Parents of which each can do its own task alone disagree on nearly everything.
    """
    known = [(c.value, c) for c in candidates if c.is_baseline and c.value is not None]
    best = better_half([value for value, _ in known])
    read = [store.read(known[place][1].number, SEARCH) for place in best]
    return tuple(scores for scores in read if scores is not None)


def better_half(values: Sequence[float]) -> list[int]:
    """Places of the better half of some values, two at least, best first; equals in their order."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return order[: max(len(values) // 2, 2)]


def rungs_up_to(scorer: Scorer, items: int) -> ItemScores:
    """Scores of the search items, rung by rung, until so many are scored."""
    found: Iterator[ItemScores] = scorer.rungs(SEARCH)
    return next(scores for scores in found if scores.n >= items)


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
