"""A study's race: opened when the parents are scored, the same whenever the study goes on.

Knows the item store and the scorer by what they do; the rules of racing are those of
`evals/racing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..evals.racing import Race, item_order, rung_ends
from ..evals.scorer import Scorer
from ..evals.scores import ItemScores
from ..evals.splits import SEARCH
from ..evals.store import ItemStore
from .candidate import Candidate
from .objective import Objective
from .pareto import front_members
from .sections import SearchSection

MOST_INCUMBENTS = 8
"""Of a front, with whom a candidate is compared."""


def open_race(
    scorer: Scorer,
    store: ItemStore,
    candidates: Sequence[Candidate],
    section: SearchSection,
    objective: Objective,
) -> Race | None:
    """Fix the order of the search items and the scorer's rungs.

    Args:
        scorer: Its rungs of the search items are planned.
        store: Holds the parents' items.
        candidates: All that are finished.
        section: How candidates are raced, and the seed of the order.
        objective: What they are raced for.

    Returns:
        None where candidates are not raced: it is switched off, no parent has a score, or one rung
        takes all items.
    """
    return plan_race(scorer, race_references(store, candidates), section, objective)


def race_references(store: ItemStore, candidates: Sequence[Candidate]) -> tuple[ItemScores, ...]:
    """The parents' items: what a worker must know to plan the same race."""
    parents = [c for c in candidates if c.kind == "parent" and c.value is not None]
    read = [store.read(c.number, SEARCH) for c in parents]
    return tuple(scores for scores in read if scores is not None)


def plan_race(
    scorer: Scorer,
    references: tuple[ItemScores, ...],
    section: SearchSection,
    objective: Objective,
) -> Race | None:
    """As `open_race`, from the parents' items: the same on every worker."""
    if not section.racing:
        return None
    ends = rung_ends(scorer.items(SEARCH), section.racing.first)
    if not references or len(ends) == 1:
        return None
    scores = (objective.seen(items).task_scores() for items in references)
    objective = objective.scaled({t: s.value for t, s in found.items()} for found in scores)
    scorer.plan_rungs(SEARCH, item_order(references, section.run_seed), ends)
    return Race(references, objective.criteria, section.racing.alpha, objective.terms)


def rungs_up_to(scorer: Scorer, items: int) -> ItemScores:
    """Scores of the search items, rung by rung, until so many are scored."""
    found: Iterator[ItemScores] = scorer.rungs(SEARCH)
    return next(scores for scores in found if scores.n >= items)


def incumbents(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best that was scored on all items, the earlier of equals; none before there is one.

    Of several values the front, at most MOST_INCUMBENTS of it, those that stand apart.
    """
    whole = [c for c in candidates if c.value is not None and not c.raced and not c.is_variant]
    if whole and whole[0].values:
        members = front_members(np.array([c.values for c in whole]))
        return [whole[index] for index in members[:MOST_INCUMBENTS]]
    best = max(whole, key=lambda c: c.value or 0.0, default=None)
    return [] if best is None else [best]
