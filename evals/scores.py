"""Scores item by item, and what a task's score is made of. Knows numpy; no model, no lm-eval.

Legend: n items, t tasks. An item's ``value`` is lm-eval's metric of one document; for perplexities
it is the log-likelihood (nats) and ``weight`` counts what it is spread over (words, bytes, 1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN, PERPLEXITY, BITS = "mean", "perplexity", "bits_per_byte"


class NonFiniteScore(RuntimeError):  # noqa: N818 - named for what the leaderboard shows
    """A model gave NaN or infinity on an item; the candidate has failed, whatever the other items.

    Attributes:
        task: Task of the first such item.
        doc_id: Row of its document in the task's data.
    """

    def __init__(self, task: str, doc_id: int, what: str, value: float) -> None:
        """Name the item."""
        super().__init__(
            f"scores must be finite, got {what} = {value} on task '{task}', doc {doc_id}; "
            "the merged weights overflow or hold NaN"
        )
        self.task, self.doc_id = task, doc_id


@dataclass(frozen=True)
class TaskScore:
    """A task's score as lm-eval aggregates it, its standard error (nan if n < 2), and n items."""

    value: float
    se: float
    n: int


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Scores of one model on one split: parallel arrays over n items, ordered by (task, doc_id).

    Attributes:
        tasks: Task names (t,).
        metrics: Metric key of each task (t,), such as ``acc,none``.
        aggregations: How items make each score (t,): ``mean``, ``perplexity``, ``bits_per_byte``.
        higher_is_better: Whether a higher task score is better (t,).
        task_index: Task of each item (n,) int64.
        doc_id: Row of each item's document in the task's data (n,) int64.
        value: Metric of each item (n,) float64.
        weight: What the value is spread over (n,) float64; 1 except for rolling perplexities.
        margin: Nats (n,) float64. Multiple choice: gold minus best other; loglikelihood: gold;
            else nan.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    aggregations: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    task_index: NDArray[np.int64]
    doc_id: NDArray[np.int64]
    value: NDArray[np.float64]
    weight: NDArray[np.float64]
    margin: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Freeze the arrays and refuse non-finite values."""
        for name in ("task_index", "doc_id", "value", "weight", "margin"):
            getattr(self, name).setflags(write=False)
        broken = np.flatnonzero(~np.isfinite(self.value))
        if broken.size:
            first = int(broken[0])
            task = self.tasks[int(self.task_index[first])]
            metric = self.metrics[int(self.task_index[first])]
            raise NonFiniteScore(task, int(self.doc_id[first]), metric, float(self.value[first]))

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.value.size)

    def rows(self, task: str) -> NDArray[np.int64]:
        """Positions of a task's items.

        Raises:
            KeyError: If the task was not scored; names those that were.
        """
        if task not in self.tasks:
            raise KeyError(f"task '{task}' was not scored; scored are {', '.join(self.tasks)}")
        return np.flatnonzero(self.task_index == self.tasks.index(task))

    def task_score(self, task: str) -> TaskScore:
        """Aggregate one task as lm-eval does; see `TaskScore`.

        The standard error of a mean is lm-eval's closed form; of a perplexity, for which lm-eval
        has none, the delta method on the ratio of sums.
        """
        rows = self.rows(task)
        score, _ = self._score_and_slope(task, self._rate(rows))
        return TaskScore(score, spread(self.influence(task)), len(rows))

    def influence(self, task: str) -> NDArray[np.float64]:
        """How far each item of a task moves its score from what the others say (n,); sums to 0.

        Linearised ratio estimator (Cochran, Sampling Techniques, eq. 6.13): (value - rate * weight)
        / sum(weight), times the slope of the score in the rate. `spread` makes it a standard error.
        """
        rows = self.rows(task)
        rate = self._rate(rows)
        _, slope = self._score_and_slope(task, rate)
        if math.isinf(slope):
            return np.full(rows.size, math.nan)
        return slope * (self.value[rows] - rate * self.weight[rows]) / self.weight[rows].sum()

    def _rate(self, rows: NDArray[np.int64]) -> float:
        # Plain sums, in the order of documents: lm-eval's own bits.
        return sum(self.value[rows].tolist()) / sum(self.weight[rows].tolist())

    def _score_and_slope(self, task: str, rate: float) -> tuple[float, float]:
        match self.aggregations[self.tasks.index(task)]:
            case "perplexity":
                return _exp(-rate), -_exp(-rate)
            case "bits_per_byte":
                return -rate / math.log(2), -1 / math.log(2)
            case _:
                return rate, 1.0

    def task_scores(self) -> dict[str, TaskScore]:
        """`task_score` of every task, in order."""
        return {task: self.task_score(task) for task in self.tasks}


_ARRAYS = ("task_index", "doc_id", "value", "weight", "margin")
_HEADER = tuple(field.name for field in fields(ItemScores) if field.name not in _ARRAYS)


def _exp(x: float) -> float:
    """``exp`` that gives infinity where a perplexity leaves float64, instead of OverflowError."""
    return math.exp(x) if x < 709.0 else math.inf


def spread(influence: NDArray[np.float64]) -> float:
    """Standard error of a score from its items' influence (n,); nan below two items.

    With equal weights it is lm-eval's ``mean_stderr``: sample standard deviation / sqrt(n).
    """
    n = influence.size
    return math.sqrt(n / (n - 1) * float((influence**2).sum())) if n > 1 else math.nan


def item_scores(header: Mapping[str, Sequence[Any]], columns: Mapping[str, Any]) -> ItemScores:
    """Build `ItemScores` from plain sequences: ``header`` per task, ``columns`` per item."""
    integers, floats = ("task_index", "doc_id"), ("value", "weight", "margin")
    arrays: dict[str, Any] = {name: np.array(columns[name], dtype=np.int64) for name in integers}
    arrays |= {name: np.array(columns[name], dtype=np.float64) for name in floats}
    return ItemScores(**{name: tuple(header[name]) for name in _HEADER}, **arrays)
