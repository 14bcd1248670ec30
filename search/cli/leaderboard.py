"""The command `heterosis leaderboard`; imports no torch."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..leaderboard.board import Leaderboard, Row
    from ..leaderboard.studies import Line


class Format(StrEnum):
    """Output formats of a leaderboard."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class Selection:
    """Rows to print, and their order: the options of the command."""

    filters: Sequence[str]
    sort: str | None
    top: int | None
    all_rows: bool

    def rows(self, board: Leaderboard) -> list[Row]:
        """Return the rows of a study for a file: all that match, or the first of them."""
        from ..leaderboard.filters import select

        return select(board, self.filters, self.sort)[: self.top]

    def screen_rows(self, board: Leaderboard) -> Sequence[Row] | None:
        """Return the rows of a study for a screen; None: the default ones."""
        from ..leaderboard.views import short_rows

        if self.all_rows or self.filters or self.sort is not None:
            return self.rows(board)
        return None if self.top is None else short_rows(board, self.top)

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """Return the lines of studies side by side."""
        from ..leaderboard.filters import filtered
        from ..leaderboard.studies import side_by_side
        from ..leaderboard.studies_table import study_fields

        compared = side_by_side(lines, self.top or 1)
        return filtered(compared, study_fields(), self.filters, self.sort)


def leaderboard(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Results folder of a study, or of many.")
    ] = Path("results"),
    format_: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.table,
    all_rows: Annotated[bool, typer.Option("--all", help="Show every row.")] = False,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Show the best N rows (the table's default: 10, and all baselines); for several "
            "studies: the best N candidates of each (default: 1).",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="CSV column, highest first; -COLUMN: lowest first."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="EXPR", help="Keep rows such as verdict=better, confirm>0.9."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the searches finish, or Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between refreshes of --watch.")
    ] = 2.0,
) -> None:
    """Show the leaderboard of a study, or several studies side by side.

    Rows with the same rank do not differ significantly on the confirm items. Of several
    studies, each is one line; only those with the same letter are comparable. A narrow terminal
    leaves out columns, and says which.
    """
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.studies import read_line
    from ..storage.journal import find_studies

    selection = Selection(filters or (), sort, top, all_rows)
    if watch:
        if format_ is not Format.table:
            raise ValueError(f"`--watch` draws a table, got `--format {format_}`; leave out one")
        _watch(results, selection, interval)
        return
    folders = find_studies(results)
    if len(folders) == 1:
        _print_study(read_leaderboard(folders[0]), selection, format_)
    else:
        _print_studies([read_line(folder) for folder in folders], selection, format_)


def _print_study(board: Leaderboard, selection: Selection, format_: Format) -> None:
    """Print some rows of a study; the lines below a table are about all rows."""
    from ..leaderboard import views
    from ..leaderboard.formats import csv_text, json_text

    if format_ is not Format.table:
        write = {"md": views.markdown, "csv": csv_text, "json": json_text}[format_]
        typer.echo(write(board, selection.rows(board)), nl=False)
        return
    screen = console()
    screen.print(views.table(board, selection.screen_rows(board), screen.width))
    for line in views.summary_lines(board):
        typer.echo(line)


def _print_studies(lines: Sequence[Line], selection: Selection, format_: Format) -> None:
    """Print studies side by side."""
    from ..leaderboard.formats import as_csv, as_json, as_records
    from ..leaderboard.studies_table import studies_markdown, studies_table, study_fields

    selected = selection.lines(lines)
    if format_ is Format.table:
        screen = console()
        screen.print(studies_table(selected, screen.width))
    elif format_ is Format.md:
        typer.echo(studies_markdown(selected), nl=False)
    else:
        write = as_csv if format_ is Format.csv else as_json
        typer.echo(write(as_records(study_fields(), selected)), nl=False)


def _watch(results: Path, selection: Selection, interval: float) -> None:
    """Refresh the screen until the searches have ended, then print its last state."""
    from rich.console import Group
    from rich.text import Text

    from ..leaderboard.sentences import summary_lines
    from ..leaderboard.watch import Follower, watch
    from ..storage.journal import find_studies

    screen = console()
    follower = Follower(lambda: find_studies(results))

    def result(lines: list[Line]) -> Iterable[str]:
        return summary_lines(lines[0].board) if len(lines) == 1 and lines[0].board else ()

    def draw(lines: list[Line]) -> RenderableType:
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        title = f"{len(lines)} studies"
        if len(lines) == 1:
            title = f"{lines[0].name}: {lines[0].state}"
        return Group(
            Text(f"{title}; {now}; Ctrl-C stops watching, not the search", style="dim"),
            *map(Text, result(lines)),
            _table(lines, selection, screen.width),
        )

    last = watch(screen, follower.look, draw, interval)
    if last:
        screen.print(_table(last, selection, screen.width))
        for line in result(last):
            typer.echo(line)


def _table(lines: list[Line], selection: Selection, width: int) -> RenderableType:
    """Return the table of one study, or of studies side by side."""
    from ..leaderboard.studies_table import studies_table
    from ..leaderboard.views import table

    if len(lines) == 1 and lines[0].board is not None:
        board = lines[0].board
        return table(board, selection.screen_rows(board), width)
    return studies_table(selection.lines(lines), width, hint=False)
