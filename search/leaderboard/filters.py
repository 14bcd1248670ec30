"""Rows of a table that a person asks for, in the order that they ask for. Knows their columns."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any, TypeVar

from ...merge.hints import hint
from .board import Leaderboard, Row
from .columns import Fields, board_fields

T = TypeVar("T")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FILTER = re.compile(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def select(board: Leaderboard, filters: Sequence[str], sort: str | None) -> list[Row]:
    """Return some rows of a board, in another order; see `chosen`."""
    return chosen(board.rows, board_fields(board), filters, sort)


def chosen(rows: Sequence[T], columns: Fields, filters: Sequence[str], sort: str | None) -> list[T]:
    """Return some rows, in another order; computes the columns that are named, no others.

    Args:
        rows: What to choose from.
        columns: What a filter and an order may name.
        filters: Each ``COLUMN OP VALUE`` with ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``, all of
            which must hold; after ``=`` and ``!=``, ``*`` and ``?`` stand for any letters. A row
            without a value passes none but ``!=``.
        sort: Column, highest number first and words by the alphabet; ``-COLUMN`` turns that round.
            Rows without a value come last.

    Raises:
        ValueError: If a filter cannot be read, or there is no such column.
    """
    found = list(rows)
    for text in filters:
        column, passes = _filter(text, columns)
        value = columns[column]
        found = [row for row in found if passes(value(row))]
    if sort is None:
        return found
    column = sort.removeprefix("-")
    _check(column, columns)
    with_value = [(columns[column](row), row) for row in found]
    there = [pair for pair in with_value if _is_there(pair[0])]
    is_word = any(isinstance(value, str) for value, _ in there)
    there.sort(key=itemgetter(0), reverse=is_word == sort.startswith("-"))
    return [row for _, row in there] + [row for value, row in with_value if not _is_there(value)]


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _check(column: str, known: Fields) -> None:
    if column not in known:
        raise ValueError(f"a leaderboard has no column `{column}`; {hint(column, known)}")


def _filter(text: str, known: Fields) -> tuple[str, Callable[[Any], bool]]:
    """The column of a filter, and whether a value of it passes."""
    match = _FILTER.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a filter must be COLUMN OP VALUE, as verdict=better or confirm>0.9, got {text!r}"
        )
    column, sign, wanted = match.groups()
    _check(column, known)
    if sign not in _ORDERS:
        return column, lambda value: _is_alike(value, wanted) == (sign == "=")
    try:
        number = float(wanted)
    except ValueError:
        raise ValueError(f"`{sign}` needs a number, got {wanted!r} in {text!r}") from None
    order = _ORDERS[sign]
    return column, lambda value: isinstance(value, int | float) and order(value, number)


def _is_alike(value: Any, wanted: str) -> bool:
    if value is None:
        return wanted == ""
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if isinstance(value, int | float):
        try:
            return value == float(wanted)
        except ValueError:
            return False
    return fnmatchcase(value, wanted)
