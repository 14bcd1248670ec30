"""Paired differences of models on the same items: estimate, test and interval. Knows item scores.

Compared is the objective itself, a combination of the tasks' scores. `paired.py` knows what it
means task by task; `significance.py` computes p-values and intervals. Legend: C candidates,
n items, t tasks.
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

WILCOXON_BELOW = 12
"""Number of items below which continuous differences are ranked; see `docs/experiments.md`."""
_BLOCK = 2**22
"""Most numbers (of 8 bytes) that the draws of a block of candidates take."""


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models; positive if the first is better.

    ``value``, ``se``, ``low`` and ``high`` (a 95 % interval) are in the combination's unit, ``p``
    is two-sided, ``n`` is the number of items. ``test`` names the test that gave p: ``mcnemar``,
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
    """`Difference` of many models from one: arrays (C,); ``test`` names one test per model."""

    value: Floats
    se: Floats
    p: Floats
    n: NDArray[np.int64]
    test: list[str]
    low: Floats
    high: Floats

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.test)

    def __getitem__(self, c: int) -> Difference:
        """Return the difference of one model."""
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
    """Compare two models on the same items: combination of a's scores minus combination of b's.

    The standard error comes from the items' paired influence, stratified by task (delta method).
    The test and the interval depend on the items:

    ========================================== ========================= =======================
    items                                      p                         interval
    ========================================== ========================= =======================
    differences -1, 0, 1, linear combination,  ``mcnemar`` (exact)       adjusted Wald
    equal steps
    the same, steps that differ                ``sign-flip`` (exact), or the same
                                               ``normal`` when many
    continuous, linear, n < WILCOXON_BELOW     ``wilcoxon`` (exact       Student's t
                                               without ties)
    all other                                  ``bootstrap``             the same draws
    no standard error exists                   ``sign``                  ``value`` -+ 0, or nan
    ========================================== ========================= =======================

    The bootstrap draws items with replacement within each task, the same items for both models,
    and takes expanded percentiles. The signed-rank test is about symmetry rather than a mean of 0,
    and with many items it rejects skewed differences whose mean is 0; so it is used only for few
    items, for which a bootstrap says little.

    Args:
        a: Scores of the first model.
        b: Scores of the second model on the same items.
        combination: Combination of the tasks' scores to compare.
        column: ``margin`` compares margins (nats) instead of values for tasks that have them and
            whose metric is better if higher; other tasks keep their values. The combination
            enters by its slopes at the values, averaged over both models: exact for a mean, the
            trapezoid rule for others.
        seed: Seed of the bootstrap, at least 0.

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
    """Compare many models with one: the results of `paired_difference`, computed together.

    Args:
        many: Scores of at least one model, all on the incumbent's items.
        incumbent: Scores of the model they are compared with.
        combination: As for `paired_difference`.
        column: As for `paired_difference`.
        seed: As for `paired_difference`.
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
    """Choose and run the test of each candidate by the table of `paired_difference`."""
    se = np.sqrt(np.sum([task.squared_error for task in tasks], axis=0))
    n = np.sum([task.counts * task.y.size for task in tasks], axis=0)
    is_binary = np.all([task.is_binary for task in tasks], axis=0)
    is_linear = np.all([task.is_linear for task in tasks], axis=0)
    is_open = ~is_binary & (se > 0)
    is_ranked = is_open & is_linear & (n < WILCOXON_BELOW)
    differences = Differences(
        value, se, np.ones(value.size), n, ["sign"] * value.size, value + 0, value + 0
    )
    for which, test in (
        (is_binary, _binary),
        (is_ranked, _ranked),
        (is_open & ~is_ranked, partial(_bootstrap, exact=exact, seed=seed)),
        (~is_binary & ~is_open, _signs),
    ):
        if which.any():
            test(differences, tasks, np.flatnonzero(which))
    return differences


def _outcomes(tasks: Sequence[PairedTask]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of items won and lost, each (t, C)."""
    wins, losses = (np.array([(s * task.d > 0).sum(axis=1) for task in tasks]) for s in (1, -1))
    return wins, losses


def _binary(out: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    wins, losses = _outcomes(tasks)
    n, steps = np.array([task.y.size for task in tasks]), np.array([task.steps for task in tasks])
    for c in rows:
        used = steps[:, c] > 0
        won, lost, step = wins[used, c], losses[used, c], steps[used, c]
        out.p[c], out.test[c] = sign_flip_p(won, lost, step)
        out.low[c], out.high[c] = adjusted_wald(won, lost, n[used], step)


def _ranked(out: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    out.p[rows] = wilcoxon_p(np.hstack([t.steps[rows, None] * t.d[rows] for t in tasks]))
    ends = student_interval(out.value[rows], out.se[rows], _freedom(out, tasks)[rows])
    out.low[rows], out.high[rows] = ends
    out.test[:] = _named(out.test, rows, "wilcoxon")


def _freedom(out: Differences, tasks: Sequence[PairedTask]) -> NDArray[np.int64]:
    """Return the degrees of freedom: items minus tasks that count (C,)."""
    return out.n - np.sum([task.counts for task in tasks], axis=0)


def _signs(out: Differences, tasks: Sequence[PairedTask], rows: NDArray[np.int64]) -> None:
    wins, losses = (counts.sum(axis=0) for counts in _outcomes(tasks))
    out.p[rows] = binomial_p(wins, losses)[rows]
    out.low[rows] = out.high[rows] = (out.value + out.se)[rows]  # + 0, or nan


def _bootstrap(
    out: Differences,
    tasks: Sequence[PairedTask],
    rows: NDArray[np.int64],
    exact: Combination | None,
    seed: int,
) -> None:
    """Fill in the percentile bootstrap, a block of candidates at a time."""
    size = max(_BLOCK // DRAWS, 1)
    freedom = _freedom(out, tasks)
    for block in (rows[i : i + size] for i in range(0, rows.size, size)):
        drawn = drawn_differences(tasks, exact, block, seed)
        ends = percentile(drawn, out.value[block], freedom[block])
        out.p[block], out.low[block], out.high[block] = ends
    out.test[:] = _named(out.test, rows, "bootstrap")


def _named(tests: list[str], rows: NDArray[np.int64], name: str) -> list[str]:
    chosen = set(rows.tolist())
    return [name if c in chosen else test for c, test in enumerate(tests)]
