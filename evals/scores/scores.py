"""Scores item by item, and what a task's score is made of. Knows numpy; no model, no lm-eval.

Legend: n items, t tasks. An item's ``value`` is lm-eval's metric of one document; for perplexities
it is the log-likelihood (nats) and ``weight`` counts what it is spread over (words, bytes, 1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN, PERPLEXITY, BITS = "mean", "perplexity", "bits_per_byte"
PER_TASK = ("tasks", "metrics", "aggregations", "higher_is_better")
"""Fields of `ItemScores` that hold one entry per task."""
AUDIT = ("truncated", "no_answer", "length", "repetition")
"""Columns that tell how a generated answer came about."""
_INTEGERS = ("task_index", "doc_id")
OPTIONAL = ("log_likelihood", *AUDIT)
"""Columns that items may be without: nan."""
COLUMNS = (*_INTEGERS, "value", "weight", "margin", *OPTIONAL)
"""Fields of `ItemScores` that hold one number per item."""


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
    """A task's score as lm-eval aggregates it (nan if n = 0), its standard error (n < 2), n."""

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
        log_likelihood: Of the right answer, nats (n,) float64; nan where none is scored.
        truncated: 1 where a generated answer was cut off at the token limit, else 0 (n,) float64;
            nan where nothing was generated, as in the next three.
        no_answer: 1 where the task's filter found no answer in the text, else 0 (n,) float64.
        length: Tokens generated (n,) float64.
        repetition: Share of a generated text that repeats itself, in [0, 1] (n,) float64.
        fingerprint: Of the scorer; see `heterosis.evals.scores.fingerprint`. Empty: not known.
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
    log_likelihood: NDArray[np.float64]
    truncated: NDArray[np.float64]
    no_answer: NDArray[np.float64]
    length: NDArray[np.float64]
    repetition: NDArray[np.float64]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Freeze the arrays and refuse non-finite values."""
        for name in COLUMNS:
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

    def without(self, before: "ItemScores") -> "ItemScores":
        """The items that are not in ``before``, an earlier rung of the same split.

        Raises:
            ValueError: If an item of ``before`` is missing here.
        """
        mine, theirs = self.keys, before.keys
        if not np.isin(theirs, mine).all():
            raise ValueError(
                f"a rung must hold the items of the rung before it, got {self.n} and {before.n} "
                "items that do not; score the split again from its first rung"
            )
        return self.subset(np.flatnonzero(~np.isin(mine, theirs)))

    def subset(self, places: NDArray[np.int64]) -> "ItemScores":
        """The items at some places (m,), every task still in the header."""
        return replace(self, **{name: getattr(self, name)[places] for name in COLUMNS})

    @property
    def keys(self) -> NDArray[np.int64]:
        """One number per (task, document), ascending, the same in every rung of a split (n,)."""
        return self.task_index * np.int64(2**40) + self.doc_id

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

        A task that an early rung leaves out has no score yet: nan, with n = 0. The standard error
        of a mean is lm-eval's closed form; of a perplexity, for which lm-eval has none, the delta
        method on the ratio of sums.
        """
        rows = self.rows(task)
        if not rows.size:
            return TaskScore(math.nan, math.nan, 0)
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
        return score_and_slope(rate, self.aggregations[self.tasks.index(task)])

    def task_scores(self) -> dict[str, TaskScore]:
        """`task_score` of every task, in order."""
        return {task: self.task_score(task) for task in self.tasks}


def score_and_slope(rate: float, aggregation: str) -> tuple[float, float]:
    """A task's score from its rate (sum of values / sum of weights), and its derivative."""
    match aggregation:
        case "perplexity":
            return _exp(-rate), -_exp(-rate)
        case "bits_per_byte":
            return -rate / math.log(2), -1 / math.log(2)
        case _:
            return rate, 1.0


def _exp(x: float) -> float:
    """``exp`` that gives infinity where a perplexity leaves float64, instead of OverflowError."""
    return math.exp(x) if x < 709.0 else math.inf


def spread(influence: NDArray[np.float64]) -> float:
    """Standard error of a score from its items' influence (n,); nan below two items.

    With equal weights it is lm-eval's ``mean_stderr``: sample standard deviation / sqrt(n).
    """
    n = influence.size
    return math.sqrt(n / (n - 1) * float((influence**2).sum())) if n > 1 else math.nan


def item_scores(
    header: Mapping[str, Sequence[Any]], columns: Mapping[str, Any], fingerprint: str = ""
) -> ItemScores:
    """Build `ItemScores` from plain sequences.

    Args:
        header: What is said once per task (`PER_TASK`).
        columns: What is said of each item (`COLUMNS`); those of `OPTIONAL` may be left out: nan.
        fingerprint: The scorer's.
    """
    n = len(columns["value"])
    arrays: dict[str, Any] = {}
    for name in COLUMNS:
        given = columns[name] if name in columns or name not in OPTIONAL else np.full(n, math.nan)
        arrays[name] = np.array(given, dtype=np.int64 if name in _INTEGERS else np.float64)
    per_task: dict[str, Any] = {name: tuple(header[name]) for name in PER_TASK}
    return ItemScores(**per_task, **arrays, fingerprint=fingerprint)


def joined(parts: Sequence[ItemScores]) -> ItemScores:
    """Join scores of different items of one model, ordered by (task, doc_id).

    Args:
        parts: At least one, of the same tasks; no item twice.
    """
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS
    }
    order = np.lexsort((columns["doc_id"], columns["task_index"]))
    return replace(parts[0], **{name: values[order] for name, values in columns.items()})
