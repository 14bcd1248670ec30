"""The command `heterosis leaderboard`: its options, and what a person reads.

Knows boards, studies, views and sheets by what they do; no torch.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import console, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..leaderboard.board import Leaderboard, Row
    from ..leaderboard.studies import Line


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


@dataclass(frozen=True)
class Choice:
    """Which rows are asked for, in which order."""

    filters: Sequence[str]
    sort: str | None
    top: int | None
    is_whole: bool

    def of_study(self, board: Leaderboard) -> list[Row]:
        """Rows of a study for a file: all that pass, or the best of them."""
        from ..leaderboard.filters import select

        rows = select(board, self.filters, self.sort)
        return rows if self.top is None else rows[: self.top]

    def of_table(self, board: Leaderboard) -> Sequence[Row] | None:
        """Rows of a study for a screen; None: the usual few."""
        from ..leaderboard.views import short_rows

        if self.is_whole or self.filters or self.sort is not None:
            return self.of_study(board)
        return None if self.top is None else short_rows(board, self.top)

    def of_studies(self, lines: Sequence[Line]) -> list[Line]:
        """Lines of studies side by side."""
        from ..leaderboard.filters import chosen
        from ..leaderboard.studies import side_by_side, study_fields

        found = side_by_side(lines, self.top or 1)
        return chosen(found, study_fields(), self.filters, self.sort)


def leaderboard(
    results: Annotated[
        Path, typer.Argument(metavar="[RESULTS]", help="A study, or a folder of studies.")
    ] = Path("results"),
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    all_rows: Annotated[bool, typer.Option("--all", help="Every row of the table.")] = False,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Best rows of a study (the table's default: 10, and all baselines); of a folder "
            "of studies, candidates of each (default: 1).",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort", metavar="COLUMN", help="Of the CSV, highest first; -COLUMN: lowest."
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="EXPR", help="As verdict=better or confirm>0.9."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Draw again while searches run; ends with them, or Ctrl-C."),
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks of --watch.")
    ] = 2.0,
) -> None:
    """Show the leaderboard of a study, or studies side by side.

    Rows that share a rank are not told apart on the confirm items. Of a folder with several
    studies, each is one line; only those with the same letter can be compared. A narrow terminal
    leaves out columns, the recipe first, then seconds, items, answers cut short, guard scores,
    scores per task, differences, the search score, the verdict; what is left out is said.
    """
    from ..leaderboard.board import read_leaderboard
    from ..storage.journal import find_studies

    choice = Choice(filters or (), sort, top, all_rows)
    if watch:
        if format_ is not Format.table:
            raise ValueError(f"`--watch` draws a table, got `--format {format_}`; leave out one")
        _watch(results, choice, interval)
        return
    folders = find_studies(results)
    if len(folders) == 1:
        _print_study(read_leaderboard(folders[0]), choice, format_)
        return
    from ..leaderboard.studies import read_line

    _print_studies([read_line(folder) for folder in folders], choice, format_)


def _print_study(board: Leaderboard, choice: Choice, format_: Format) -> None:
    """Print some rows of a study; what is said beside a table is said of the whole study."""
    from ..leaderboard import views
    from ..leaderboard.formats import csv_text, json_text

    if format_ is not Format.table:
        write = {"md": views.markdown, "csv": csv_text, "json": json_text}[format_]
        sys.stdout.write(write(board, choice.of_study(board)))
        return
    screen = console()
    screen.print(views.table(board, choice.of_table(board), screen.width))
    for line in views.found_lines(board):
        say(screen, line)


def _print_studies(lines: Sequence[Line], choice: Choice, format_: Format) -> None:
    """Print studies side by side."""
    from ..leaderboard.formats import as_csv, as_json
    from ..leaderboard.studies import study_records
    from ..leaderboard.studies_table import studies_markdown, studies_table

    chosen = choice.of_studies(lines)
    if format_ is Format.table:
        screen = console()
        screen.print(studies_table(chosen, screen.width))
        return
    text = {
        Format.md: lambda: studies_markdown(chosen),
        Format.csv: lambda: as_csv(study_records(chosen)),
        Format.json: lambda: as_json(study_records(chosen)),
    }
    sys.stdout.write(text[format_]())


def _watch(results: Path, choice: Choice, interval: float) -> None:
    """Draw again until the searches have ended, then print once more what was seen last."""
    from rich.console import Group
    from rich.text import Text

    from ..leaderboard.sentences import found_lines
    from ..leaderboard.watch import Follower, watch
    from ..storage.journal import find_studies

    screen = console()
    follower = Follower(lambda: find_studies(results))

    def draw(lines: list[Line]) -> RenderableType:
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        states = ", ".join(f"{line.name}: {line.state}" for line in lines[:1])
        head = states if len(lines) == 1 else f"{len(lines)} studies"
        said = found_lines(lines[0].board) if len(lines) == 1 and lines[0].board else ()
        return Group(
            Text(f"{head}; {now}; Ctrl-C ends the watching, no search", style="dim"),
            *map(Text, said),
            _drawn(lines, choice, screen.width),
        )

    last = watch(screen, follower.look, draw, interval)
    if last:
        screen.print(_drawn(last, choice, screen.width))
        for line in found_lines(last[0].board) if len(last) == 1 and last[0].board else ():
            say(screen, line)


def _drawn(lines: list[Line], choice: Choice, width: int) -> RenderableType:
    """One study's table, or studies side by side."""
    from ..leaderboard.studies_table import studies_table
    from ..leaderboard.views import table

    if len(lines) == 1 and lines[0].board is not None:
        board = lines[0].board
        return table(board, choice.of_table(board), width)
    return studies_table(choice.of_studies(lines), width, hint=False)
