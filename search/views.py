"""The leaderboard as a terminal table, Markdown and CSV. Knows rows; computes no statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..evals.comparison import Difference
from ..evals.scores import TaskScore
from .format import p_value, recipe_line, score, short, signed
from .leaderboard import Leaderboard, Row

SHORT = 10
"""Best rows that the terminal table shows, besides the baselines, unless asked for all."""
TOP_RECIPES = 5
"""Candidates whose recipes are written under the terminal table."""
_WORDS = ("name", "verdict")
_GAP = 3
"""Characters between two columns."""
_FIRST_TASK = 3
"""Place of the first task's column, after rank, name and verdict."""


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


def columns(board: Leaderboard) -> list[str]:
    """Return the titles of the Markdown page's columns."""
    return [
        "rank",
        "name",
        "verdict",
        *(f"{task} search ± SE" for task in board.tasks),
        "search ± SE",
        *(f"{task} confirm ± SE" for task in board.tasks),
        "confirm ± SE",
        f"Δ {board.best_parent or 'best parent'}",
        "p",
        "Δ uniform",
        "p",
        *(f"guard {task} ± SE" for task in board.guards),
        "recipe",
    ]


def cells(board: Leaderboard, row: Row) -> list[str]:
    """Return the texts of a row of the Markdown page."""
    candidate = row.candidate
    return [
        "-" if row.rank is None else str(row.rank),
        _marked_name(row),
        row.verdict,
        *(_score(candidate.scores.get(task)) for task in board.tasks),
        _score(row.search),
        *(_score(row.confirm_tasks.get(task)) for task in board.tasks),
        _score(row.confirm),
        *_difference(row.to_parent),
        *_difference(row.to_uniform),
        *(_score(row.guard.get(task)) for task in board.guards),
        _recipe(row),
    ]


def _marked_name(row: Row) -> str:
    """Name of a row; baselines are marked with an asterisk."""
    return f"{row.candidate.name} *" if row.candidate.is_baseline else row.candidate.name


def _recipe(row: Row) -> str:
    """The recipe in one line, or why there is no score."""
    return row.candidate.failure or recipe_line(row.candidate.recipe)


def _score(value: TaskScore | None, write: Callable[[float, float], str] = score) -> str:
    return "-" if value is None else write(value.value, value.se)


def _difference(difference: Difference | None) -> tuple[str, str]:
    return ("-", "-") if difference is None else (signed(difference.value), p_value(difference.p))


def table(board: Leaderboard, rows: int | None = SHORT, width: int = 200) -> Group:
    """Return the leaderboard for a terminal: the best rows, all baselines, then the recipes.

    Args:
        board: What to show.
        rows: How many of the best rows; None: all.
        width: Of the terminal in characters; columns that do not fit are left out whole.
    """
    shown = [
        row
        for row in board.rows
        if rows is None or (row.rank and row.rank <= rows) or row.candidate.is_baseline
    ]
    titles = _short_columns(board)
    texts = [_short_cells(board, row) for row in shown]
    kept = _columns_that_fit(titles, texts, width, len(board.tasks), len(board.guards))
    view = Table(title=_title(board), title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)
    for column in kept:
        is_word = titles[column] in _WORDS
        view.add_column(titles[column], no_wrap=True, justify="left" if is_word else "right")
    for row, cells_ in zip(shown, texts, strict=True):
        view.add_row(*(cells_[column] for column in kept), style=_style(row))
    searched = [row for row in shown if not row.candidate.is_baseline]
    recipes = [f"{row.candidate.name}: {_recipe(row)}" for row in searched[:TOP_RECIPES]]
    return Group(view, *(Text(line, overflow="fold") for line in recipes))


def _columns_that_fit(
    titles: Sequence[str], texts: Sequence[Sequence[str]], width: int, tasks: int, guards: int
) -> list[int]:
    """Leave out guards, then tasks, then the search score, then differences, until it fits."""
    kept = list(range(len(titles)))
    first = _FIRST_TASK
    groups = [
        range(len(titles) - guards, len(titles)),
        range(first, first + tasks),
        range(first + tasks, first + tasks + 1),
        range(first + tasks + 2, first + tasks + 6),
        range(2, 3),
    ]
    needed = [max(len(text) for text in column) for column in zip(titles, *texts, strict=True)]
    for group in groups:
        if sum(needed[column] + _GAP for column in kept) <= width:
            break
        kept = [column for column in kept if column not in group]
    return kept


def _title(board: Leaderboard) -> str:
    return board.name if board.finished else f"{board.name} (unfinished)"


def _short_columns(board: Leaderboard) -> list[str]:
    tasks, guards = (_without_prefix(names) for names in (board.tasks, board.guards))
    differences = ["Δ parent", "p", "Δ uniform", "p"]
    return ["#", "name", "verdict", *tasks, "search", "confirm", *differences, *guards]


def _short_cells(board: Leaderboard, row: Row) -> list[str]:
    candidate = row.candidate
    return [
        "-" if row.rank is None else str(row.rank),
        _marked_name(row),
        row.verdict,
        *(_score(candidate.scores.get(task), short) for task in board.tasks),
        _score(row.search, short),
        _score(row.confirm, short),
        *_difference(row.to_parent),
        *_difference(row.to_uniform),
        *(_score(row.guard.get(task), short) for task in board.guards),
    ]


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Drop what all names begin with, up to an underscore: room is short on a terminal."""
    first, last = min(names, default=""), max(names, default="")
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    start = first[:shared].rfind("_") + 1 if len(names) > 1 else 0
    return [name[start:] for name in names]


def _style(row: Row) -> str:
    if row.verdict == "better":
        return "green"
    if row.verdict in ("failed", "worse"):
        return "red"
    return "dim" if row.verdict == "unconfirmed" else ""


def markdown(board: Leaderboard) -> str:
    """Return the leaderboard as a Markdown page."""
    titles = columns(board)
    lines = [
        f"# {_title(board)}",
        "",
        verdict_sentence(board),
        "",
        *_notes(board),
        "",
        _markdown_line(titles),
        _markdown_line(["---"] * len(titles)),
        *(_markdown_line(cells(board, row)) for row in board.rows),
        "",
    ]
    return "\n".join(lines)


def _notes(board: Leaderboard) -> Iterable[str]:
    objective = board.objective
    shares = ", ".join(f"{task} ({share:.0%})" for task, share in objective.shares.items())
    yield (
        f"Objective: {objective.rule} of {shares}. Ranked by it on the confirm items, then on "
        "the search items. Rows marked * are null baselines. Δ is the paired difference in the "
        f"objective to {board.best_parent} (the best parent) and to the uniform merge on the "
        "confirm items; p is two-sided and, for searched candidates, Holm-corrected for the number "
        "of finalists."
    )


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "·").replace("\n", " ") for text in texts) + " |"


def csv_text(board: Leaderboard) -> str:
    """Return the leaderboard as CSV: numbers in full, one column each."""
    tasks, guards = board.tasks, board.guards
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["rank", "trial", "name", "baseline", "verdict", "search", "search_se"]
    for split, names in (("search", tasks), ("confirm", tasks), ("guard", guards)):
        header += [f"{split}:{name}{suffix}" for name in names for suffix in ("", ":se", ":n")]
    header += ["confirm", "confirm_se", "best_parent"]
    for other in ("parent", "uniform"):
        header += [f"vs_{other}", f"vs_{other}_se", f"vs_{other}_p"]
    writer.writerow([*header, "seconds", "failure", "recipe", "digest"])
    writer.writerows(_csv_row(board, row) for row in board.rows)
    return out.getvalue()


def _csv_row(board: Leaderboard, row: Row) -> list[object]:
    candidate = row.candidate
    out: list[object] = [row.rank, candidate.number, candidate.name, candidate.is_baseline]
    out += [row.verdict, *_numbers(row.search)[:2]]
    for scores, names in (
        (candidate.scores, board.tasks),
        (row.confirm_tasks, board.tasks),
        (row.guard, board.guards),
    ):
        out += [number for name in names for number in _numbers(scores.get(name))]
    out += [*_numbers(row.confirm)[:2], board.best_parent]
    for difference in (row.to_parent, row.to_uniform):
        found = difference is not None
        out += [difference.value, difference.se, difference.p] if found else ["", "", ""]
    recipe = candidate.recipe
    return [*out, candidate.seconds, candidate.failure, recipe_line(recipe), recipe.digest]


def _numbers(value: TaskScore | None) -> list[object]:
    return ["", "", ""] if value is None else [value.value, value.se, value.n]


def write_views(board: Leaderboard) -> tuple[Path, Path]:
    """Write leaderboard.md and .csv into the study's folder, each whole or not at all."""
    pages = {"leaderboard.md": markdown(board), "leaderboard.csv": csv_text(board)}
    for name, text in pages.items():
        write_whole(board.folder / name, text)
    return board.folder / "leaderboard.md", board.folder / "leaderboard.csv"


def write_whole(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
