"""Who is confirmed: the best on the search items, raced ones scored on the rest of them first.

A candidate that was stopped in the race has an estimate for a score. Where that places it among the
best, it is scored on the items that it has not met, and has its place by what comes out. Those
items are kept beside the others, as a split of their own: the journal's line stays what the sampler
was told. Knows candidates and item scores; scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
"""Split of the store: search items that a candidate met after the search, to be a finalist."""


def finals(
    candidates: Sequence[Candidate],
    count: int,
    complete: Callable[[Candidate], Candidate | None],
) -> tuple[list[Candidate], list[Candidate]]:
    """Choose the finalists.

    The best are looked at by score or estimate. While a raced one is among them it is completed,
    the best first, at most ``count`` in all.

    Args:
        candidates: All that are finished.
        count: Of finalists.
        complete: Gives a raced candidate with the scores of all items; None where there are none.

    Returns:
        The candidates, completed ones in their places, and the finalists, best first.
    """
    known, tried = list(candidates), set[int]()
    while len(tried) < count:
        raced = (c for c in _best(known, count) if c.raced and c.number not in tried)
        first = next(raced, None)
        if first is None:
            break
        tried.add(first.number)
        known[first.number] = complete(first) or first
    return known, finalists(known, count)


def finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best candidates on the search items; those that have an estimate come after the others.

    Baselines are left out, ties are by number. Of several values, front comes after front, and
    within one those that stand apart come first.
    """
    whole = _best([c for c in candidates if not c.raced], count)
    return whole + _best([c for c in candidates if c.raced], count - len(whole))


def _best(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """As `finalists`, by score or estimate alike."""
    tried = [c for c in candidates if c.is_searched and c.value is not None]
    if tried and tried[0].values:
        places = place_in_fronts(np.array([c.values for c in tried]), count)
        order = sorted(range(len(tried)), key=places.__getitem__)
        return [tried[index] for index in order[:count]]
    return sorted(tried, key=lambda c: (-(c.value or 0.0), c.number))[:count]


def completed(store: ItemStore, candidate: Candidate, objective: Objective) -> Candidate | None:
    """A raced candidate as it is with the rest of the search items; None where they are missing."""
    parts = [store.read(candidate.number, split) for split in (SEARCH, REST)]
    found = [scores for scores in parts if scores is not None]
    if len(found) < len(parts):
        return None
    whole = with_value(
        with_scores(replace(candidate, raced=False), joined(found), objective), objective
    )
    return None if whole.failure else whole


def search_items(store: ItemStore, candidate: Candidate) -> ItemScores | None:
    """The search items that a candidate's score is of; None if the store has lost some."""
    met = store.read(candidate.number, SEARCH)
    if met is None or met.n >= candidate.items:
        return met
    rest = store.read(candidate.number, REST)
    return None if rest is None else joined([met, rest])
