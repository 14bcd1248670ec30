"""Kinds of columns: how a score, a difference or a recipe is split into values and written.

Knows numbers, scores and candidates; no tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

from ...evals.scores.audit import Audit
from ...evals.scores.scores import AUDIT
from ...evals.stats.comparison import Difference
from ..format import p_value, recipe_line, score, short, signed
from ..storage.candidate import Candidate


@dataclass(frozen=True)
class Kind:
    """How a quantity is split into plain values and written.

    Attributes:
        parts: End of the column's key -> function from the quantity to a plain value.
        text: Writes the quantity in Markdown.
        short: Writes it in the terminal; None: as `text`.
        page: Writes it on the page, in points if its second argument is true; None: as `text`.
        order: Returns what the page sorts numbers by; None: the first part.
        is_number: Whether it is aligned to the right and sorted as a number.
        p: Kind of a second column, with the p-value; None without one.
    """

    parts: Mapping[str, Callable[[Any], Any]]
    text: Callable[[Any], str]
    short: Callable[[Any], str] | None = None
    page: Callable[[Any, bool], str] | None = None
    order: Callable[[Any], Any] | None = None
    is_number: bool = True
    p: Kind | None = None

    def cell(self, quantity: Any, points: bool = False) -> Cell:
        """Write a quantity for the page; None is a dash.

        Args:
            quantity: Of this kind.
            points: Whether differences are written in points.
        """
        if quantity is None:
            return Cell("-", None, self.is_number)
        order = self.order or next(iter(self.parts.values()))
        number = order(quantity) if self.is_number else None
        if self.is_number and finite(number) is None:
            return Cell("-", None, is_number=True)
        text = self.page(quantity, points) if self.page else self.text(quantity)
        return Cell(text, number, self.is_number)


class Cell(NamedTuple):
    """A cell of the page's table.

    Attributes:
        text: What is read.
        order: Number that it is sorted by; None: words by their text, numbers last.
        is_number: Whether it is aligned to the right.
    """

    text: str
    order: float | None
    is_number: bool


def finite(value: float | None) -> float | None:
    """Return a number as JSON has it: None for nan and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def with_interval(difference: Difference, points: bool, *, sign: bool = True) -> str:
    """Return a difference and its 95 % interval; in points where scores are shares."""
    scale, digits = (100, 1) if points else (1, 4)
    turn = -scale if not sign and difference.high < 0 else scale
    low, high = sorted((turn * difference.low, turn * difference.high))
    value = f"{turn * difference.value:{'+' if sign else ''}.{digits}f}"
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]" + (" points" if points else "")


def recipe_or_failure(candidate: Candidate) -> str:
    """Return the recipe in one line, or why there is no score."""
    return candidate.failure or _recipe(candidate)


def _recipe(candidate: Candidate) -> str:
    return recipe_line(candidate.recipe, candidate.origin)


def _interval(difference: Difference, points: bool) -> str:
    if finite(difference.low) is None:
        return signed(difference.value)
    return with_interval(difference, points).removesuffix(" points")


def _audit(audit: Audit) -> str:
    return (
        f"{audit.truncated:.0%} cut short, {audit.no_answer:.0%} without an answer, "
        f"{audit.length:.0f} tokens, {audit.repetition:.0%} repeated"
    )


_ITSELF: Mapping[str, Callable[[Any], Any]] = {"": lambda quantity: quantity}
WORD = Kind(_ITSELF, str, is_number=False)
COUNT = Kind(_ITSELF, str)
YES = Kind(_ITSELF, lambda is_so: "yes" if is_so else "-")
SECONDS = Kind(_ITSELF, "{:.1f}".format)
RANK = Kind(
    {"": attrgetter("rank")},
    lambda row: "-" if row.rank is None else str(row.rank),
    order=attrgetter("place"),
)
"""Of a row; the page sorts by its place."""
NAME = Kind(
    {"": attrgetter("name")},
    lambda candidate: candidate.name + (" *" if candidate.is_baseline else ""),
    page=lambda candidate, _: candidate.name,
    is_number=False,
)
"""Of a candidate; baselines are marked with an asterisk, on the page by their colour."""
RECIPE = Kind({"": _recipe}, recipe_or_failure, is_number=False)
"""Of a candidate."""
_VALUE, _SE = attrgetter("value"), attrgetter("se")
SCORE = Kind(
    {"": _VALUE, "_se": _SE},
    lambda result: score(result.value, finite(result.se)),
    lambda result: short(result.value, result.se),
)
TASK_SCORE = replace(SCORE, parts={"": _VALUE, ":se": _SE, ":n": attrgetter("n")})
TERM = replace(TASK_SCORE, short=None)
P_VALUE = Kind({"": attrgetter("p")}, lambda difference: p_value(difference.p))
DIFFERENCE = Kind(
    {"": _VALUE, "_se": _SE, "_p": attrgetter("p")},
    lambda difference: signed(difference.value),
    page=_interval,
    p=P_VALUE,
)
ANSWERS = Kind(
    {f":{name}": attrgetter(name) for name in AUDIT},
    _audit,
    lambda audit: f"{audit.truncated:.0%}",
    lambda audit, _: f"{audit.truncated:.0%}",
)
"""How generated answers came about; terminal and page have the share that was cut short."""
