"""Tables as a terminal and as Markdown: which columns fit, how lines are made. Knows no rows."""

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
    style: Callable[[T], str] = lambda _: "",
) -> tuple[Table, list[ViewColumn[T]]]:
    """Draw the columns that fit into a width; return the others, too.

    Columns with one number in `leave_out` go together, the lowest number first. Those that are
    left out are computed no further than to see that they do not fit.
    """
    cells: dict[int, list[str]] = {}
    left = width + _GAP
    for step in sorted({c.leave_out for c in columns}, key=lambda step: (step > 0, -step)):
        group = [
            (index, column) for index, column in enumerate(columns) if column.leave_out == step
        ]
        new = {index: [c.text(row) for row in rows] for index, c in group}
        left -= sum(_GAP + max(map(cell_len, [c.title, *new[index]])) for index, c in group)
        if step and left < 0:
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


def markdown_table(columns: Sequence[ViewColumn[T]], rows: Sequence[T]) -> list[str]:
    """Lines of a Markdown table, all columns."""
    return [
        _markdown_line(column.title for column in columns),
        _markdown_line(["---"] * len(columns)),
        *(_markdown_line(column.text(row) for column in columns) for row in rows),
    ]


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "·").replace("\n", " ") for text in texts) + " |"
