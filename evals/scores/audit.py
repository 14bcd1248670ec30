"""How generated answers came about: cut short, unread, long, repetitive. Knows answers, no model.

A merge can win or lose points by the token limit or the answer's form alone, with no change in
what it knows; an audit beside each score shows it.
"""

import math
from dataclasses import dataclass

from .scores import ItemScores

NOT_GENERATED = (math.nan,) * 4
"""Audit columns of an item without a generated answer."""


@dataclass(frozen=True)
class Audit:
    """Generated answers of one task.

    Attributes:
        truncated: Share cut off at the token limit.
        no_answer: Share in which the task's filter found no answer.
        length: Mean length in tokens, stop string included.
        repetition: Mean share of repeated 4-grams; see `repeated_share`.
    """

    truncated: float
    no_answer: float
    length: float
    repetition: float


def audits(scores: ItemScores) -> dict[str, Audit]:
    """Audit of each task whose answers were generated."""
    columns = (scores.truncated, scores.no_answer, scores.length, scores.repetition)
    found = {}
    for task in scores.tasks:
        rows = scores.rows(task)
        if rows.size and not math.isnan(scores.length[rows[0]]):
            found[task] = Audit(*(float(column[rows].mean()) for column in columns))
    return found
