"""Audit of generated answers, per task. Knows item scores; knows no model.

A merge can win or lose points by the token limit or the form of its answers alone, with no change
in what it knows; the audit beside each score shows it.
"""

import math
from dataclasses import dataclass

from .scores import AUDIT, ItemScores


@dataclass(frozen=True)
class Audit:
    """Audit of one task's generated answers.

    Attributes:
        truncated: Share of answers cut off at the token limit.
        no_answer: Share of answers in which the task's filter found none.
        length: Mean length in tokens, stop string included.
        repetition: Mean share of repeated 4-grams, in [0, 1).
    """

    truncated: float
    no_answer: float
    length: float
    repetition: float


def audits(scores: ItemScores) -> dict[str, Audit]:
    """Return the audit of each task whose answers are generated."""
    by_task = {}
    for task in scores.tasks:
        rows = scores.rows(task)
        if rows.size and not math.isnan(scores.length[rows[0]]):
            means = {name: float(getattr(scores, name)[rows].mean()) for name in AUDIT}
            by_task[task] = Audit(**means)
    return by_task
