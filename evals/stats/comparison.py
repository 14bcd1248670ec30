"""Models on the same items: how far apart they are, and how sure that is. Knows item scores.

What is compared is the objective itself: a combination of the tasks' scores. What it means task by
task is the matter of `paired.py`, how p-values are found that of `significance.py`. Legend:
C candidates, n items, t tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..scores.fingerprint import refuse_incomparable
from ..scores.scores import ItemScores
from .paired import DRAWS, Column, Combination, PairedTask, drawn_differences, paired_tasks
from .significance import (
    Floats,
    adjusted_wald,
    binomial_p,
    percentile,
    sign_flip_p,
    student_interval,
    wilcoxon_p,
)

__all__ = ["Column", "Combination", "Difference", "Differences"]
__all__ += ["paired_difference", "paired_differences"]
WILCOXON_BELOW = 12
"""Items below which continuous differences are ranked; `docs/experiments.md` has the sizes."""
_BLOCK = 2**22
"""Numbers (of 8 bytes) that the draws of a block of candidates may take."""


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models; positive: the first is better.

    ``value``, ``se``, ``low`` and ``high`` (a 95 % interval) are in the combination's unit, ``p``
    is two-sided, ``n`` counts the items. ``test`` says how p was found: ``mcnemar``,
    ``sign-flip``, ``normal``, ``wilcoxon``, ``bootstrap`` or ``sign``.
    """

    value: float
    se: float
    p: float
    n: int
    test: str
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, eq=False)
class Differences:
    """`Difference` of many models to one: arrays (C,); ``test`` names one test per model."""

    value: Floats
    se: Floats
    p: Floats
    n: NDArray[np.int64]
    test: list[str]
    low: Floats
    high: Floats

    def __len__(self) -> int:
        """Number of models."""
        return len(self.test)

    def __getitem__(self, c: int) -> Difference:
        """Difference of one model."""
        at = {name: float(getattr(self, name)[c]) for name in ("value", "se", "p", "low", "high")}
        return Difference(**at, n=int(self.n[c]), test=self.test[c])


def paired_difference(
    a: ItemScores,
    b: ItemScores,
    combination: Combination,
    *,
    column: Column = "value",
    seed: int = 0,
) -> Difference:
    """Compare two models on the same items: combination of a's scores minus that of b's.

    The standard error is that of the items' paired influence, stratified by task (delta method).
    How p and the interval are found:

    ========================================== ========================= =======================
    items                                      p                         interval
    ========================================== ========================= =======================
    differences -1, 0, 1, linear combination,  ``mcnemar`` (exact)       adjusted Wald
    equal steps
    the same, items weigh differently          ``sign-flip`` (exact), or the same
                                               ``normal`` when many
    continuous, linear, n < WILCOXON_BELOW     ``wilcoxon`` (exact       Student's t
                                               without ties)
    all other                                  ``bootstrap``             the same draws
    no standard error exists                   ``sign``                  ``value`` -+ 0, or nan
    ========================================== ========================= =======================

    The bootstrap draws items with replacement within each task, the same items for both models,
    and takes expanded percentiles. The signed-rank test asks for symmetry rather than for a mean of
    0, and the more items, the surer it is that skewed ones are not symmetric: it is kept for the
    few items of which no bootstrap can tell much.

    Args:
        a: Scores of the model in question.
        b: Scores of the model it is compared to; the same items.
        combination: What is compared.
        column: ``margin`` compares margins (nats) in place of values wherever a task has them and
            its metric is better when higher; other tasks keep their values. The combination
            enters by its slopes at the values, averaged over both models: exact for a mean, the
            trapezoid rule for others.
        seed: Of the bootstrap's draws; any integer that is not negative.

    Returns:
        See `Difference`.

    Raises:
        ValueError: If items, metrics, tasks or fingerprints differ, or a task that counts has no
            items.
    """
    return paired_differences([a], b, combination, column=column, seed=seed)[0]


def paired_differences(
    many: Sequence[ItemScores],
    incumbent: ItemScores,
    combination: Combination,
    *,
    column: Column = "value",
    seed: int = 0,
) -> Differences:
    """Compare many models with one, as a loop over `paired_difference` would, but at once.

    Args:
        many: At least one; all with the incumbent's items.
        incumbent: The model they are compared to.
        combination: As in `paired_difference`, and so are ``column`` and ``seed``.
        column: See there.
        seed: See there.
    """
    for scores in many:
        _refuse_unpaired(scores, incumbent)
    _refuse_empty(incumbent, combination)
    tasks, value = paired_tasks(many, incumbent, combination, column)
    exact = combination if column == "value" else None
    return _tested(tasks, value, exact, seed)


def _refuse_empty(scores: ItemScores, combination: Combination) -> None:
    for task in combination.tasks:
        if scores.rows(task).size == 0:
            raise ValueError(
                f"task '{task}' has no items to compare; leave it out of the objective"
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


def _tested(
    tasks: Sequence[PairedTask], value: Floats, exact: Combination | None, seed: int
) -> Differences:
    """p, test and interval of each candidate, by the law of `paired_difference`."""
    se = np.sqrt(np.sum([task.squared_error for task in tasks], axis=0))
    n = np.sum([task.counts * task.y.size for task in tasks], axis=0)
    is_binary = np.all([task.is_binary for task in tasks], axis=0)
    is_linear = np.all([task.is_linear for task in tasks], axis=0)
    is_open = ~is_binary & (se > 0)
    is_ranked = is_open & is_linear & (n < WILCOXON_BELOW)
    found = Differences(
        value, se, np.ones(value.size), n, ["sign"] * value.size, value + 0, value + 0
    )
    for which, test in (
        (is_binary, _binary),
        (is_ranked, _ranked),
        (is_open & ~is_ranked, partial(_bootstrap, exact=exact, seed=seed)),
        (~is_binary & ~is_open, _signs),
    ):
        if which.any():
            test(found, tasks, np.flatnonzero(which))
    return found


def _outcomes(tasks: Sequence[PairedTask]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items won and lost, each (t, C)."""
    wins, losses = (np.array([(s * task.d > 0).sum(axis=1) for task in tasks]) for s in (1, -1))
    return wins, losses


def _binary(found: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    wins, losses = _outcomes(tasks)
    n, steps = np.array([task.y.size for task in tasks]), np.array([task.steps for task in tasks])
    for c in rows:
        used = steps[:, c] > 0
        given = wins[used, c], losses[used, c]
        found.p[c], found.test[c] = sign_flip_p(*given, steps[used, c])
        found.low[c], found.high[c] = adjusted_wald(*given, n[used], steps[used, c])


def _ranked(found: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    found.p[rows] = wilcoxon_p(np.hstack([t.steps[rows, None] * t.d[rows] for t in tasks]))
    ends = student_interval(found.value[rows], found.se[rows], _freedom(found, tasks)[rows])
    found.low[rows], found.high[rows] = ends
    found.test[:] = _named(found.test, rows, "wilcoxon")


def _freedom(found: Differences, tasks: Sequence[PairedTask]) -> NDArray[np.int64]:
    """Items less the tasks that count (C,)."""
    return found.n - np.sum([task.counts for task in tasks], axis=0)


def _signs(found: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    wins, losses = (counts.sum(axis=0) for counts in _outcomes(tasks))
    found.p[rows] = binomial_p(wins, losses)[rows]
    found.low[rows] = found.high[rows] = (found.value + found.se)[rows]  # + 0, or nan


def _bootstrap(
    found: Differences,
    tasks: Sequence[PairedTask],
    rows: NDArray[np.int64],
    exact: Combination | None,
    seed: int,
) -> None:
    """Percentiles of draws, a block of candidates at a time."""
    size = max(_BLOCK // DRAWS, 1)
    freedom = _freedom(found, tasks)
    for block in (rows[i : i + size] for i in range(0, rows.size, size)):
        drawn = drawn_differences(tasks, exact, block, seed)
        ends = percentile(drawn, found.value[block], freedom[block])
        found.p[block], found.low[block], found.high[block] = ends
    found.test[:] = _named(found.test, rows, "bootstrap")


def _named(tests: list[str], rows: NDArray[np.int64], name: str) -> list[str]:
    chosen = set(rows.tolist())
    return [name if c in chosen else test for c, test in enumerate(tests)]
