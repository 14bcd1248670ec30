"""The leaderboard as a terminal table and as Markdown. Knows rows; computes no statistics."""

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
from .tables import left_out, markdown_table, terminal_table

SHORT = 10
"""Best rows of the terminal table by default, besides the baselines."""
TOP_RECIPES = 5
"""Candidates whose recipes are written below the terminal table."""


def short_rows(board: Leaderboard, count: int = SHORT) -> list[Row]:
    """Return the best rows and all baselines."""
    return [r for r in board.rows if (r.place and r.place <= count) or r.candidate.is_baseline]


def table(board: Leaderboard, rows: Sequence[Row] | None = None, width: int = 200) -> Group:
    """Return the leaderboard as a terminal table with a legend.

    Args:
        board: The leaderboard.
        rows: Rows to show; default: `short_rows`.
        width: Of the terminal in characters; columns that do not fit are left out.
    """
    shown = short_rows(board) if rows is None else rows
    title = f"{_title(board)}: {board.objective.phrase}"
    columns = board_view(board, "terminal")
    view, missing = terminal_table(title, columns, shown, width, _style)
    lines = [_legend(board, [c.title for c in columns if c not in missing])]
    lines += left_out(missing, width)
    if rows is None and len(shown) < len(board.rows):
        lines.append(f"{len(shown)} of {len(board.rows)} rows; `--all` shows all.")
    if RECIPE in [column.title for column in missing]:
        searched = [row.candidate for row in shown if row.candidate.is_searched]
        lines += [f"{c.name}: {recipe_or_failure(c)}" for c in searched[:TOP_RECIPES]]
    return Group(view, "", *(Text(line, overflow="fold") for line in lines))


def _legend(board: Leaderboard, titles: Sequence[str]) -> str:
    """The legend of the columns that are shown."""
    parts = ["* baseline"]
    if any(row.rank for row in board.rows):
        parts.append("rows of equal rank (#) are not significantly different on the confirm items")
    parent = f"{board.best_parent} (the best parent)"
    if PARENT in titles and board.best_parent:
        uniform = " and to uniform" if UNIFORM in titles else ""
        parts.append(f"Δ: paired difference on the confirm items, to {parent}{uniform}")
    if any(title.startswith(GUARD) for title in titles):
        other = "the base" if compares_guards_to_base(board) else parent
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
    front = " (rows are ranked and compared by the mean)" if objective.has_several else ""
    yield (
        f"Objective: {objective.phrase}{front}. Rows are sorted by it on the confirm items, then "
        "on the search items. Rows of equal rank are not significantly different on the confirm "
        "items (p >= 0.05 for each pair, Holm-corrected); rows without confirm scores have "
        "no rank. Rows marked * are baselines. Δ is the paired difference in the objective on the "
        f"confirm items, to {board.best_parent} (the best parent) and to the uniform merge; p is "
        "two-sided and, for candidates, Holm-corrected for the number of finalists. Raced "
        "candidates were stopped early because they were losing to the best so far; their search "
        "scores are estimates for all items. Those with the best estimates were then scored on the "
        "remaining search items and no longer count as raced. Items and seconds are those of the "
        "search score."
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
            "Where these differ between rows, scores may differ without any difference in skill."
        )


def write_views(board: Leaderboard) -> tuple[Path, Path]:
    """Write leaderboard.md and leaderboard.csv into the study's folder, atomically."""
    pages = {"leaderboard.md": markdown(board), "leaderboard.csv": csv_text(board)}
    for name, text in pages.items():
        write_atomically(board.folder / name, text)
    return board.folder / "leaderboard.md", board.folder / "leaderboard.csv"
