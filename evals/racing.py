"""Racing: which items come first, who is stopped, and what a stopped candidate would have scored.

Pure: item scores in, decisions out; knows no model and no search. Legend: n items of a split,
K references, h strata (a task's items on which references disagree, and the rest).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .paired import Column, Combination, paired_tasks
from .scores import COLUMNS, ItemScores, score_and_slope
from .significance import Floats

ALPHA = 0.01
"""Share of candidates as good as the incumbent that one rung may stop."""
FEWEST = 20
"""Items below which nobody is stopped: a standard error of fewer says too little of skewed ones."""
RIDGE = 10.0
"""Items' worth of belief that a candidate is like the references' mean."""


@dataclass(frozen=True)
class Estimate:
    """Estimated score of a candidate on the whole split, in the combination's unit.

    Attributes:
        value: The combination of ``tasks``.
        se: Standard error of what the unseen items add; nan where nothing tells it.
        tasks: Estimated score per task.
    """

    value: float
    se: float
    tasks: Mapping[str, float]


def rung_ends(n_items: int, first: int = 50, factor: float = 2) -> list[int]:
    """How many items each rung has scored when it ends: first, first * factor, ..., n_items.

    Raises:
        ValueError: If a number is below 1, or ``factor`` not above 1.
    """
    if n_items < 1 or first < 1 or not factor > 1:
        raise ValueError(
            "rungs need `n_items` and `first` of at least 1 and `factor` above 1, got "
            f"{n_items}, {first}, {factor}"
        )
    ends, end = [], float(first)
    while round(end) < n_items:
        ends.append(round(end))
        end = max(end * factor, round(end) + 1)
    return [*ends, n_items]


def item_order(parents: Sequence[ItemScores], seed: int, rest: float = 0.25) -> NDArray[np.int64]:
    """Order in which all candidates of a study meet a split's items.

    Within a task, items on which parents disagree come first, shuffled; of every prefix a share
    ``rest`` is of the others, so that their level is known too. Tasks are interleaved: every prefix
    holds each task's share of it, to within one item per task.

    Args:
        parents: Scores of the same items; with fewer than two, the order is a stratified shuffle.
        seed: Of the shuffle.
        rest: In [0, 1); no more than the share that such items have in the task.

    Returns:
        Places (n,) in the scores' own order, ready for `Scorer.plan_rungs`.

    Raises:
        ValueError: If there are no parents, ``rest`` is out of range, or the items differ.
    """
    _refuse_unlike(parents)
    if not 0 <= rest < 1:
        raise ValueError(f"`rest` must be in [0, 1), got {rest}")
    rng, differs = np.random.default_rng(seed), disagreement(parents)
    keys = np.zeros(differs.size)
    for task in range(len(parents[0].tasks)):
        mine = parents[0].task_index == task
        first = rng.permutation(np.flatnonzero(mine & differs))
        later = rng.permutation(np.flatnonzero(mine & ~differs))
        rows = _interleaved(first, later, rest)
        keys[rows] = (np.arange(rows.size) + 0.5) / max(rows.size, 1)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _interleaved(
    first: NDArray[np.int64], later: NDArray[np.int64], rest: float
) -> NDArray[np.int64]:
    """Both, a share ``rest`` of every prefix from ``later`` until one is used up."""
    share = min(rest, later.size / max(first.size + later.size, 1))
    if share in (0.0, 1.0):
        return np.concatenate([first, later])
    keys = [(np.arange(a.size) + 0.5) / s for a, s in ((first, 1 - share), (later, share))]
    return np.concatenate([first, later])[np.argsort(np.concatenate(keys), kind="stable")]


def disagreement(references: Sequence[ItemScores]) -> NDArray[np.bool_]:
    """Items (n,) whose value is not the same in all references."""
    return np.ptp(np.stack([scores.value for scores in references]), axis=0) > 0


def should_stop(
    candidate: ItemScores,
    incumbent: ItemScores,
    combination: Combination,
    *,
    alpha: float = ALPHA,
    column: Column = "margin",
) -> bool:
    """Whether a candidate is shown to be worse than the incumbent on the items seen so far.

    A one-sided Student test of the combination's paired difference, stratified by task. Ranks are
    not used: where a candidate gains much on few items and loses little on many, they stop the
    better one (`docs/experiments.md`). ``alpha`` is per rung: of candidates exactly as good as the
    incumbent, R rungs stop at most R * alpha; of better ones fewer.

    Args:
        candidate: Cumulative scores of a rung, as `Scorer.rungs` yields them.
        incumbent: Scores of at least these items.
        combination: What is compared.
        alpha: In (0, 1).
        column: As in `paired_difference`.

    Returns:
        False also where a task has no item yet, items are fewer than `FEWEST`, or nothing differs.

    Raises:
        ValueError: If ``alpha`` is out of range or the incumbent lacks an item.
    """
    from scipy.stats import t

    if not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be in (0, 1), got {alpha}")
    theirs = on_items_of(incumbent, candidate)
    sizes = [candidate.rows(task).size for task in combination.tasks]
    if min(sizes) < 2 or sum(sizes) < FEWEST:
        return False
    tasks, value = paired_tasks([candidate], theirs, combination, column)
    se = math.sqrt(sum(float(task.squared_error[0]) for task in tasks))
    if not se > 0:
        return False
    return bool(t.cdf(value[0] / se, sum(sizes) - len(sizes)) < alpha)


def on_items_of(scores: ItemScores, seen: ItemScores) -> ItemScores:
    """The part of ``scores`` that has the items of ``seen``.

    Raises:
        ValueError: If one is missing.
    """
    rows = _places(scores, seen)
    return replace(scores, **{name: getattr(scores, name)[rows] for name in COLUMNS})


def _places(scores: ItemScores, seen: ItemScores) -> NDArray[np.int64]:
    """Where the items of ``seen`` stand in ``scores``."""
    keys, wanted = (s.task_index * np.int64(2**40) + s.doc_id for s in (scores, seen))
    missing = int((~np.isin(wanted, keys)).sum())
    if missing or scores.tasks != seen.tasks:
        raise ValueError(
            f"a race needs the candidate's items in every score it is held against, got {missing} "
            f"of {seen.n} missing, tasks {seen.tasks} and {scores.tasks}; score the whole split"
        )
    return np.flatnonzero(np.isin(keys, wanted))


def shrunken_estimate(
    seen: ItemScores, references: Sequence[ItemScores], combination: Combination
) -> Estimate:
    """Score that a stopped candidate would have had on the whole split.

    Per task, the candidate's item values are regressed on the references' (ridge towards the
    references' mean), the fit is averaged over all items, and the mean residual of each stratum is
    added with that stratum's share of the split: what came early because parents disagree weighs no
    more than it should. A stratum without an item yet keeps the fit. Bounded by the values that
    occur.

    Args:
        seen: Cumulative scores of the candidate's last rung.
        references: Whole-split scores, such as the parents'; the strata are theirs.
        combination: What is estimated.

    Raises:
        ValueError: If references are missing, differ in their items or lack an item of ``seen``.

    Source:
        Generalised regression estimator: Saerndal, Swensson, Wretman, Model Assisted Survey
        Sampling (1992), sec. 6.4.
    """
    _refuse_unlike(references)
    places, differs = _places(references[0], seen), disagreement(references)
    values, errors = {}, {}
    for task in combination.tasks:
        rows = references[0].rows(task)
        at = np.flatnonzero(np.isin(rows, places))
        x = np.stack([scores.value[rows] for scores in references])
        mean, variance = _extrapolated(x, at, seen.value[seen.rows(task)], differs[rows])
        scale = rows.size / float(references[0].weight[rows].sum())
        aggregation = references[0].aggregations[references[0].tasks.index(task)]
        values[task], slope = score_and_slope(mean * scale, aggregation)
        errors[task] = slope * scale * math.sqrt(variance)
    slopes = combination.gradient(values)
    se = math.sqrt(sum((slopes.get(task, 0.0) * error) ** 2 for task, error in errors.items()))
    return Estimate(combination.value(values), se, values)


def _extrapolated(
    x: Floats, at: NDArray[np.int64], y: Floats, differs: NDArray[np.bool_]
) -> tuple[float, float]:
    """Mean over a task's n items and its variance, from y at the places ``at``; x is (K, n)."""
    fit = _fit(x, at, y)
    residual = y - fit[at]
    total, variance = float(fit.mean()), 0.0
    prior = float(np.mean((x - x.mean(axis=0)) ** 2))
    pooled = float(residual.var(ddof=1)) if y.size > 1 else prior
    for stratum in (differs, ~differs):
        n, mine = int(stratum.sum()), residual[stratum[at]]
        share = n / stratum.size
        if mine.size == 0:
            variance += share**2 * pooled
            continue
        total += share * float(mine.mean())
        own = float(mine.var(ddof=1)) if mine.size > 1 else 0.0
        spread = (own * (mine.size - 1) + pooled) / mine.size  # one item's worth of the pooled
        variance += share**2 * (1 - mine.size / n) * spread / mine.size
    values = np.concatenate([x.ravel(), y])
    return float(np.clip(total, values.min(), values.max())), variance


def _fit(x: Floats, at: NDArray[np.int64], y: Floats) -> Floats:
    """Values of all items (n,) as a mixture of the references (K, n); weights sum to 1."""
    centre = x.mean(axis=0)
    away = x - centre
    some = away[:, at]
    unit = RIDGE * max(float(np.mean(away**2)), 1e-12)
    weights = np.linalg.solve(some @ some.T + unit * np.eye(len(x)), some @ (y - centre[at]))
    return centre + weights @ away


def _refuse_unlike(references: Sequence[ItemScores]) -> None:
    if not references:
        raise ValueError("racing needs whole-split scores of at least one parent, got none")
    for scores in references[1:]:
        first = references[0]
        if scores.tasks != first.tasks or not np.array_equal(scores.doc_id, first.doc_id):
            raise ValueError(
                f"parents must be scored on the same items, got {first.n} and {scores.n} that do "
                "not match; score them on one split of one study"
            )
