"""Metric of a task that a search may use, and its value per item. Knows lm-eval.

A search needs a number per item, so a metric's score must be the mean of per-document floats, or a
perplexity, which has a log-likelihood per document. F1, Matthews correlation, BLEU and others are
defined for a whole data set only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..scores.scores import BITS, MEAN, PERPLEXITY
from .task_files import TaskError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """One metric of a task after one of its filters.

    Attributes:
        name: Name such as ``acc``.
        filter: lm-eval's filter, such as ``none`` or ``strict``.
        aggregation: Aggregation of items, see `heterosis.evals.scores.scores`.
        higher_is_better: Whether a higher score is better.
    """

    name: str
    filter: str
    aggregation: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """lm-eval's key in its results: ``name,filter``."""
        return f"{self.name},{self.filter}"

    def item(self, values: Mapping[str, Any], task: str, doc_id: int) -> tuple[float, float]:
        """Return (value, weight) of one document from the output of ``process_results``.

        Raises:
            TaskError: If the metric is missing, or not a number (a pair, for perplexities).
        """
        value: Any = values.get(self.name)
        amount, weight = value, 1.0
        if self.aggregation != MEAN and isinstance(value, tuple) and len(value) == 2:
            amount, weight = value
        if not isinstance(amount, Real) or not isinstance(weight, Real):
            raise TaskError(
                f"task '{task}': metric '{self.name}' must be one number per document to steer a "
                f"search, got {value!r} for doc {doc_id}; choose another `metric`"
            )
        return float(amount), float(weight)


def choose_metric(task: Any, asked: str | None) -> Metric:
    """Return the metric asked for, or the task's first.

    Args:
        task: An lm-eval task.
        asked: ``acc`` (first filter) or ``exact_match,strict``; None: the task's first metric.

    Raises:
        TaskError: If there is no such metric or filter, or it has no value per document.
    """
    filters = [ensemble.name for ensemble in task._filters]
    known = [f"{name},{f}" for name in task.aggregation() for f in filters]
    if not known:
        raise TaskError(f"task '{task.task_name}' has no metric; give it a `metric_list`")
    name, _, chosen_filter = (asked or known[0]).partition(",")
    key = f"{name},{chosen_filter or filters[0]}"
    if key not in known:
        raise TaskError(
            f"task '{task.task_name}' has no metric '{asked}'"
            f"{did_you_mean(str(asked), known) or ';'} known are {', '.join(known)}"
        )
    kinds = _aggregation_kinds(task)
    if kinds[name] is None:
        usable = [k for k in known if kinds[k.partition(",")[0]]] or ["none of this task"]
        raise TaskError(
            f"task '{task.task_name}': metric '{name}' has no value per document, so it cannot "
            f"steer a search; choose `metric` among {', '.join(usable)}"
        )
    higher = bool(task.higher_is_better().get(name, True))
    return Metric(name, key.partition(",")[2], str(kinds[name]), higher)


def _aggregation_kinds(task: Any) -> dict[str, str | None]:
    """Return the aggregation of each metric of a task; None if it is no sum over documents."""
    from lm_eval.api import metrics

    kinds = {
        metrics.mean: MEAN,
        metrics.perplexity: PERPLEXITY,  # exp(-mean): the weighted one with weights 1
        metrics.weighted_perplexity: PERPLEXITY,
        metrics.bits_per_byte: BITS,
    }
    return {name: kinds.get(function) for name, function in task.aggregation().items()}
