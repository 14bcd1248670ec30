"""Rows of a leaderboard that a person asks for, in the order that they ask for. Knows records."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ..merge.hints import hint
from .leaderboard import Leaderboard
from .sheet import Record, records

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FILTER = re.compile(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")


def select(board: Leaderboard, filters: Sequence[str], sort: str | None) -> Leaderboard:
    """Return a board of some of its rows, in another order.

    Args:
        board: What to choose from.
        filters: Each ``COLUMN OP VALUE`` with ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``, all of
            which must hold; after ``=`` and ``!=``, ``*`` and ``?`` stand for any letters. A row
            without a value passes none but ``!=``.
        sort: Column, highest number first and words by the alphabet; ``-COLUMN`` turns that round.
            Rows without a value come last.

    Raises:
        ValueError: If a filter cannot be read, or there is no such column.
    """
    found = list(zip(records(board), board.rows, strict=True))
    if not found:
        return board
    known = found[0][0]
    for text in filters:
        passes = _filter(text, known)
        found = [pair for pair in found if passes(pair[0])]
    if sort is not None:
        column = sort.removeprefix("-")
        _check(column, known)
        there = [pair for pair in found if pair[0][column] is not None]
        is_word = any(isinstance(pair[0][column], str) for pair in there)
        turned = is_word == sort.startswith("-")
        there.sort(key=lambda pair: pair[0][column], reverse=turned)
        found = there + [pair for pair in found if pair[0][column] is None]
    return replace(board, rows=tuple(row for _, row in found))


def _check(column: str, known: Record) -> None:
    if column not in known:
        raise ValueError(f"a leaderboard has no column `{column}`; {hint(column, known)}")


def _filter(text: str, known: Record) -> Callable[[Record], bool]:
    match = _FILTER.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a filter must be COLUMN OP VALUE, as verdict=better or confirm>0.9, got {text!r}"
        )
    column, sign, wanted = match.groups()
    _check(column, known)
    if sign not in _ORDERS:
        return lambda record: _is_alike(record[column], wanted) == (sign == "=")
    try:
        number = float(wanted)
    except ValueError:
        raise ValueError(f"`{sign}` needs a number, got {wanted!r} in {text!r}") from None
    order = _ORDERS[sign]

    def passes(record: Record) -> bool:
        value = record[column]
        return isinstance(value, int | float) and order(value, number)

    return passes


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
