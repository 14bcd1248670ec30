"""Two models on the same items: how far apart they are, and how sure that is. Knows item scores.

What is compared is the objective itself: a combination of the tasks' scores, given by its value and
its gradient. Legend: n items, t tasks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .fingerprint import refuse_incomparable
from .scores import MEAN, ItemScores, spread

EXACT_BELOW = 60
"""Items answered differently up to which unequal weights are tested exactly; above it the normal
approximation is within 0.002 of the exact p-value near 0.05."""
STATES = 1_000_000
"""Largest number of sums that the exact test keeps in memory."""


class Combination(Protocol):
    """How the tasks' scores make one number; higher is better."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that count."""
        ...

    def value(self, values: Mapping[str, float]) -> float:
        """Combine one score per task."""
        ...

    def gradient(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Derivative of `value` by each score; 0 for a task that is absent."""
        ...


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models; positive: the first is better.

    ``value`` and ``se`` are in the combination's unit, ``p`` is two-sided, ``n`` counts the items.
    ``test`` says how p was found: ``mcnemar``, ``sign-flip``, ``normal`` or ``sign``.
    """

    value: float
    se: float
    p: float
    n: int
    test: str


@dataclass(frozen=True)
class _Stratum:
    """One task of a comparison.

    ``moves`` (n,) is each item's influence on the difference of the combinations, ``d`` (n,) the
    difference of the item's values, turned so that positive is better; ``step`` is what a
    difference of 1 on one item moves the combination by.
    """

    moves: NDArray[np.float64]
    d: NDArray[np.float64]
    step: float
    is_binary: bool


def paired_difference(a: ItemScores, b: ItemScores, combination: Combination) -> Difference:
    """Compare two models on the same items: combination of a's scores minus that of b's.

    The standard error is that of the items' paired influence, stratified by task (delta method).
    The p-value is exact where every item's difference is -1, 0 or 1 and the combination is linear:
    McNemar's test, or the sign-flip test where items weigh differently and those answered
    differently are few. Elsewhere it is the normal approximation, and the sign test where no
    standard error exists.

    Args:
        a: Scores of the model in question.
        b: Scores of the model it is compared to; the same items.
        combination: What is compared.

    Returns:
        See `Difference`.

    Raises:
        ValueError: If items, metrics, tasks or fingerprints differ, or a task that counts has no
            items.
    """
    _refuse_unpaired(a, b)
    values_a, values_b = _values(a, combination), _values(b, combination)
    slopes_a, slopes_b = combination.gradient(values_a), combination.gradient(values_b)
    strata = [
        _stratum(a, b, task, slopes_a.get(task, 0.0), slopes_b.get(task, 0.0))
        for task in combination.tasks
        if task in slopes_a or task in slopes_b
    ]
    value = combination.value(values_a) - combination.value(values_b)
    se = math.sqrt(sum(spread(stratum.moves) ** 2 for stratum in strata))
    p, test = _p_value(strata, value, se)
    return Difference(value, se, p, sum(stratum.d.size for stratum in strata), test)


def _values(scores: ItemScores, combination: Combination) -> dict[str, float]:
    for task in combination.tasks:
        if scores.rows(task).size == 0:
            raise ValueError(
                f"task '{task}' has no items to compare; leave it out of the objective"
            )
    return {task: scores.task_score(task).value for task in combination.tasks}


def _stratum(a: ItemScores, b: ItemScores, task: str, slope_a: float, slope_b: float) -> _Stratum:
    rows = a.rows(task)
    d = (a.value[rows] - b.value[rows]) * math.copysign(1.0, slope_a)
    is_mean = a.aggregations[a.tasks.index(task)] == MEAN
    return _Stratum(
        moves=slope_a * a.influence(task) - slope_b * b.influence(task),
        d=d,
        step=abs(slope_a) / rows.size,
        is_binary=is_mean and slope_a == slope_b and bool(np.isin(d, (-1.0, 0.0, 1.0)).all()),
    )


def _refuse_unpaired(a: ItemScores, b: ItemScores) -> None:
    """Raise ValueError unless both hold the same items, scored the same way."""
    for name in ("tasks", "metrics", "aggregations", "higher_is_better"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(
                f"paired scores need equal {name}, got {getattr(a, name)} and {getattr(b, name)}"
            )
    same = a.n == b.n and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("task_index", "doc_id", "weight")
    )
    if not same:
        raise ValueError(
            f"paired scores need the same items, got {a.n} and {b.n} items that do not match; "
            "score both models on one split of one study"
        )
    refuse_incomparable(a.fingerprint, b.fingerprint, "paired scores")


def _p_value(strata: list[_Stratum], value: float, se: float) -> tuple[float, str]:
    """Two-sided p and the test that gave it."""
    wins = np.array([int((s.d > 0).sum()) for s in strata])
    losses = np.array([int((s.d < 0).sum()) for s in strata])
    if all(stratum.is_binary for stratum in strata):
        return _sign_flip(wins, losses, np.array([stratum.step for stratum in strata]))
    if not se > 0:
        return _binomial(int(wins.sum()), int(losses.sum())), "sign"
    return _normal(value / se), "normal"


def _sign_flip(
    wins: NDArray[np.int64], losses: NDArray[np.int64], steps: NDArray[np.float64]
) -> tuple[float, str]:
    """Test that wins and losses (t,), each worth its task's step (t,), are equally likely."""
    discordant = wins + losses
    used = steps[discordant > 0]
    if used.size == 0 or np.allclose(used, used[0], rtol=1e-9):
        return _binomial(int(wins.sum()), int(losses.sum())), "mcnemar"
    observed = float((steps * (wins - losses)).sum())
    if discordant.sum() <= EXACT_BELOW and np.prod(discordant + 1.0) <= STATES:
        return _exact_sign_flip(observed, discordant, steps), "sign-flip"
    return _normal(observed / math.sqrt(float((steps**2 * discordant).sum()))), "normal"


def _exact_sign_flip(
    observed: float, discordant: NDArray[np.int64], steps: NDArray[np.float64]
) -> float:
    """Share of all sign assignments whose sum is at least as far from 0 as ``observed``."""
    from scipy.stats import binom

    sums, chances = np.zeros(1), np.ones(1)
    for m, step in zip(discordant, steps, strict=True):
        k = np.arange(m + 1)
        sums = np.add.outer(sums, step * (2 * k - m)).ravel()
        chances = np.multiply.outer(chances, binom.pmf(k, m, 0.5)).ravel()
    far = np.abs(sums) >= abs(observed) * (1 - 1e-9)
    return min(float(chances[far].sum()), 1.0)


def _binomial(wins: int, losses: int) -> float:
    """Exact two-sided sign test of wins against losses (McNemar's, when items are 0/1)."""
    from scipy.stats import binomtest  # costs 0.3 s: only who compares pays for it

    return 1.0 if wins + losses == 0 else float(binomtest(wins, wins + losses, 0.5).pvalue)


def _normal(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))
