"""Racing: which items come first, when a candidate has lost, and what its score would have been.

All candidates of a study meet the items in one order, rung after rung. Pure: item scores in,
decisions out. Knows no model and no study.

Legend: n items of a task, P references (the better baselines), h strata.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..scores.scores import MEAN, ItemScores, TaskScore
from ..scores.terms import Term, as_terms
from .comparison import Combination

FIRST = 50
"""Items of the first rung: in simulations blocks of 50 lost no candidate that was better."""
PROBE = 8
"""Items of the rung before the first: they end a candidate that has collapsed, or gives NaN."""
COLLAPSE = 0.25
"""A candidate has collapsed whose right answers are less likely, on the probe, than this share of
how likely the incumbent's are."""
PROBE_Z = 3.1
"""Standard errors that a collapse must reach besides (one-sided p = 0.001): 8 items say little."""
STRATA = ((0.1, 0.45), (0.2, 0.30), (0.7, 0.25))
"""Of a task's items, the most contested first: their share of the task, and of each rung while
there are such. What good models agree on tells candidates apart least, so a sample of it is enough
(Neyman, JRSS 97 (1934), pp. 558-625: strata are sampled by what varies within them)."""


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
    """Places of all items in the order of a study: what tells good models apart first.

    Within a task, each stratum is shuffled and they are mixed by their shares of a rung; tasks are
    interleaved so that each rung holds their shares.

    Args:
        references: Scores on all items, aligned, of models as good as are known beforehand.
        seed: Of the shuffle.
    """
    first, strata = references[0], strata_of(references)
    chance = np.random.default_rng(seed)
    position = np.empty(first.n)  # of each item in its task, in (0, 1)
    for task in first.tasks:
        rows = first.rows(task)
        rank = np.empty(rows.size)
        rank[_interleaved(strata[rows], chance)] = np.arange(rows.size)
        position[rows] = (rank + 0.5) / max(rows.size, 1)
    return np.lexsort((first.task_index, position)).tolist()


def strata_of(references: Sequence[ItemScores]) -> NDArray[np.int64]:
    """Stratum of each item (n,): 0 for the most contested of its task."""
    first = references[0]
    strata = np.empty(first.n, dtype=np.int64)
    bounds = np.cumsum([share for share, _ in STRATA])[:-1]
    for task in first.tasks:
        rows = first.rows(task)
        strata[rows] = np.digitize(_ranks(-_contest(references, rows)), bounds)
    return strata


def _contest(references: Sequence[ItemScores], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much the answers to a task's items (n,) may differ between good models.

    Of right and wrong with margins: how near an item's margins rank to the place where right turns
    into wrong for the best of them, whatever the unit of the margins. Else how its values vary.
    """
    values = np.stack([scores.value[rows] for scores in references])
    margins = np.stack([scores.margin[rows] for scores in references])
    if not np.isfinite(margins).all() or not np.isin(values, (0.0, 1.0)).all():
        return values.std(axis=0)
    ranks = _ranks(margins.ravel()).reshape(margins.shape)
    return -np.abs(ranks - (1.0 - values.mean(axis=1).max())).mean(axis=0)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of values as shares of their number, in (0, 1); equal ones in their order."""
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return (places + 0.5) / max(values.size, 1)


def _interleaved(strata: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.int64]:
    """Indices (n,): each stratum shuffled, mixed by their shares of a rung while they last."""
    kinds = [chance.permutation(np.flatnonzero(strata == h)) for h in range(len(STRATA))]
    steps = [
        (np.arange(kind.size) + 0.5) / share for kind, (_, share) in zip(kinds, STRATA, strict=True)
    ]
    return np.concatenate(kinds)[np.argsort(np.concatenate(steps), kind="stable")]


@dataclass(frozen=True)
class Race:
    """What a study's candidates are raced by.

    Attributes:
        references: Scores on all items of the models that the order of items comes from.
        criteria: What is compared: a candidate has lost that is worse by each of them.
        alpha: One-sided level of each test.
        terms: What the criteria look at.
    """

    references: tuple[ItemScores, ...]
    criteria: tuple[Combination, ...]
    alpha: float
    terms: tuple[Term, ...]

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Stratum of each item, as the references are ordered (n,)."""
        return strata_of(self.references)

    def is_lost(self, seen: ItemScores, incumbent: ItemScores) -> bool:
        """Whether a candidate is worse than the incumbent by the items that it has met.

        What the objective counts is compared, on the same items, and the tasks are weighed as a
        criterion weighs them at the incumbent's scores. The test is a paired z-test of what the
        difference on all search items will be, by strata. On the probe a candidate has lost that
        has collapsed.

        Args:
            seen: The candidate's scores so far.
            incumbent: Scores of the best so far, on all items.
        """
        other = restricted(incumbent, seen)
        if seen.n <= PROBE:
            return _has_collapsed(seen, other)
        best = as_terms(incumbent, self.terms)
        scores = {term: best.task_score(term).value for term in best.tasks}
        mine, theirs = as_terms(seen, self.terms), as_terms(other, self.terms)
        distances = {}
        for term in self.terms:
            d = _differences(mine, theirs, term.name)
            if d.size > 1:
                distances[term.name] = self._distance(seen, term.task, d)
        slopes = (criterion.gradient(scores) for criterion in self.criteria)
        return all(_p_worse(distances, slope) < self.alpha for slope in slopes)

    def estimates(
        self, seen: ItemScores, incumbent: ItemScores, terms: Sequence[Term]
    ) -> dict[str, TaskScore]:
        """What a stopped candidate's terms would have scored on all items.

        Control variate: the incumbent's score on all items, plus how far the candidate is from it
        on the items that both have met, each stratum weighed by its share of all items. A candidate
        that has lost stays below who has beaten it.

        Args:
            seen: The candidate's scores so far.
            incumbent: Scores of the best so far, on all items.
            terms: What is asked for.

        Returns:
            By term; standard errors are those of the distance on all search items.
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
        """Mean of a task's differences over all its items, told from those seen, and its variance.

        Strata of which nothing was seen are taken to be like the rest. A stratum that was seen
        whole has no error left (Cochran, Sampling Techniques, 3rd ed., Eq. 5.7).
        """
        whole = self.references[0]
        all_of = np.bincount(self.strata[whole.rows(task)], minlength=len(STRATA))
        mine = self.strata[_places(seen, whole)[seen.rows(task)]]
        n = np.bincount(mine, minlength=len(STRATA))
        met = n > 0
        if d.size < 2:
            return float(d.sum()), 0.0
        share = np.where(met, all_of, 0) / all_of[met].sum()
        total = np.bincount(mine, d, minlength=len(STRATA)) / np.maximum(n, 1)
        spread = np.bincount(mine, (d - total[mine]) ** 2, minlength=len(STRATA))
        variance = np.where(n > 1, spread / np.maximum(n - 1, 1), d.var(ddof=1))
        error = variance / np.maximum(n, 1) * (1.0 - n / np.maximum(all_of, 1))
        return float((share * total).sum()), float((share**2 * error).sum())


def _p_worse(distances: Mapping[str, tuple[float, float]], slopes: Mapping[str, float]) -> float:
    """One-sided p that a model is no worse than another, from each term's distance and variance."""
    known = [(slope, *distances[term]) for term, slope in slopes.items() if term in distances]
    total = sum(slope * distance for slope, distance, _ in known)
    variance = sum(slope**2 * error for slope, _, error in known)
    if variance <= 0:
        return 0.0 if total < 0 else 1.0
    return 0.5 * math.erfc(-total / math.sqrt(2 * variance))


def restricted(scores: ItemScores, seen: ItemScores) -> ItemScores:
    """The same items as those of ``seen``, of a model that was scored on all of them."""
    return scores.subset(_places(seen, scores))


def _places(seen: ItemScores, whole: ItemScores) -> NDArray[np.int64]:
    """Where each item of ``seen`` stands in ``whole`` (n,)."""
    return np.searchsorted(whole.keys, seen.keys)


def _differences(seen: ItemScores, other: ItemScores, task: str) -> NDArray[np.float64]:
    """Paired differences of a task (n,), whose mean estimates that of the two scores."""
    rows, at = seen.rows(task), seen.tasks.index(task)
    if rows.size == 0:
        return np.empty(0)
    if seen.aggregations[at] != MEAN:
        score = seen.task_score(task).value - other.task_score(task).value
        return score + rows.size * (seen.influence(task) - other.influence(task))
    return seen.value[rows] - other.value[rows]


def _chances(scores: ItemScores) -> NDArray[np.float64]:
    """How likely each right answer is against its best rival (n,); nan where there is none."""
    return 1.0 / (1.0 + np.exp(-np.clip(scores.margin, -500.0, 500.0)))


def _has_collapsed(seen: ItemScores, other: ItemScores) -> bool:
    """Whether a model gives next to no right answer where the other does."""
    mine, theirs = _chances(seen), _chances(other)
    told = np.isfinite(mine) & np.isfinite(theirs)
    d = (mine - theirs)[told]
    if d.size < 2 or mine[told].sum() >= COLLAPSE * theirs[told].sum():
        return False
    return bool(d.mean() < -PROBE_Z * d.std(ddof=1) / math.sqrt(d.size))
