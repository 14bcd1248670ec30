"""Scores item by item, and what may be said from them. Knows numpy and scipy, no model, no lm-eval.

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
AGGREGATIONS = (MEAN, PERPLEXITY, BITS)


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


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models; positive: the first is better.

    ``value`` and ``se`` are in the metric's unit (perplexities: nats per word, byte or token).
    ``p`` is two-sided. ``test`` says how it was found: ``mcnemar``, ``normal`` or ``sign``.
    """

    value: float
    se: float
    p: float
    n: int
    test: str


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Scores of one model on one split: parallel arrays over n items, ordered by (task, doc_id).

    Attributes:
        tasks: Task names (t,).
        metrics: Metric key of each task (t,), such as ``acc,none``.
        aggregations: How each task's items make its score (t,), one of ``AGGREGATIONS``.
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
        values, weights = self.value[rows].tolist(), self.weight[rows].tolist()
        rate = sum(values) / sum(weights)  # plain sum, in doc order: lm-eval's own bits
        se = _ratio_se(self.value[rows], self.weight[rows])
        match self.aggregations[self.tasks.index(task)]:
            case "perplexity":
                return TaskScore(_exp(-rate), _exp(-rate) * se, len(rows))
            case "bits_per_byte":
                return TaskScore(-rate / math.log(2), se / math.log(2), len(rows))
            case _:
                return TaskScore(rate, se, len(rows))

    def task_scores(self) -> dict[str, TaskScore]:
        """`task_score` of every task, in order."""
        return {task: self.task_score(task) for task in self.tasks}

    def subset(self, keep: NDArray[np.bool_]) -> "ItemScores":
        """Return the items where ``keep`` (n,) holds; all tasks stay named."""
        arrays = {name: getattr(self, name)[keep] for name in _ARRAYS}
        return ItemScores(
            self.tasks, self.metrics, self.aggregations, self.higher_is_better, **arrays
        )


_ARRAYS = ("task_index", "doc_id", "value", "weight", "margin")
_HEADER = tuple(field.name for field in fields(ItemScores) if field.name not in _ARRAYS)


def _exp(x: float) -> float:
    """``exp`` that gives infinity where a perplexity leaves float64, instead of OverflowError."""
    return math.exp(x) if x < 709.0 else math.inf


def _ratio_se(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Standard error of sum(values) / sum(weights), items drawn at random; nan below two items.

    Linearised ratio estimator (Cochran, Sampling Techniques, eq. 6.13); with weights 1 it is
    lm-eval's ``mean_stderr``: sample standard deviation / sqrt(n).
    """
    n = values.size
    if n < 2:
        return math.nan
    residual = values - weights * (values.sum() / weights.sum())
    spread = math.sqrt(float((residual**2).sum()) / (n - 1))
    return spread / math.sqrt(n) / float(weights.mean())


def _refuse_unpaired(a: ItemScores, b: ItemScores) -> None:
    """Raise ValueError unless both hold the same items, scored the same way."""
    for name in _HEADER:
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


def _signed_differences(a: ItemScores, b: ItemScores) -> NDArray[np.float64]:
    """Per-item a - b (n,), turned so that positive means a is better."""
    sign = [
        1.0 if aggregation != MEAN or higher else -1.0
        for aggregation, higher in zip(a.aggregations, a.higher_is_better, strict=True)
    ]
    return (a.value - b.value) * np.asarray(sign)[a.task_index]


def _shares(scores: ItemScores, weights: Mapping[str, float] | None) -> dict[str, float]:
    """Share of each task in the mean over tasks; sums to 1."""
    raw = {task: 1.0 if weights is None else weights.get(task, 0.0) for task in scores.tasks}
    total = sum(raw.values())
    if not total > 0 or min(raw.values()) < 0:
        raise ValueError(f"task weights must be >= 0 and sum to more than 0, got {raw}")
    return {task: share / total for task, share in raw.items() if share > 0}


def _binomial_p(wins: int, losses: int) -> float:
    """Exact two-sided sign test of wins against losses (McNemar's, when items are 0/1)."""
    from scipy.stats import binomtest  # costs 0.3 s: only who compares pays for it

    return 1.0 if wins + losses == 0 else float(binomtest(wins, wins + losses, 0.5).pvalue)


def _p_value(
    d: NDArray[np.float64], per_item: NDArray[np.float64], value: float, se: float
) -> tuple[float, str]:
    """Two-sided p and the test that gave it; d (n,) differences, per_item (n,) their weights."""
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if np.isin(d, (-1.0, 0.0, 1.0)).all() and np.allclose(per_item, per_item[0], rtol=1e-9):
        return _binomial_p(wins, losses), "mcnemar"
    if not se > 0 or math.isnan(se):
        return _binomial_p(wins, losses), "sign"
    return math.erfc(abs(value / se) / math.sqrt(2)), "normal"


def paired_difference(
    a: ItemScores, b: ItemScores, weights: Mapping[str, float] | None = None
) -> Difference:
    """Compare two models on the same items: mean over tasks of paired differences a - b.

    The standard error is stratified by task. The p-value is exact (McNemar) where every
    difference is -1, 0 or 1 and all items weigh the same; else the normal approximation, and the
    sign test where no standard error exists.

    Args:
        a: Scores of the model in question.
        b: Scores of the model it is compared to; the same items.
        weights: Weight of each task in the mean; a missing task weighs 0. None: all weigh 1.

    Returns:
        See `Difference`; positive when ``a`` is better, also where lower scores are better.

    Raises:
        ValueError: If the items, metrics or tasks differ, or the weights are unusable.
    """
    _refuse_unpaired(a, b)
    d, shares = _signed_differences(a, b), _shares(a, weights)
    value, variance, used = 0.0, 0.0, np.zeros(a.n, dtype=bool)
    per_item = np.zeros(a.n)
    for task, share in shares.items():
        rows = a.rows(task)
        if rows.size == 0:
            raise ValueError(f"task '{task}' has no items to compare; leave it out of `weights`")
        total = float(a.weight[rows].sum())
        value += share * float(d[rows].sum()) / total
        variance += (share * _ratio_se(d[rows], a.weight[rows])) ** 2
        per_item[rows], used[rows] = share / total, True
    se = math.sqrt(variance) if not math.isnan(variance) else math.nan
    p, test = _p_value(d[used], per_item[used], value, se)
    return Difference(value, se, p, int(used.sum()), test)


def item_scores(header: Mapping[str, Sequence[Any]], columns: Mapping[str, Any]) -> ItemScores:
    """Build `ItemScores` from plain sequences: ``header`` per task, ``columns`` per item."""
    integers, floats = ("task_index", "doc_id"), ("value", "weight", "margin")
    arrays: dict[str, Any] = {name: np.array(columns[name], dtype=np.int64) for name in integers}
    arrays |= {name: np.array(columns[name], dtype=np.float64) for name in floats}
    return ItemScores(**{name: tuple(header[name]) for name in _HEADER}, **arrays)
