"""Racing: which items come first, when a candidate has lost, and what its score would have been.

All candidates of a study meet the items in one order, rung after rung. Pure: item scores in,
decisions out. Knows no model and no study.

Legend: n items of a task, P references (the parents), s strata of a task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .columns import NEEDS
from .comparison import Combination
from .scores import MEAN, ItemScores, TaskScore
from .terms import Term, as_terms

FIRST = 50
"""Items of the first rung: in simulations blocks of 50 lost no candidate that was better."""

PROBE = 8
"""Items of the rung before the first: they end a candidate that has collapsed, or gives NaN."""

COLLAPSE = 0.25
"""A candidate has collapsed whose right answers are less likely, on the probe, than this share of
how likely the incumbent's are."""

PROBE_ALPHA = 1e-3
"""One-sided level that a collapse must reach besides: so few items say little."""

INFORMED = 0.8
"""Share of a rung taken from the items on which the parents disagree, while there are such. The
rest is a sample of the others, without which a stopped candidate's score could not be told."""


def rung_ends(n: int, first: int = FIRST) -> tuple[int, ...]:
    """Items scored when each rung ends: the probe's, then doubling, the last is all.

    A last rung of less than half the one before is joined to it; without another rung, and where
    the first is less than twice the probe, there is no probe.

    Args:
        n: All items, at least 1.
        first: Items of the first rung, at least 1.
    """
    ends = []
    end = first
    while end < 0.75 * n:
        ends.append(end)
        end *= 2
    probe = (PROBE,) if ends and first >= 2 * PROBE else ()
    return (*probe, *ends, n)


def item_order(references: Sequence[ItemScores], seed: int) -> list[int]:
    """Places of all items in the order of a study: what tells models apart first.

    Within a task, items on which the references' values differ come before the others, INFORMED to
    one, both shuffled; tasks are interleaved so that each rung holds their shares.

    Args:
        references: Scores of the parents on all items, aligned.
        seed: Of the shuffle.
    """
    first = references[0]
    chance = np.random.default_rng(seed)
    position = np.empty(first.n)  # of each item in its task, in (0, 1)
    for task in first.tasks:
        rows = first.rows(task)
        rank = np.empty(rows.size)
        rank[_interleaved(_disagree(references, rows), chance)] = np.arange(rows.size)
        position[rows] = (rank + 0.5) / max(rows.size, 1)
    return np.lexsort((first.task_index, position)).tolist()


def _disagree(references: Sequence[ItemScores], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    values = np.stack([scores.value[rows] for scores in references])
    return (values != values[0]).any(axis=0)


def _interleaved(informative: NDArray[np.bool_], chance: np.random.Generator) -> NDArray[np.int64]:
    """Indices (n,): informative ones before the others, INFORMED to one while both last."""
    kinds = [chance.permutation(np.flatnonzero(informative == kind)) for kind in (True, False)]
    steps = [
        (np.arange(kind.size) + 0.5) / share
        for kind, share in zip(kinds, (INFORMED, 1 - INFORMED), strict=True)
    ]
    return np.concatenate(kinds)[np.argsort(np.concatenate(steps), kind="stable")]


@dataclass(frozen=True)
class Race:
    """What a study's candidates are raced by.

    Attributes:
        references: Scores of the parents on all items.
        criteria: What is compared: a candidate has lost that is worse by each of them.
        alpha: One-sided level of each test.
        terms: What the criteria look at.
    """

    references: tuple[ItemScores, ...]
    criteria: tuple[Combination, ...]
    alpha: float
    terms: tuple[Term, ...]

    def is_lost(self, seen: ItemScores, incumbent: ItemScores) -> bool:
        """Whether a candidate is worse than the incumbent by the items that it has met.

        How likely the right answer is against its best rival is compared, which tells models apart
        by fewer items than right and wrong; values where a task has no margins. The tasks are
        weighed as a criterion weighs them at the incumbent's scores. The test is a paired
        z-test, stratified by task; on the probe the candidate must have collapsed as well.

        Args:
            seen: The candidate's scores so far.
            incumbent: Scores of the best so far, on all items.
        """
        other = restricted(incumbent, seen)
        alpha = self.alpha
        if seen.n <= PROBE:
            if not _has_collapsed(seen, other):
                return False
            alpha = min(alpha, PROBE_ALPHA)
        best = as_terms(incumbent, self.terms)
        scores = {term: best.task_score(term).value for term in best.tasks}
        mine, theirs = as_terms(seen, self.terms), as_terms(other, self.terms)
        slopes = (criterion.gradient(scores) for criterion in self.criteria)
        return all(_p_worse(mine, theirs, slope) < alpha for slope in slopes)

    def estimates(
        self, seen: ItemScores, incumbent: ItemScores, terms: Sequence[Term]
    ) -> dict[str, TaskScore]:
        """What a stopped candidate's terms would have scored on all items.

        Control variate: the incumbent's score on all items, plus how far the candidate is from it
        on the items that both have met, each stratum (the references agree on an item, or not)
        weighed by its share of all items. A candidate that has lost stays below who has beaten it.

        Args:
            seen: The candidate's scores so far.
            incumbent: Scores of the best so far, on all items.
            terms: What is asked for.

        Returns:
            By term; standard errors are those of the distance.
        """
        other = as_terms(restricted(incumbent, seen), terms)
        mine, best = as_terms(seen, terms), as_terms(incumbent, terms)
        found = {}
        for term in terms:
            d = _differences(mine, other, term.name)
            distance, variance = self._distance(seen, term.task, d)
            value = best.task_score(term.name).value + distance
            found[term.name] = TaskScore(value, math.sqrt(variance), d.size)
        return found

    def _distance(self, seen: ItemScores, task: str, d: NDArray[np.float64]) -> tuple[float, float]:
        """Mean of a task's differences over all items, by strata, and its variance."""
        whole = self.references[0]
        rows = whole.rows(task)
        disagree = np.zeros(whole.n, dtype=bool)
        disagree[rows] = _disagree(self.references, rows)
        mine = disagree[_places(seen, whole)[seen.rows(task)]]
        total = variance = 0.0
        for kind in (True, False):
            share, own = float((disagree[rows] == kind).mean()), d[mine == kind]
            if own.size:
                total += share * float(own.mean())
                variance += share**2 * float(own.var(ddof=min(own.size - 1, 1))) / own.size
        return total, variance


def _p_worse(seen: ItemScores, other: ItemScores, slopes: Mapping[str, float]) -> float:
    """One-sided p that a model is no worse than another on the same items; 1 if nothing differs."""
    total = variance = 0.0
    for task, slope in slopes.items():
        d = _differences(seen, other, task)
        if slope and d.size > 1:
            total += slope * float(d.mean())
            variance += slope**2 * float(d.var(ddof=1)) / d.size
    return 0.5 * math.erfc(-total / math.sqrt(2 * variance)) if variance > 0 else 1.0


def restricted(scores: ItemScores, seen: ItemScores) -> ItemScores:
    """The same items as those of ``seen``, of a model that was scored on all of them."""
    return scores.taken(_places(seen, scores))


def _places(seen: ItemScores, whole: ItemScores) -> NDArray[np.int64]:
    """Where each item of ``seen`` stands in ``whole`` (n,)."""
    return np.searchsorted(whole.keys, seen.keys)


def _differences(seen: ItemScores, other: ItemScores, task: str) -> NDArray[np.float64]:
    """Paired differences of a task (n,), whose mean estimates that of the two scores.

    Of answers that are right or wrong, the difference in how likely the right one is against its
    best rival, 1 / (1 + exp(-margin)): an answer that is nearly right counts for more than one that
    is far off, and one that is right by far for no more than right.
    """
    rows, at = seen.rows(task), seen.tasks.index(task)
    if rows.size == 0:
        return np.empty(0)
    if seen.aggregations[at] != MEAN:
        score = seen.task_score(task).value - other.task_score(task).value
        return score + rows.size * (seen.influence(task) - other.influence(task))
    has_margins = all(np.isfinite(scores.margin[rows]).all() for scores in (seen, other))
    if seen.metrics[at] in NEEDS or not has_margins:
        return seen.value[rows] - other.value[rows]
    d = _chances(seen)[rows] - _chances(other)[rows]
    return d if seen.higher_is_better[at] else -d


def _chances(scores: ItemScores) -> NDArray[np.float64]:
    """How likely each right answer is against its best rival (n,); nan where there is none."""
    return 1.0 / (1.0 + np.exp(-np.clip(scores.margin, -500.0, 500.0)))


def _has_collapsed(seen: ItemScores, other: ItemScores) -> bool:
    """Whether a model gives next to no right answer where the other does."""
    mine, theirs = _chances(seen), _chances(other)
    told = np.isfinite(mine) & np.isfinite(theirs)
    return bool(mine[told].sum() < COLLAPSE * theirs[told].sum())
