"""The command `heterosis leaderboard`: its options, and what a person reads.

Knows boards, views and sheets by what they do; no torch.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import console, say

if TYPE_CHECKING:
    from .leaderboard import Leaderboard


class Format(StrEnum):
    """How a leaderboard is written."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


def leaderboard(
    results: Annotated[
        Path, typer.Argument(metavar="[RESULTS]", help="A study, or a folder of studies.")
    ] = Path("results"),
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    all_rows: Annotated[bool, typer.Option("--all", help="Every row of the table.")] = False,
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
) -> None:
    """Show the leaderboard of a study, or of all studies in a folder."""
    from .journal import StudyError, find_studies
    from .leaderboard import read_leaderboard
    from .selecting import select
    from .sheet import json_text

    folders, boards = find_studies(results), []
    for folder in folders:
        try:
            boards.append(read_leaderboard(folder))
        except StudyError as error:
            if len(folders) == 1:
                raise
            sys.stderr.write(f"heterosis: {error}\n")
    chosen = [select(board, filters or (), sort) for board in boards]
    if format_ is Format.json:
        sys.stdout.write(json_text(chosen))
        return
    is_whole = all_rows or bool(filters) or sort is not None
    for board, some in zip(boards, chosen, strict=True):
        _print_board(board, some, format_, is_whole)


def _print_board(board: Leaderboard, some: Leaderboard, format_: Format, is_whole: bool) -> None:
    """Print some rows of a board; what is said under a table is said of the whole board."""
    from . import views
    from .sheet import csv_text

    if format_ is not Format.table:
        write = views.markdown if format_ is Format.md else csv_text
        sys.stdout.write(write(some))
        return
    screen = console()
    screen.print(views.table(some, rows=None if is_whole else views.SHORT, width=screen.width))
    for line in views.found_lines(board):
        say(screen, line)
