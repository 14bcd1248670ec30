"""A study's race: opened when the baselines are scored, the same whenever the study goes on.

Knows the item store and the scorer by what they do; the rules of racing are those of
`evals/racing.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..evals.racing import Race, item_order, rung_ends
from ..evals.scorer import Scorer
from ..evals.scores import ItemScores
from ..evals.splits import SEARCH
from ..evals.store import ItemStore
from .candidate import Candidate, settled
from .objective import Objective
from .sections import SearchSection


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
    objective = settled(objective, candidates)
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
