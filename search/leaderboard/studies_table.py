"""Studies side by side as a terminal table and as Markdown. Knows lines; computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from ..format import duration, recipe_line, short
from .columns import PARENT, RECIPE, UNIFORM, difference_columns, score_text
from .studies import DAMAGED, FINISHED, Line, found, incomparable, objectives, study_fields
from .tables import Column, markdown_table, terminal_table

TIME = "time"


def studies_table(lines: Sequence[Line], width: int = 200, *, hint: bool = True) -> Group:
    """Return studies for a terminal, and what to know of them.

    Args:
        lines: In order.
        width: Of the terminal in characters; columns that do not fit are left out whole.
        hint: Whether to say which commands tell more.
    """
    columns = _columns()
    view, missing = terminal_table("studies side by side", columns, lines, width, _style)
    notes = list(_notes(lines, [c.title for c in columns if c not in missing]))
    if missing:
        names = ", ".join(dict.fromkeys(column.title for column in missing))
        notes.append(f"Left out at {width} columns: {names}; `--format md` or `csv` has all.")
    if hint:
        notes.append(
            "One study: heterosis leaderboard STUDY; whether two differ: heterosis compare A B."
        )
    return Group(view, "", *(Text(note, overflow="fold") for note in notes))


def studies_markdown(lines: Sequence[Line]) -> str:
    """Return studies as a Markdown page."""
    columns = _columns()
    notes = _notes(lines, [column.title for column in columns])
    table = markdown_table(columns, lines)
    return "\n".join(["# Studies", "", "  \n".join(notes), "", *table, ""])


def _notes(lines: Sequence[Line], titles: Sequence[str]) -> Iterator[str]:
    """What the columns mean, what cannot be compared, and what cannot be read."""
    text = "Only scores of studies of one set may be compared."
    if PARENT in titles:
        uniform = " and to the uniform merge" if UNIFORM in titles else ""
        text += f" Δ: paired difference on the confirm items, to the study's best parent{uniform}."
    if TIME in titles:
        text += " Time and items: of search scores."
    yield text
    yield from (f"{letter}: {phrase}." for letter, phrase in objectives(lines).items())
    yield from incomparable(lines)
    for line in lines:
        if line.why:
            yield f"{line.folder.name} ({line.state}): {line.why}"


def _columns() -> list[Column[Line]]:
    """Columns; a narrow terminal does without some, recipes first.

    In this order: recipe, items, candidates, time, difference to uniform, difference to the best
    parent, name of the candidate, state, what was found.
    """
    value = study_fields()
    return [
        Column("set", lambda line: line.comparable or "-", is_number=False),
        Column("study", lambda line: line.folder.name, is_number=False),
        Column("state", lambda line: line.state, 8, is_number=False),
        Column("candidate", lambda line: value["name"](line) or "-", 7, is_number=False),
        Column("found", lambda line: "-" if line.board is None else found(line), 9, False),
        Column("confirm ± SE", lambda line: score_text(line.row and line.row.confirm, short)),
        *difference_columns(PARENT, lambda line: line.row and line.row.to_parent, 6),
        *difference_columns(UNIFORM, lambda line: line.row and line.row.to_uniform, 5),
        Column("candidates", lambda line: _count(value["candidates"](line)), 3),
        Column("items", lambda line: _count(value["items"](line)), 2),
        Column(TIME, lambda line: _time(value["hours"](line)), 4),
        Column(RECIPE, lambda line: recipe_line(line.row.candidate.recipe) if line.row else "-", 1),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _time(hours: float | None) -> str:
    return "-" if hours is None else duration(3600 * hours)


def _style(line: Line) -> str:
    if line.state == DAMAGED:
        return "red"
    if line.row is not None and line.row.verdict == "better":
        return "green"
    return "" if line.state == FINISHED else "dim"
