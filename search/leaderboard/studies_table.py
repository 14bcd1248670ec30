"""The columns of studies side by side, as a terminal table and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from ..format import duration
from ..study.budget import time_spent
from . import kinds
from .board import Leaderboard
from .columns import PARENT, RECIPE, UNIFORM, Column, Fields, ViewColumn, at, fields, view_columns
from .kinds import COUNT, WORD, Kind
from .studies import DAMAGED, FINISHED, Line, incomparable, objectives
from .tables import left_out, markdown_table, terminal_table

TIME = "time"


def _hours(board: Leaderboard) -> float:
    """Hours of scoring search items, however many candidates were scored in parallel."""
    return sum(time_spent(row.candidate) for row in board.rows) / 3600


FOLDER = Kind({"": str}, lambda folder: folder.name, is_number=False)
HOURS = Kind({"": _hours}, lambda board: duration(3600 * _hours(board)))
OUTCOME = Kind({"": lambda line: line.outcome}, lambda line: line.outcome if line.board else "-",
               is_number=False)  # fmt: skip
ORDER = ("comparable", "folder", "state", "name", "found", "confirm")
"""First columns of the table; see `columns.ORDERS`."""


def study_columns() -> list[Column[Line]]:
    """Return the columns of studies side by side, in the order of CSV and JSON."""
    return [
        Column("comparable", WORD, at("comparable"), "set"),
        Column("study", WORD, at("name")),
        Column("folder", FOLDER, at("folder"), "study"),
        Column("state", WORD, at("state"), "state", 8),
        Column("found", OUTCOME, at(), "outcome", 9),
        Column("trial", COUNT, at("row.candidate.number")),
        Column("name", kinds.NAME, at("row.candidate"), "candidate", 7),
        Column("rank", kinds.RANK, at("row")),
        Column("verdict", WORD, at("row.verdict")),
        Column("search", kinds.SCORE, at("row.search")),
        Column("confirm", kinds.SCORE, at("row.confirm"), "confirm ± SE"),
        Column("confirm_n", COUNT, at("row.confirm.n")),
        Column("best_parent", WORD, at("board.best_parent")),
        Column("vs_parent", kinds.DIFFERENCE, at("row.to_parent"), PARENT, 6),
        Column("vs_uniform", kinds.DIFFERENCE, at("row.to_uniform"), UNIFORM, 5),
        Column("best_baseline", WORD, at("board.best_baseline.candidate.name")),
        Column("candidates", COUNT, at("board.searched"), "candidates", 3),
        Column("items", COUNT, at("board.items"), "items", 2),
        Column("hours", HOURS, at("board"), TIME, 4),
        Column("objective", WORD, at("board.objective.phrase")),
        Column("recipe", kinds.RECIPE, at("row.candidate"), RECIPE, 1),
        Column("reason", WORD, at("reason")),
    ]


def study_fields() -> Fields:
    """Return the plain values of studies side by side; see `columns.fields`."""
    return fields(study_columns())


def _shown() -> list[ViewColumn[Line]]:
    return view_columns(study_columns(), "terminal", ORDER)


def studies_table(lines: Sequence[Line], width: int = 200, *, hint: bool = True) -> Group:
    """Return studies as a terminal table with notes.

    Args:
        lines: Studies in order.
        width: Of the terminal in characters; columns that do not fit are left out.
        hint: Whether to name the commands that show more.
    """
    columns = _shown()
    view, missing = terminal_table("studies side by side", columns, lines, width, _style)
    notes = [*_notes(lines, [c.title for c in columns if c not in missing])]
    notes += left_out(missing, width)
    if hint:
        notes.append(
            "One study: heterosis leaderboard STUDY; a paired test of two: heterosis compare A B."
        )
    return Group(view, "", *(Text(note, overflow="fold") for note in notes))


def studies_markdown(lines: Sequence[Line]) -> str:
    """Return studies as a Markdown page."""
    columns = _shown()
    notes = _notes(lines, [column.title for column in columns])
    table = markdown_table(columns, lines)
    return "\n".join(["# Studies", "", "  \n".join(notes), "", *table, ""])


def _notes(lines: Sequence[Line], titles: Sequence[str]) -> Iterator[str]:
    """What the columns mean, what cannot be compared, and what cannot be read."""
    text = "Only scores of studies in the same set can be compared."
    if PARENT in titles:
        uniform = " and to the uniform merge" if UNIFORM in titles else ""
        text += f" Δ: paired difference on the confirm items, to the study's best parent{uniform}."
    if TIME in titles:
        text += " Time and items are those of the search scores."
    yield text
    yield from (f"{letter}: {phrase}." for letter, phrase in objectives(lines).items())
    yield from incomparable(lines)
    for line in lines:
        if line.reason:
            yield f"{line.folder.name} ({line.state}): {line.reason}"


def _style(line: Line) -> str:
    if line.state == DAMAGED:
        return "red"
    if line.row is not None and line.row.verdict == "better":
        return "green"
    return "" if line.state == FINISHED else "dim"
