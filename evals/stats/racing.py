"""Racing: order of the items, early stopping of candidates, and estimates of their scores.

All candidates of a study are scored on the items in one order, rung after rung. Pure: item scores
in, decisions out. Knows no model and no study.

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
"""Items of the first rung: in simulations, rungs of 50 stopped no candidate that was better."""
PROBE = 8
"""Items of the probe, a rung before the first: it stops candidates that collapsed or give NaN."""
COLLAPSE = 0.25
"""A candidate has collapsed if its right answers have less than this share of the incumbent's
probability on the probe."""
PROBE_Z = 3.1
"""Standard errors that a collapse must also reach (one-sided p = 0.001): 8 items say little."""
STRATA = ((0.1, 0.45), (0.2, 0.30), (0.7, 0.25))
"""Strata of a task's items, most contested first: share of the task, and of each rung while they
last. Items on which good models agree separate candidates least, so a sample of them is enough
(Neyman, JRSS 97 (1934), pp. 558-625: strata are sampled by their variance)."""


def rung_ends(n: int, first: int = FIRST) -> tuple[int, ...]:
    """Return the number of items scored when each rung ends: the probe, then doubling up to n.

    A last rung less than half as long as the one before is merged into it. There is no probe if it
    would be the only other rung, or if the first rung is shorter than two probes.

    Args:
        n: Number of items, at least 1.
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
    """Return the places of all items in the order of a study, most informative items first.

    Within a task, each stratum is shuffled and the strata are mixed by their shares of a rung;
    tasks are interleaved so that each rung has the task's share.

    Args:
        references: Scores of the best models known beforehand, each on all items.
        seed: Seed of the shuffle.
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
    """Return the stratum of each item (n,): 0 for the most contested of its task."""
    first = references[0]
    strata = np.empty(first.n, dtype=np.int64)
    bounds = np.cumsum([share for share, _ in STRATA])[:-1]
    for task in first.tasks:
        rows = first.rows(task)
        strata[rows] = np.digitize(_ranks(-_contest(references, rows)), bounds)
    return strata


def _contest(references: Sequence[ItemScores], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how much good models may differ on each item of a task (n,).

    For right and wrong with margins: how close an item's margins rank to the rank where the best
    model turns from right to wrong, in any unit of margins. Else the deviation of its values.
    """
    values = np.stack([scores.value[rows] for scores in references])
    margins = np.stack([scores.margin[rows] for scores in references])
    if not np.isfinite(margins).all() or not np.isin(values, (0.0, 1.0)).all():
        return values.std(axis=0)
    ranks = _ranks(margins.ravel()).reshape(margins.shape)
    return -np.abs(ranks - (1.0 - values.mean(axis=1).max())).mean(axis=0)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks of values divided by their number, in (0, 1); ties keep their order."""
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return (places + 0.5) / max(values.size, 1)


def _interleaved(strata: NDArray[np.int64], chance: np.random.Generator) -> NDArray[np.int64]:
    """Return indices (n,): each stratum shuffled, mixed by the shares of a rung while it lasts."""
    kinds = [chance.permutation(np.flatnonzero(strata == h)) for h in range(len(STRATA))]
    steps = [
        (np.arange(kind.size) + 0.5) / share for kind, (_, share) in zip(kinds, STRATA, strict=True)
    ]
    return np.concatenate(kinds)[np.argsort(np.concatenate(steps), kind="stable")]


@dataclass(frozen=True)
class Race:
    """Racing rules of a study.

    Attributes:
        references: Scores on all items of the models that define the order of items.
        criteria: Combinations that are compared; a candidate has lost if it is worse by each.
        alpha: One-sided level of each test.
        terms: Terms of the criteria.
    """

    references: tuple[ItemScores, ...]
    criteria: tuple[Combination, ...]
    alpha: float
    terms: tuple[Term, ...]

    @cached_property
    def strata(self) -> NDArray[np.int64]:
        """Stratum of each item, in the order of the references (n,)."""
        return strata_of(self.references)

    def is_lost(self, seen: ItemScores, incumbent: ItemScores) -> bool:
        """Tell whether a candidate is worse than the incumbent on the items scored so far.

        A paired, stratified z-test of the difference on all search items, for each criterion; its
        terms are weighted by its gradient at the incumbent's scores. On the probe, a candidate has
        lost if it has collapsed.

        Args:
            seen: Scores of the candidate so far.
            incumbent: Scores of the best candidate so far, on all items.
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
        """Estimate the scores of a stopped candidate on all items, per term.

        Control variate: the incumbent's score on all items, plus the candidate's difference from it
        on the items that both were scored on, each stratum weighted by its share of all items. A
        candidate that has lost stays below the incumbent that beat it.

        Args:
            seen: Scores of the candidate so far.
            incumbent: Scores of the best candidate so far, on all items.
            terms: Terms to estimate.

        Returns:
            Term -> estimate; its standard error is that of the difference on all search items.
        """
        other = as_terms(restricted(incumbent, seen), terms)
        mine, best = as_terms(seen, terms), as_terms(incumbent, terms)
        estimates = {}
        for term in terms:
            d = _differences(mine, other, term.name)
            distance, variance = self._distance(seen, term.task, d)
            value = best.task_score(term.name).value + distance
            estimates[term.name] = TaskScore(value, math.sqrt(variance), d.size)
        return estimates

    def _distance(self, seen: ItemScores, task: str, d: NDArray[np.float64]) -> tuple[float, float]:
        """Estimate the mean of a task's differences over all its items, and its variance.

        Strata without scored items are assumed to be like the rest. A stratum that is fully scored
        has no error left (Cochran, Sampling Techniques, 3rd ed., Eq. 5.7).
        """
        if d.size < 2:
            return float(d.sum()), 0.0
        every, n_strata = self.references[0], len(STRATA)
        mine = self.strata[_places(seen, every)[seen.rows(task)]]  # stratum of each difference
        n_all = np.bincount(self.strata[every.rows(task)], minlength=n_strata)
        n = np.bincount(mine, minlength=n_strata)
        is_seen = n > 0
        share = np.where(is_seen, n_all, 0) / n_all[is_seen].sum()
        mean = np.bincount(mine, d, minlength=n_strata) / np.maximum(n, 1)
        squares = np.bincount(mine, (d - mean[mine]) ** 2, minlength=n_strata)
        variance = np.where(n > 1, squares / np.maximum(n - 1, 1), d.var(ddof=1))
        error = variance / np.maximum(n, 1) * (1.0 - n / np.maximum(n_all, 1))
        return float((share * mean).sum()), float((share**2 * error).sum())


def _p_worse(distances: Mapping[str, tuple[float, float]], slopes: Mapping[str, float]) -> float:
    """Return one-sided p that a model is not worse, from each term's distance and variance."""
    parts = [(slope, *distances[term]) for term, slope in slopes.items() if term in distances]
    total = sum(slope * distance for slope, distance, _ in parts)
    variance = sum(slope**2 * error for slope, _, error in parts)
    if variance <= 0:
        return 0.0 if total < 0 else 1.0
    return 0.5 * math.erfc(-total / math.sqrt(2 * variance))


def restricted(scores: ItemScores, seen: ItemScores) -> ItemScores:
    """Return the scores on the items of ``seen``, of a model that was scored on all of them."""
    return scores.subset(_places(seen, scores))


def _places(seen: ItemScores, every: ItemScores) -> NDArray[np.int64]:
    """Return the place of each item of ``seen`` in ``every`` (n,)."""
    return np.searchsorted(every.keys, seen.keys)


def _differences(seen: ItemScores, other: ItemScores, task: str) -> NDArray[np.float64]:
    """Return paired differences of a task (n,), whose mean estimates the difference of scores."""
    rows, at = seen.rows(task), seen.tasks.index(task)
    if rows.size == 0:
        return np.empty(0)
    if seen.aggregations[at] != MEAN:
        score = seen.task_score(task).value - other.task_score(task).value
        return score + rows.size * (seen.influence(task) - other.influence(task))
    return seen.value[rows] - other.value[rows]


def _probabilities(scores: ItemScores) -> NDArray[np.float64]:
    """Return the probability of each right answer against the best other (n,); nan if none."""
    return 1.0 / (1.0 + np.exp(-np.clip(scores.margin, -500.0, 500.0)))


def _has_collapsed(seen: ItemScores, other: ItemScores) -> bool:
    """Tell whether right answers have become much less probable than those of the other model."""
    mine, theirs = _probabilities(seen), _probabilities(other)
    is_usable = np.isfinite(mine) & np.isfinite(theirs)
    d = (mine - theirs)[is_usable]
    if d.size < 2 or mine[is_usable].sum() >= COLLAPSE * theirs[is_usable].sum():
        return False
    return bool(d.mean() < -PROBE_Z * d.std(ddof=1) / math.sqrt(d.size))
