"""What an objective looks at: a task's metric, or another of its items' columns in its place.

Knows item scores. Terms give `ItemScores` of their own, so that whatever compares tasks compares
terms. Legend: n items, m terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .scores import COLUMNS, MEAN, ItemScores
from .term_columns import LOWER_IS_BETTER, METRIC, TermColumn


@dataclass(frozen=True)
class Term:
    """One number per model that an objective is made of.

    Attributes:
        name: Unique; the task's own name where it has one term only.
        task: Whose items.
        column: What is averaged over them.
    """

    name: str
    task: str
    column: TermColumn

    @property
    def title(self) -> str:
        """The task, and the column if it is not the metric."""
        column = self.column.replace("_", "-")
        return self.task if self.column == METRIC else f"{self.task} {column}"

    @property
    def is_plain(self) -> bool:
        """Whether it is the task's score under its own name."""
        return self.column == METRIC and self.name == self.task


def plain_terms(tasks: Sequence[str]) -> tuple[Term, ...]:
    """Every task's own score."""
    return tuple(Term(task, task, METRIC) for task in tasks)


def as_terms(scores: ItemScores, terms: Sequence[Term]) -> ItemScores:
    """The items as an objective sees them: one "task" per term.

    Args:
        scores: Of a model (n items); a task of several terms gives each of them its items.
        terms: In the objective's order (m).

    Returns:
        Means of the columns; margins are kept, for what tells models apart by them. The very
        ``scores`` where every task is its own term.

    Raises:
        NonFiniteScore: If an item of a term has no such value.
    """
    if all(term.is_plain for term in terms) and tuple(t.name for t in terms) == scores.tasks:
        return scores
    places = [scores.rows(term.task) for term in terms]
    taken = scores.subset(np.concatenate(places))
    at = [scores.tasks.index(term.task) for term in terms]
    value, weight = taken.value.copy(), taken.weight.copy()
    ends = np.cumsum([rows.size for rows in places])
    for term, rows, end in zip(terms, places, ends, strict=True):
        if term.column != METRIC:
            value[end - rows.size : end] = getattr(scores, term.column)[rows]
            weight[end - rows.size : end] = 1.0
    is_own = [term.column == METRIC for term in terms]
    columns = {name: getattr(taken, name) for name in COLUMNS} | {
        "task_index": np.repeat(np.arange(len(terms)), [rows.size for rows in places]),
        "value": value,
        "weight": weight,
    }
    return replace(
        scores,
        tasks=tuple(term.name for term in terms),
        metrics=tuple(
            scores.metrics[i] if own else term.column
            for i, own, term in zip(at, is_own, terms, strict=True)
        ),
        aggregations=tuple(
            scores.aggregations[i] if own else MEAN for i, own in zip(at, is_own, strict=True)
        ),
        higher_is_better=tuple(
            scores.higher_is_better[i] if own else term.column not in LOWER_IS_BETTER
            for i, own, term in zip(at, is_own, terms, strict=True)
        ),
        **columns,
    )
