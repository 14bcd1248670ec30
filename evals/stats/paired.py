"""The tasks of a comparison: what each item moves, and what each draw of items gives.

Knows item scores; no p-value. Legend: C candidates, n items, t tasks, B draws.
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
"""Draws of the bootstrap: p is known to about 0.005 at 0.05, and is never below 0.0005."""


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


@dataclass(frozen=True, eq=False)
class PairedTask:
    """One task of a comparison of C candidates with one incumbent.

    Attributes:
        name: The task.
        aggregation: How items make its score.
        x: The candidates' item values (C, n).
        y: The incumbent's (n,).
        weight: What the values are spread over (n,).
        slopes: Slopes of the combination in the task's score (C, 2): at each candidate, and at
            the incumbent. 0 where the task does not count.
        counts: Whether the combination looks at the task at all (C,).
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
        """Each item's influence on the difference of the combinations (C, n)."""
        mine, theirs = (self._influence(values) for values in (self.x, self.y[None]))
        return _times(self.slopes[:, :1], mine) - _times(self.slopes[:, 1:], theirs)

    @property
    def d(self) -> Floats:
        """Differences of the items' values, positive is better; 0 without a slope (C, n)."""
        signs = np.sign(self.slopes.sum(axis=1, keepdims=True))
        return _times(signs, self.x - self.y)

    @property
    def steps(self) -> Floats:
        """What a difference of 1 on one item moves the combination by (C,)."""
        return np.abs(self.slopes[:, 0]) / self.y.size

    @property
    def is_linear(self) -> NDArray[np.bool_]:
        """Whether the difference of the combinations is a sum over the items (C,)."""
        is_equal = self.slopes[:, 0] == self.slopes[:, 1]
        return is_equal & ((self.aggregation == MEAN) | (self.slopes[:, 0] == 0))

    @property
    def is_binary(self) -> NDArray[np.bool_]:
        """Whether moreover every item's difference is -1, 0 or 1 (C,)."""
        return self.is_linear & np.isin(self.d, (-1.0, 0.0, 1.0)).all(axis=1)

    @property
    def squared_error(self) -> Floats:
        """Squared standard error of the difference (C,); nan below two items."""
        n, moves = self.y.size, self.moves
        found = n / (n - 1) * (moves**2).sum(axis=1) if n > 1 else np.full(len(moves), math.nan)
        return np.where(self.counts, found, 0.0)

    def scores(self) -> tuple[Floats, float]:
        """The task's score of the candidates (C,) and of the incumbent."""
        total = self.weight.sum()
        mine, _ = _scored(self.x.sum(axis=1) / total, self.aggregation)
        theirs, _ = _scored(self.y.sum(keepdims=True) / total, self.aggregation)
        return mine, float(theirs[0])

    def drawn_scores(
        self, rows: NDArray[np.int64], stratum: int, seed: int
    ) -> tuple[Floats, Floats]:
        """The task's score in each draw, of the candidates ``rows`` (C, B), of the other (B,)."""
        values = np.vstack([self.x[rows], self.y, self.weight]).T
        blocks = resampled(self.y.size, DRAWS, seed, stratum)
        sums = np.vstack([block @ values for block in blocks]).T
        scores, _ = _scored(sums[:-1] / sums[-1], self.aggregation)
        return scores[:-1], scores[-1]

    def _influence(self, values: Floats) -> Floats:
        """`ItemScores.influence` of many models' values (C, n)."""
        total = self.weight.sum()
        rate = values.sum(axis=1, keepdims=True) / total
        _, slope = _scored(rate, self.aggregation)
        slope = np.where(np.isinf(slope), math.nan, slope)
        return slope * (values - rate * self.weight) / total


def _times(factor: Floats, values: Floats) -> Floats:
    """Product in which a factor of 0 gives 0 whatever the value, nan included."""
    return np.where(factor == 0, 0.0, factor * values)


def _scored(rates: Floats, aggregation: str) -> tuple[Floats, Floats]:
    """`score_and_slope` of an array of rates."""
    if aggregation == MEAN:
        return rates, np.ones_like(rates)
    pairs = np.array([score_and_slope(rate, aggregation) for rate in rates.ravel().tolist()])
    return pairs[:, 0].reshape(rates.shape), pairs[:, 1].reshape(rates.shape)


def paired_tasks(
    many: Sequence[ItemScores], incumbent: ItemScores, combination: Combination, column: Column
) -> tuple[list[PairedTask], Floats]:
    """The tasks that count, and the differences of the combination (C,)."""
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
    """Items of a task, without slopes; margins where asked for and known."""
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
    """Whether margins may stand for a task's values: all known, and higher is better in both."""
    is_higher = scores.higher_is_better[scores.tasks.index(task)]
    return is_higher and not np.isnan(scores.margin[scores.rows(task)]).any()


def _linear_value(tasks: Sequence[PairedTask]) -> Floats:
    """Slope times the difference of each task's scores, summed (C,)."""
    pairs = [task.scores() for task in tasks]
    parts = [task.slopes[:, 0] * (x - y) for task, (x, y) in zip(tasks, pairs, strict=True)]
    return np.sum(parts, axis=0)


def drawn_differences(
    tasks: Sequence[PairedTask],
    combination: Combination | None,
    rows: NDArray[np.int64],
    seed: int,
) -> Floats:
    """Differences of the combination in each draw of items, of the candidates in ``rows`` (C, B).

    Items are drawn within each task, the same for all models. Where the combination is linear as
    far as can be seen the slopes are used, else it is computed draw by draw.

    Args:
        tasks: From `paired_tasks`.
        combination: What is compared; None: the slopes are all there is.
        rows: Which candidates.
        seed: Of the draws.
    """
    pairs = {task.name: task.drawn_scores(rows, i, seed) for i, task in enumerate(tasks)}
    if combination is None or _is_linear(combination, tasks):
        parts = [t.slopes[rows, :1] * (pairs[t.name][0] - pairs[t.name][1]) for t in tasks]
        return np.sum(parts, axis=0)
    theirs = _combined({name: pair[1] for name, pair in pairs.items()}, combination)
    mine = [
        _combined({name: pair[0][c] for name, pair in pairs.items()}, combination)
        for c in range(rows.size)
    ]
    return np.array(mine) - theirs


def _combined(scores: Mapping[str, Floats], combination: Combination) -> Floats:
    """The combination of each draw's scores (B,)."""
    rows = np.stack(list(scores.values())).T.tolist()
    return np.array([combination.value(dict(zip(scores, row, strict=True))) for row in rows])


def _is_linear(combination: Combination, tasks: Sequence[PairedTask]) -> bool:
    """Whether moving any task's score far changes the combination by its slope times that."""
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
