"""Choose the finalists: the best on the search items, raced ones scored on the rest of them first.

A candidate that was stopped in the race has an estimate. If that places it among the best, it is
scored on the remaining search items and placed by the result. Those items are stored as a split of
their own: the journal line keeps the values that the sampler got. Knows candidates and item scores;
scores nothing, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...evals.scores.scores import ItemScores, joined
from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import SEARCH
from ..evaluate.objective import Objective
from ..evaluate.pareto import place_in_fronts
from ..evaluate.scoring import with_scores, with_value
from ..storage.candidate import Candidate

REST = "rest"
"""Split of the store: search items that a raced finalist is scored on after the search."""


def finals(
    candidates: Sequence[Candidate],
    count: int,
    complete: Callable[[Candidate], Candidate | None],
) -> tuple[list[Candidate], list[Candidate]]:
    """Choose the finalists; raced ones among the best are completed first.

    The best are taken by score or estimate. While a raced one is among them it is completed, the
    best first, at most ``count`` in total.

    Args:
        candidates: All finished candidates.
        count: Number of finalists.
        complete: Returns a raced candidate with its scores on all search items; None without them.

    Returns:
        The candidates, completed ones in their places; and the finalists, best first.
    """
    current, tried = list(candidates), set[int]()
    while len(tried) < count:
        raced = (c for c in _best(current, count) if c.raced and c.number not in tried)
        first = next(raced, None)
        if first is None:
            break
        tried.add(first.number)
        current[first.number] = complete(first) or first
    return current, finalists(current, count)


def finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the best candidates on the search items; estimates rank after all scores.

    Baselines do not count; of equal candidates the first is better. With several values, front
    comes after front, the least crowded candidates of each first.
    """
    scored = _best([c for c in candidates if not c.raced], count)
    return scored + _best([c for c in candidates if c.raced], count - len(scored))


def _best(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the best candidates as `finalists`, without regard to racing."""
    searched = [c for c in candidates if c.is_searched and c.value is not None]
    if searched and searched[0].values:
        places = place_in_fronts(np.array([c.values for c in searched]), count)
        order = sorted(range(len(searched)), key=places.__getitem__)
        return [searched[index] for index in order[:count]]
    return sorted(searched, key=lambda c: (-(c.value or 0.0), c.number))[:count]


def best_confirmed(
    chosen: Sequence[Candidate], confirmed: Mapping[int, ItemScores], objective: Objective
) -> Candidate | None:
    """Return the winner: the finalist with the best confirm score, the first of equals.

    Args:
        chosen: The finalists.
        confirmed: Number -> confirm items of those that are scored there.
        objective: Combines them.
    """
    scored = [c for c in chosen if c.number in confirmed]
    return max(scored, key=lambda c: objective.combined(confirmed[c.number]).value, default=None)


def completed(store: ItemStore, candidate: Candidate, objective: Objective) -> Candidate | None:
    """Return a raced candidate with the rest of the search items; None if they are missing."""
    stored = [store.read(candidate.number, split) for split in (SEARCH, REST)]
    items = [scores for scores in stored if scores is not None]
    if len(items) < len(stored):
        return None
    scored = with_scores(replace(candidate, raced=False), joined(items), objective)
    candidate = with_value(scored, objective)
    return None if candidate.failure else candidate


def search_items(store: ItemStore, candidate: Candidate) -> ItemScores | None:
    """Return the search items of a candidate's score; None if the store has lost some."""
    items = store.read(candidate.number, SEARCH)
    if items is None or items.n >= candidate.items:
        return items
    rest = store.read(candidate.number, REST)
    return None if rest is None else joined([items, rest])
