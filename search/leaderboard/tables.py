"""Tables for a terminal and Markdown: which columns fit, how lines are written. Knows no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.cells import cell_len
from rich.table import Table

from .columns import ViewColumn

T = TypeVar("T")
_GAP = 2
"""Characters between two columns."""


def terminal_table(
    title: str,
    columns: Sequence[ViewColumn[T]],
    rows: Sequence[T],
    width: int,
    style: Callable[[T], str],
) -> tuple[Table, list[ViewColumn[T]]]:
    """Return a table of the columns that fit a width, and the columns left out.

    Columns of equal `leave_out` are left out together, the lowest number first. Their cells are
    computed only until one group does not fit.
    """
    cells: dict[int, list[str]] = {}
    remaining = width + _GAP
    for step in sorted({c.leave_out for c in columns}, key=lambda step: (step > 0, -step)):
        group = [(index, c) for index, c in enumerate(columns) if c.leave_out == step]
        new = {index: [c.text(row) for row in rows] for index, c in group}
        remaining -= sum(_GAP + max(map(cell_len, [c.title, *new[index]])) for index, c in group)
        if step and remaining < 0:
            break
        cells |= new
    table = Table(
        title=title,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    kept = sorted(cells)
    for index in kept:
        justify = "right" if columns[index].kind.is_number else "left"
        table.add_column(columns[index].title, no_wrap=True, justify=justify)
    for number, row in enumerate(rows):
        table.add_row(*(cells[index][number] for index in kept), style=style(row))
    return table, [column for index, column in enumerate(columns) if index not in cells]


def left_out(missing: Sequence[ViewColumn[T]], width: int) -> list[str]:
    """Return a note on the columns left out at a width; none if all fit."""
    names = ", ".join(dict.fromkeys(column.title for column in missing))
    note = f"Left out at {width} columns: {names}; `--format md` or `csv` shows all."
    return [note] if missing else []


def markdown_table(columns: Sequence[ViewColumn[T]], rows: Sequence[T]) -> list[str]:
    """Return the lines of a Markdown table with all columns."""
    return [
        _markdown_line(column.title for column in columns),
        _markdown_line(["---"] * len(columns)),
        *(_markdown_line(column.text(row) for column in columns) for row in rows),
    ]


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "·").replace("\n", " ") for text in texts) + " |"
