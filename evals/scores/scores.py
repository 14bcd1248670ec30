"""Item scores, and task scores computed from them. Knows numpy; knows no model and no lm-eval.

Legend: n items, t tasks. An item's ``value`` is lm-eval's metric of one document; for perplexities
it is the log-likelihood (nats), and ``weight`` is the number of words or bytes, or 1.
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
"""Columns of the audit of generated answers."""
_INTEGERS = ("task_index", "doc_id")
OPTIONAL = ("log_likelihood", *AUDIT)
"""Columns that may be missing: nan."""
COLUMNS = (*_INTEGERS, "value", "weight", "margin", *OPTIONAL)
"""Fields of `ItemScores` that hold one number per item."""


class NonFiniteScore(RuntimeError):  # noqa: N818 - named for what the leaderboard shows
    """NaN or infinity of a model on an item: the candidate has failed.

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
    """Score of a task (nan if n = 0), its standard error (nan if n < 2), and n, its items."""

    value: float
    se: float
    n: int


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Scores of one model on one split: arrays over n items, ordered by (task, doc_id).

    Attributes:
        tasks: Task names (t,).
        metrics: Metric key of each task (t,), such as ``acc,none``.
        aggregations: How items make each score (t,): ``mean``, ``perplexity``, ``bits_per_byte``.
        higher_is_better: Whether a higher task score is better (t,).
        task_index: Task of each item (n,) int64.
        doc_id: Row of each item's document in the task's data (n,) int64.
        value: Metric of each item (n,) float64.
        weight: Number of words or bytes (n,) float64; 1 except for rolling perplexities.
        margin: Nats (n,) float64. Multiple choice: right answer minus the best other;
            loglikelihood: right answer; else nan.
        log_likelihood: Log-likelihood of the right answer, nats (n,) float64; nan if not scored.
        truncated: 1 if a generated answer was cut off at the token limit, else 0 (n,) float64; nan
            if nothing is generated, as in the next three.
        no_answer: 1 if the task's filter found no answer in the text, else 0 (n,) float64.
        length: Tokens generated (n,) float64.
        repetition: Share of repeated 4-grams in the answer, in [0, 1) (n,) float64.
        fingerprint: Fingerprint of the scorer, see `heterosis.evals.scores.fingerprint`; "" if
            unknown.
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
        """Return the items that are not in ``before``, an earlier rung of the same split.

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
        """Return the items at some places (m,); the header keeps every task."""
        return replace(self, **{name: getattr(self, name)[places] for name in COLUMNS})

    @property
    def keys(self) -> NDArray[np.int64]:
        """One number per (task, document), ascending and equal in all rungs of a split (n,)."""
        return self.task_index * np.int64(2**40) + self.doc_id

    def rows(self, task: str) -> NDArray[np.int64]:
        """Return the places of a task's items.

        Raises:
            KeyError: If the task was not scored.
        """
        if task not in self.tasks:
            raise KeyError(f"task '{task}' was not scored; scored are {', '.join(self.tasks)}")
        return np.flatnonzero(self.task_index == self.tasks.index(task))

    def task_score(self, task: str) -> TaskScore:
        """Aggregate one task as lm-eval does; see `TaskScore`.

        A task without items in an early rung has score nan and n = 0. The standard error of a mean
        is lm-eval's closed form; that of a perplexity, for which lm-eval has none, is the delta
        method on the ratio of sums.
        """
        rows = self.rows(task)
        if not rows.size:
            return TaskScore(math.nan, math.nan, 0)
        score, _ = self._score_and_slope(task, self._rate(rows))
        return TaskScore(score, standard_error(self.influence(task)), len(rows))

    def influence(self, task: str) -> NDArray[np.float64]:
        """Return each item's influence on the score of a task (n,); sums to 0.

        Linearised ratio estimator (Cochran, Sampling Techniques, eq. 6.13): (value - rate * weight)
        / sum(weight), times the derivative of the score by the rate. See `standard_error`.
        """
        rows = self.rows(task)
        rate = self._rate(rows)
        _, slope = self._score_and_slope(task, rate)
        if math.isinf(slope):
            return np.full(rows.size, math.nan)
        return slope * (self.value[rows] - rate * self.weight[rows]) / self.weight[rows].sum()

    def _rate(self, rows: NDArray[np.int64]) -> float:
        # Plain sums in the order of documents give the same bits as lm-eval.
        return sum(self.value[rows].tolist()) / sum(self.weight[rows].tolist())

    def _score_and_slope(self, task: str, rate: float) -> tuple[float, float]:
        return score_and_slope(rate, self.aggregations[self.tasks.index(task)])

    def task_scores(self) -> dict[str, TaskScore]:
        """Return `task_score` of every task, in order."""
        return {task: self.task_score(task) for task in self.tasks}


def score_and_slope(rate: float, aggregation: str) -> tuple[float, float]:
    """Return a task's score at a rate (sum of values / sum of weights), and its derivative."""
    match aggregation:
        case "perplexity":
            return _exp(-rate), -_exp(-rate)
        case "bits_per_byte":
            return -rate / math.log(2), -1 / math.log(2)
        case _:
            return rate, 1.0


def _exp(x: float) -> float:
    """Return ``exp(x)``, infinite instead of an OverflowError."""
    return math.exp(x) if x < 709.0 else math.inf


def standard_error(influence: NDArray[np.float64]) -> float:
    """Return the standard error of a score from its items' influence (n,); nan below two items.

    With equal weights this is lm-eval's ``mean_stderr``: sample standard deviation / sqrt(n).
    """
    n = influence.size
    return math.sqrt(n / (n - 1) * float((influence**2).sum())) if n > 1 else math.nan


def item_scores(
    header: Mapping[str, Sequence[Any]], columns: Mapping[str, Any], fingerprint: str = ""
) -> ItemScores:
    """Build `ItemScores` from plain sequences.

    Args:
        header: Values per task (`PER_TASK`).
        columns: Values per item (`COLUMNS`); missing ones of `OPTIONAL` become nan.
        fingerprint: Fingerprint of the scorer.
    """
    n = len(columns["value"])
    arrays: dict[str, Any] = {}
    for name in COLUMNS:
        is_missing = name in OPTIONAL and name not in columns
        values = np.full(n, math.nan) if is_missing else columns[name]
        arrays[name] = np.array(values, dtype=np.int64 if name in _INTEGERS else np.float64)
    per_task: dict[str, Any] = {name: tuple(header[name]) for name in PER_TASK}
    return ItemScores(**per_task, **arrays, fingerprint=fingerprint)


def joined(parts: Sequence[ItemScores]) -> ItemScores:
    """Join scores of one model on disjoint items, ordered by (task, doc_id).

    Args:
        parts: At least one, all of the same tasks.
    """
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS
    }
    order = np.lexsort((columns["doc_id"], columns["task_index"]))
    return replace(parts[0], **{name: values[order] for name, values in columns.items()})
