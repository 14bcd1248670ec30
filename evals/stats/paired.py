"""Tasks of a comparison: influence of each item, and differences in each bootstrap draw.

Knows item scores; knows no p-value. Legend: C candidates, n items, t tasks, B draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..scores.scores import MEAN, ItemScores, score_and_slope
from .significance import Floats, resampled

Column = Literal["value", "margin"]
DRAWS = 2000
"""Draws of the bootstrap: p is accurate to about 0.005 at 0.05, and at least 0.0005."""


class Combination(Protocol):
    """Combination of the tasks' scores to one number; higher is better."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that enter the combination."""
        ...

    def value(self, values: Mapping[str, float]) -> float:
        """Return the combination of one score per task."""
        ...

    def drawn_values(self, values: Mapping[str, Floats]) -> Floats:
        """Return the combination of each draw's scores (..., B)."""
        ...

    def gradient(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return the derivative of `value` by each score; 0 for a missing task."""
        ...


@dataclass(frozen=True, eq=False)
class PairedTask:
    """One task of a comparison of C candidates with one incumbent.

    Attributes:
        name: Name of the task.
        aggregation: Aggregation of its items.
        x: Item values of the candidates (C, n).
        y: Item values of the incumbent (n,).
        weight: Weights of the items (n,).
        slopes: Derivatives of the combination by the task's score (C, 2), at each candidate and at
            the incumbent; 0 if the task does not count.
        counts: Whether the task enters the combination (C,).
    """

    name: str
    aggregation: str
    x: Floats
    y: Floats
    weight: Floats
    slopes: Floats
    counts: NDArray[np.bool_]

    @property
    def moves(self) -> Floats:
        """Influence of each item on the difference of the combinations (C, n)."""
        mine, theirs = (self._influence(values) for values in (self.x, self.y[None]))
        return _times(self.slopes[:, :1], mine) - _times(self.slopes[:, 1:], theirs)

    @property
    def d(self) -> Floats:
        """Differences of the items' values, positive is better; 0 if the slope is 0 (C, n)."""
        signs = np.sign(self.slopes.sum(axis=1, keepdims=True))
        return _times(signs, self.x - self.y)

    @property
    def steps(self) -> Floats:
        """Change of the combination by a difference of 1 on one item (C,)."""
        return np.abs(self.slopes[:, 0]) / self.y.size

    @property
    def is_linear(self) -> NDArray[np.bool_]:
        """Whether the difference of the combinations is a sum over the items (C,)."""
        is_equal = self.slopes[:, 0] == self.slopes[:, 1]
        return is_equal & ((self.aggregation == MEAN) | (self.slopes[:, 0] == 0))

    @property
    def is_binary(self) -> NDArray[np.bool_]:
        """Whether it is linear and every item's difference is -1, 0 or 1 (C,)."""
        return self.is_linear & np.isin(self.d, (-1.0, 0.0, 1.0)).all(axis=1)

    @property
    def squared_error(self) -> Floats:
        """Squared standard error of the difference (C,); nan below two items."""
        n, moves = self.y.size, self.moves
        square = n / (n - 1) * (moves**2).sum(axis=1) if n > 1 else np.full(len(moves), math.nan)
        return np.where(self.counts, square, 0.0)

    def scores(self) -> tuple[Floats, float]:
        """Return the task's score of the candidates (C,) and of the incumbent."""
        total = self.weight.sum()
        mine, _ = _scored(self.x.sum(axis=1) / total, self.aggregation)
        theirs, _ = _scored(self.y.sum(keepdims=True) / total, self.aggregation)
        return mine, float(theirs[0])

    def drawn_scores(
        self, rows: NDArray[np.int64], stratum: int, seed: int
    ) -> tuple[Floats, Floats]:
        """Return the task's score per draw, of candidates ``rows`` (C, B) and incumbent (B,)."""
        values = np.vstack([self.x[rows], self.y, self.weight]).T
        blocks = resampled(self.y.size, DRAWS, seed, stratum)
        sums = np.vstack([block @ values for block in blocks]).T
        scores, _ = _scored(sums[:-1] / sums[-1], self.aggregation)
        return scores[:-1], scores[-1]

    def _influence(self, values: Floats) -> Floats:
        """Return `ItemScores.influence` of many models' values (C, n)."""
        total = self.weight.sum()
        rate = values.sum(axis=1, keepdims=True) / total
        _, slope = _scored(rate, self.aggregation)
        slope = np.where(np.isinf(slope), math.nan, slope)
        return slope * (values - rate * self.weight) / total


def _times(factor: Floats, values: Floats) -> Floats:
    """Multiply, where a factor of 0 gives 0 even for nan."""
    return np.where(factor == 0, 0.0, factor * values)


def _scored(rates: Floats, aggregation: str) -> tuple[Floats, Floats]:
    """Return `score_and_slope` of an array of rates."""
    if aggregation == MEAN:
        return rates, np.ones_like(rates)
    pairs = np.array([score_and_slope(rate, aggregation) for rate in rates.ravel().tolist()])
    return pairs[:, 0].reshape(rates.shape), pairs[:, 1].reshape(rates.shape)


def paired_tasks(
    many: Sequence[ItemScores], incumbent: ItemScores, combination: Combination, column: Column
) -> tuple[list[PairedTask], Floats]:
    """Return the tasks of the combination, and the differences of the combination (C,)."""
    plain = [_task(name, many, incumbent, "value") for name in combination.tasks]
    scores = {task.name: task.scores() for task in plain}
    theirs = {name: score[1] for name, score in scores.items()}
    mine = [{name: float(s[0][c]) for name, s in scores.items()} for c in range(len(many))]
    slopes, at = [combination.gradient(values) for values in mine], combination.gradient(theirs)
    tasks = []
    for task in plain:
        pairs = np.array([[s.get(task.name, 0.0), at.get(task.name, 0.0)] for s in slopes])
        counts = np.array([task.name in s or task.name in at for s in slopes])
        if column == "margin":
            pairs = np.repeat(pairs.mean(axis=1, keepdims=True), 2, axis=1)
            task = _task(task.name, many, incumbent, column)
        tasks.append(replace(task, slopes=pairs, counts=counts))
    if column == "margin":
        return tasks, _linear_value(tasks)
    value = np.array([combination.value(values) for values in mine])
    return tasks, value - combination.value(theirs)


def _task(
    name: str, many: Sequence[ItemScores], incumbent: ItemScores, column: Column
) -> PairedTask:
    """Return the items of a task without slopes; margins if asked for and usable."""
    rows, at = incumbent.rows(name), incumbent.tasks.index(name)
    is_margin = column == "margin" and has_margins(incumbent, name)
    used = "margin" if is_margin else "value"
    return PairedTask(
        name=name,
        aggregation=MEAN if is_margin else incumbent.aggregations[at],
        x=np.stack([getattr(scores, used)[rows] for scores in many]),
        y=getattr(incumbent, used)[rows],
        weight=np.ones(rows.size) if is_margin else incumbent.weight[rows],
        slopes=np.zeros((len(many), 2)),
        counts=np.zeros(len(many), dtype=bool),
    )


def has_margins(scores: ItemScores, task: str) -> bool:
    """Tell whether margins can replace a task's values: all finite, and higher is better."""
    is_higher = scores.higher_is_better[scores.tasks.index(task)]
    return is_higher and not np.isnan(scores.margin[scores.rows(task)]).any()


def _linear_value(tasks: Sequence[PairedTask]) -> Floats:
    """Return the sum over tasks of slope times difference of scores (C,)."""
    pairs = [task.scores() for task in tasks]
    parts = [task.slopes[:, 0] * (x - y) for task, (x, y) in zip(tasks, pairs, strict=True)]
    return np.sum(parts, axis=0)


def drawn_differences(
    tasks: Sequence[PairedTask],
    combination: Combination | None,
    rows: NDArray[np.int64],
    seed: int,
) -> Floats:
    """Return the differences of the combination in each bootstrap draw of items (C, B).

    Items are drawn within each task, the same ones for all models. A combination that probes as
    linear is computed from its slopes.

    Args:
        tasks: From `paired_tasks`.
        combination: Combination to compare; None: use the slopes.
        rows: Indices of the candidates (C,).
        seed: Seed of the draws.
    """
    pairs = {task.name: task.drawn_scores(rows, i, seed) for i, task in enumerate(tasks)}
    if combination is None or _is_linear(combination, tasks):
        parts = [t.slopes[rows, :1] * (pairs[t.name][0] - pairs[t.name][1]) for t in tasks]
        return np.sum(parts, axis=0)
    mine, theirs = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return combination.drawn_values(mine) - combination.drawn_values(theirs)


def _is_linear(combination: Combination, tasks: Sequence[PairedTask]) -> bool:
    """Tell whether large steps of any score change the combination by slope times step."""
    if any((task.slopes != task.slopes[0, 0]).any() for task in tasks):
        return False
    at = dict.fromkeys(combination.tasks, 0.5)
    base = combination.value(at)
    for task in tasks:
        for step in (-1e3, 1e3):
            moved = combination.value(at | {task.name: 0.5 + step}) - base
            if not math.isclose(moved, task.slopes[0, 0] * step, rel_tol=1e-9, abs_tol=1e-9):
                return False
    return True
