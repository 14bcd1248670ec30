"""The leaderboard as a terminal table and Markdown. Knows rows; computes no statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from .columns import (
    GUARD_MARK,
    PARENT,
    RECIPE,
    UNIFORM,
    guard_reference,
    page_columns,
    recipe,
    terminal_columns,
)
from .dissection import shows_loss
from .format import score, signed
from .leaderboard import Leaderboard, Row
from .sheet import csv_text
from .tables import markdown_table, terminal_table

SHORT = 10
"""Best rows that the terminal table shows, besides the baselines, unless asked for all."""
TOP_RECIPES = 5
"""Candidates whose recipes are written under the terminal table."""
TOP_GENES = 5
"""Genes that are named, of those that matter."""


def verdict_sentence(board: Leaderboard) -> str:
    """Say in one sentence what the search has found, on items that it never saw."""
    winner, baseline = board.winner, board.best_baseline
    if winner is None:
        best = f"; the best is {baseline.candidate.name}" if baseline else ""
        return f"No candidate has been scored yet, only baselines{best}."
    if winner.confirm is None or baseline is None or baseline.confirm is None:
        return f"{winner.candidate.name} leads the search items; nothing is confirmed yet."
    facts = (
        f"{score(winner.confirm.value)} against {score(baseline.confirm.value)} of the best "
        f"baseline ({baseline.candidate.name}) on {winner.confirm.n} items the search never saw"
    )
    name = winner.candidate.name
    if winner.verdict == "better":
        return f"{name} beats every baseline: {facts}."
    if winner.verdict == "worse":
        return f"{name} is worse than the best baseline: {facts}."
    return f"{name} is not shown to beat every baseline (not {winner.unbeaten}): {facts}."


def found_lines(board: Leaderboard) -> Iterator[str]:
    """Say what the search has found, and how much of it to believe."""
    yield verdict_sentence(board)
    yield from luck_lines(board)


def luck_lines(board: Leaderboard) -> Iterator[str]:
    """Say how much of the winner is luck, which genes matter, and what it can do without."""
    winner = board.winner
    if winner is None or winner.search is None:
        return
    if board.inflation is not None:
        tried = sum(row.candidate.is_searched and row.search is not None for row in board.rows)
        yield (
            f"The best search score of {tried} candidates is expected to be {board.inflation:.4f} "
            "too high, by luck; confirm scores are free of that."
        )
    if board.masks and winner.confirm:
        values = [mask.value for mask in board.masks]
        yield (
            f"Under {len(values)} other masks {winner.candidate.name} has confirm scores of "
            f"{min(values):.4f} to {max(values):.4f} (its own: {score(winner.confirm.value)})."
        )
    yield from _gene_lines(board)


def _gene_lines(board: Leaderboard) -> Iterator[str]:
    dissection = board.dissection
    if dissection is None or not dissection.effects:
        return
    order = sorted(dissection.effects, key=lambda group: dissection.effects[group].value)
    matter = [group for group in order if shows_loss(dissection.effects[group])]
    worst = ", ".join(f"{g} ({signed(dissection.effects[g].value)})" for g in matter[:TOP_GENES])
    more = f" and {len(matter) - TOP_GENES} more" if len(matter) > TOP_GENES else ""
    yield (
        f"Of {len(order)} genes, set to the uniform merge's one at a time on the search items, "
        + (f"{len(matter)} matter: {worst}{more}." if matter else "none is shown to matter.")
    )
    if dissection.simplest is not None:
        yield (
            f"{len(dissection.simplest.reset)} of them can go together without a loss shown: "
            f"trial {dissection.simplest.number}."
        )


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
    columns = terminal_columns(board)
    view, missing = terminal_table(title, columns, shown, width, _style)
    lines = [_legend(board, [c.title for c in columns if c not in missing])]
    if missing:
        names = ", ".join(dict.fromkeys(column.title for column in missing))
        lines.append(f"Left out at {width} columns: {names}; `--format md` or `csv` has all.")
    if rows is None and len(shown) < len(board.rows):
        lines.append(f"{len(shown)} of {len(board.rows)} rows; `--all` shows the others.")
    if RECIPE in [column.title for column in missing]:
        searched = [row for row in shown if row.candidate.is_searched]
        lines += [f"{row.candidate.name}: {recipe(row)}" for row in searched[:TOP_RECIPES]]
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
    guards = guard_reference(board)
    if any(title.startswith(GUARD_MARK) for title in titles):
        parts.append(f"{GUARD_MARK}: the same on guard tasks, to {guards}")
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
        "  \n".join(found_lines(board)),
        "",
        *_notes(board),
        "",
        *markdown_table(page_columns(board), board.rows if rows is None else rows),
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
        write_whole(board.folder / name, text)
    return board.folder / "leaderboard.md", board.folder / "leaderboard.csv"


def write_whole(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
