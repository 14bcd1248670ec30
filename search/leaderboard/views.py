"""The leaderboard as a terminal table and Markdown. Knows rows; computes no statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from ..storage.files import write_atomically
from .board import Leaderboard, Row
from .columns import GUARD, PARENT, RECIPE, UNIFORM, board_view, compares_guards_to_base
from .formats import csv_text
from .kinds import recipe_or_failure
from .sentences import summary_lines
from .tables import markdown_table, terminal_table

SHORT = 10
"""Best rows that the terminal table shows, besides the baselines, unless asked for all."""
TOP_RECIPES = 5
"""Candidates whose recipes are written under the terminal table."""


def short_rows(board: Leaderboard, count: int = SHORT) -> list[Row]:
    """The best rows, and all baselines."""
    return [r for r in board.rows if (r.place and r.place <= count) or r.candidate.is_baseline]


def table(board: Leaderboard, rows: Sequence[Row] | None = None, width: int = 200) -> Group:
    """Return the leaderboard for a terminal, and what to know of it.

    Args:
        board: What to show.
        rows: Which of its rows; default: `short_rows`.
        width: Of the terminal in characters; columns that do not fit are left out whole.
    """
    shown = short_rows(board) if rows is None else rows
    title = f"{_title(board)}: {board.objective.phrase}"
    columns = board_view(board, "terminal")
    view, missing = terminal_table(title, columns, shown, width, _style)
    lines = [_legend(board, [c.title for c in columns if c not in missing])]
    if missing:
        names = ", ".join(dict.fromkeys(column.title for column in missing))
        lines.append(f"Left out at {width} columns: {names}; `--format md` or `csv` has all.")
    if rows is None and len(shown) < len(board.rows):
        lines.append(f"{len(shown)} of {len(board.rows)} rows; `--all` shows the others.")
    if RECIPE in [column.title for column in missing]:
        searched = [row.candidate for row in shown if row.candidate.is_searched]
        lines += [f"{c.name}: {recipe_or_failure(c)}" for c in searched[:TOP_RECIPES]]
    return Group(view, "", *(Text(line, overflow="fold") for line in lines))


def _legend(board: Leaderboard, titles: Sequence[str]) -> str:
    """What the shown columns mean."""
    parts = ["* baseline"]
    if any(row.rank for row in board.rows):
        parts.append("rows that share a rank (#) are not told apart on the confirm items")
    if PARENT in titles and board.best_parent:
        parts.append(
            f"Δ: paired difference on the confirm items, to {board.best_parent} (the best parent)"
            + (" and to uniform" if UNIFORM in titles else "")
        )
    if any(title.startswith(GUARD) for title in titles):
        other = (
            "the base"
            if compares_guards_to_base(board)
            else f"{board.best_parent} (the best parent)"
        )
        parts.append(f"{GUARD}: the same on guard tasks, to {other}")
    return "; ".join(parts) + "."


def _title(board: Leaderboard) -> str:
    return board.name if board.finished else f"{board.name} (unfinished)"


def _style(row: Row) -> str:
    if row.verdict == "better":
        return "green"
    if row.verdict in ("failed", "worse"):
        return "red"
    return "dim" if row.verdict in ("unconfirmed", "raced") else ""


def markdown(board: Leaderboard, rows: Sequence[Row] | None = None) -> str:
    """Return the leaderboard, or some of its rows, as a Markdown page."""
    lines = [
        f"# {_title(board)}",
        "",
        "  \n".join(summary_lines(board)),
        "",
        *_notes(board),
        "",
        *markdown_table(board_view(board, "markdown"), board.rows if rows is None else rows),
        "",
    ]
    return "\n".join(lines)


def _notes(board: Leaderboard) -> Iterable[str]:
    objective = board.objective
    front = " (ranked and compared by their mean)" if objective.has_several else ""
    yield (
        f"Objective: {objective.phrase}{front}. In the order of it on the confirm items, then on "
        "the search items. Of rows that share a rank no two are told apart on the confirm items "
        "(p < 0.05 after Holm's correction); a row that was not scored there has no rank. Rows "
        "marked * are null baselines. Δ is the paired difference in the "
        f"objective to {board.best_parent} (the best parent) and to the uniform merge on the "
        "confirm items; p is two-sided and, for searched candidates, Holm-corrected for the number "
        "of finalists. Raced candidates were stopped when they were losing to the best so far; "
        "their search scores are estimates for all items. Those whose estimates were among the "
        "best were scored on the other search items, and are raced no more. Items and seconds are "
        "what the search score took."
    )
    if board.guards:
        yield (
            "Guard tasks were never searched on. Their Δ is paired, positive is better, to the "
            f"base and to {board.best_parent}; its p is not corrected, so that a loss shows."
        )
    if board.audited:
        yield (
            "Generated answers, on the search items: share cut short at the token limit, share in "
            "which the task's filter found no answer, mean length, mean share of repeated 4-grams. "
            "Where they differ between rows, so may scores, with no difference in skill."
        )


def write_views(board: Leaderboard) -> tuple[Path, Path]:
    """Write leaderboard.md and .csv into the study's folder, each whole or not at all."""
    pages = {"leaderboard.md": markdown(board), "leaderboard.csv": csv_text(board)}
    for name, text in pages.items():
        write_atomically(board.folder / name, text)
    return board.folder / "leaderboard.md", board.folder / "leaderboard.csv"
