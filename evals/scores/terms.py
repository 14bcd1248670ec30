"""Terms of an objective: a task's metric, or another column of its items. Knows item scores.

Terms are turned into `ItemScores` with one "task" per term, so whatever compares tasks compares
terms. Legend: n items, m terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .scores import COLUMNS, MEAN, ItemScores
from .term_columns import LOWER_IS_BETTER, METRIC, TermColumn


@dataclass(frozen=True)
class Term:
    """One number per model that enters an objective.

    Attributes:
        name: Unique name; the task's name if the task has one term only.
        task: Task whose items are averaged.
        column: Column that is averaged.
    """

    name: str
    task: str
    column: TermColumn

    @property
    def title(self) -> str:
        """Name of the task, and of the column unless it is the metric."""
        column = self.column.replace("_", "-")
        return self.task if self.column == METRIC else f"{self.task} {column}"

    @property
    def is_plain(self) -> bool:
        """Whether it is the task's metric under the task's name."""
        return self.column == METRIC and self.name == self.task


def plain_terms(tasks: Sequence[str]) -> tuple[Term, ...]:
    """Return one term per task, its metric."""
    return tuple(Term(task, task, METRIC) for task in tasks)


def as_terms(scores: ItemScores, terms: Sequence[Term]) -> ItemScores:
    """Return item scores with one "task" per term.

    Args:
        scores: Scores of a model (n items); every term of a task gets all items of the task.
        terms: Terms in the objective's order (m).

    Returns:
        Scores whose tasks are the terms, each a mean of its column; margins are kept. The same
        object as ``scores`` if every task is its only term.

    Raises:
        NonFiniteScore: If an item lacks a finite value of its term's column.
    """
    if all(term.is_plain for term in terms) and tuple(t.name for t in terms) == scores.tasks:
        return scores
    places = [scores.rows(term.task) for term in terms]
    subset = scores.subset(np.concatenate(places))
    value, weight = subset.value.copy(), subset.weight.copy()
    ends = np.cumsum([rows.size for rows in places])
    metrics, aggregations, higher_is_better = [], [], []
    for term, rows, end in zip(terms, places, ends, strict=True):
        task = scores.tasks.index(term.task)
        is_metric = term.column == METRIC
        metrics.append(scores.metrics[task] if is_metric else term.column)
        aggregations.append(scores.aggregations[task] if is_metric else MEAN)
        is_higher = (
            scores.higher_is_better[task] if is_metric else term.column not in LOWER_IS_BETTER
        )
        higher_is_better.append(is_higher)
        if not is_metric:
            value[end - rows.size : end] = getattr(scores, term.column)[rows]
            weight[end - rows.size : end] = 1.0
    columns = {name: getattr(subset, name) for name in COLUMNS} | {
        "task_index": np.repeat(np.arange(len(terms)), [rows.size for rows in places]),
        "value": value,
        "weight": weight,
    }
    return replace(
        scores,
        tasks=tuple(term.name for term in terms),
        metrics=tuple(metrics),
        aggregations=tuple(aggregations),
        higher_is_better=tuple(higher_is_better),
        **columns,
    )
