"""Filtering and sorting of rows by their columns."""

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
    """Return the rows of a leaderboard that match filters, sorted; see `filtered`."""
    return filtered(board.rows, board_fields(board), filters, sort)


def filtered(
    rows: Sequence[T], fields: Fields, filters: Sequence[str], sort: str | None
) -> list[T]:
    """Return the rows that match filters, sorted; computes only the columns that are named.

    Args:
        rows: Any.
        fields: Columns that filters and `sort` may name.
        filters: Each ``COLUMN OP VALUE`` with ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``; a row
            must match all. After ``=`` and ``!=``, ``*`` and ``?`` are wildcards. A row without a
            value matches only ``!=``, or ``=`` with an empty value.
        sort: Column, numbers descending and words ascending; ``-COLUMN`` reverses it. Rows without
            a value come last. None keeps the order.

    Raises:
        ValueError: If a filter cannot be read, or there is no such column.
    """
    result = list(rows)
    for text in filters:
        column, matches = _filter(text, fields)
        value = fields[column]
        result = [row for row in result if matches(value(row))]
    if sort is None:
        return result
    column = sort.removeprefix("-")
    _check(column, fields)
    pairs = [(fields[column](row), row) for row in result]
    present = [pair for pair in pairs if _is_present(pair[0])]
    is_word = any(isinstance(value, str) for value, _ in present)
    present.sort(key=itemgetter(0), reverse=is_word == sort.startswith("-"))
    return [row for _, row in present] + [row for value, row in pairs if not _is_present(value)]


def _is_present(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _check(column: str, fields: Fields) -> None:
    if column not in fields:
        raise ValueError(f"a leaderboard has no column `{column}`; {hint(column, fields)}")


def _filter(text: str, fields: Fields) -> tuple[str, Callable[[Any], bool]]:
    """The column of a filter, and whether a value of it matches."""
    match = _FILTER.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a filter must be COLUMN OP VALUE, such as verdict=better or confirm>0.9, got {text!r}"
        )
    column, sign, wanted = match.groups()
    _check(column, fields)
    if sign not in _ORDERS:
        return column, lambda value: _equals(value, wanted) == (sign == "=")
    try:
        number = float(wanted)
    except ValueError:
        raise ValueError(f"`{sign}` needs a number, got {wanted!r} in {text!r}") from None
    order = _ORDERS[sign]
    return column, lambda value: isinstance(value, int | float) and order(value, number)


def _equals(value: Any, wanted: str) -> bool:
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
