"""The leaderboard as a terminal table and Markdown. Knows rows; computes no statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..evals.audit import Audit
from ..evals.comparison import Difference
from ..evals.scores import TaskScore
from .dissection import shows_loss
from .format import p_value, recipe_line, score, short, signed
from .leaderboard import Leaderboard, Row
from .sheet import csv_text

SHORT = 10
"""Best rows that the terminal table shows, besides the baselines, unless asked for all."""
TOP_RECIPES = 5
"""Candidates whose recipes are written under the terminal table."""
TOP_GENES = 5
"""Genes that are named, of those that matter."""
_WORDS = ("name", "verdict")
_GAP = 3
"""Characters between two columns."""


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


@dataclass(frozen=True)
class Column:
    """One column of a view.

    Attributes:
        title: At its head.
        text: A row's cell.
        leave_out: Order in which a narrow terminal does without it, from 1; 0 is never.
    """

    title: str
    text: Callable[[Row], str]
    leave_out: int = 0


def _page_columns(board: Leaderboard) -> list[Column]:
    """Columns of the Markdown page: every task on both splits, and the recipe."""
    return [
        *_first_columns("rank"),
        *_task_columns(_search_of, board.tasks, [f"{task} search ± SE" for task in board.tasks]),
        *_term_columns(board),
        Column("search ± SE", lambda row: _score(row.search)),
        *_task_columns(_confirm_of, board.tasks, [f"{task} confirm ± SE" for task in board.tasks]),
        Column("confirm ± SE", lambda row: _score(row.confirm)),
        *_front_columns(board),
        *_difference_columns(board.best_parent or "best parent"),
        *_task_columns(_guard_of, board.guards, [f"guard {task} ± SE" for task in board.guards]),
        *_audit_columns(board, [f"{task} answers" for task in board.audited], _audit),
        Column("recipe", _recipe),
    ]


def _terminal_columns(board: Leaderboard) -> list[Column]:
    """Columns of the terminal table: short numbers, no recipe."""
    tasks, guards = (_without_prefix(names) for names in (board.tasks, board.guards))
    return [
        *_first_columns("#"),
        *_task_columns(_search_of, board.tasks, tasks, short, leave_out=2),
        *_term_columns(board, leave_out=2),
        Column("search", lambda row: _score(row.search, short), leave_out=3),
        Column("confirm", lambda row: _score(row.confirm, short)),
        *_front_columns(board),
        *_difference_columns("parent"),
        *_task_columns(_guard_of, board.guards, guards, short, leave_out=1),
        *_audit_columns(board, [f"{task} cut" for task in board.audited], _cut),
    ]


def _first_columns(rank: str) -> list[Column]:
    return [
        Column(rank, lambda row: "-" if row.rank is None else str(row.rank)),
        Column("name", _marked_name),
        Column("verdict", lambda row: row.verdict, leave_out=5),
    ]


def _task_columns(
    scores: Callable[[Row], Mapping[str, TaskScore]],
    tasks: Sequence[str],
    titles: Sequence[str],
    write: Callable[[float, float], str] = score,
    leave_out: int = 0,
) -> list[Column]:
    return [
        Column(title, lambda row, task=task: _score(scores(row).get(task), write), leave_out)
        for task, title in zip(tasks, titles, strict=True)
    ]


def _audit_columns(
    board: Leaderboard, titles: Sequence[str], write: Callable[[Audit | None], str]
) -> list[Column]:
    return [
        Column(title, lambda row, task=task: write(row.candidate.audit.get(task)), leave_out=1)
        for task, title in zip(board.audited, titles, strict=True)
    ]


def _cut(audit: Audit | None) -> str:
    """Share of answers that the token limit cut short."""
    return "-" if audit is None else f"{audit.truncated:.0%}"


def _audit(audit: Audit | None) -> str:
    """How the answers came about, in words."""
    if audit is None:
        return "-"
    return (
        f"{audit.truncated:.0%} cut short, {audit.no_answer:.0%} without an answer, "
        f"{audit.length:.0f} tokens, {audit.repetition:.0%} repeated"
    )


def _difference_columns(parent: str) -> list[Column]:
    return [
        Column(f"Δ {parent}", lambda row: _difference(row.to_parent), leave_out=4),
        Column("p", lambda row: _p(row.to_parent), leave_out=4),
        Column("Δ uniform", lambda row: _difference(row.to_uniform), leave_out=4),
        Column("p", lambda row: _p(row.to_uniform), leave_out=4),
    ]


def _search_of(row: Row) -> Mapping[str, TaskScore]:
    return row.candidate.scores


def _confirm_of(row: Row) -> Mapping[str, TaskScore]:
    return row.confirm_tasks


def _guard_of(row: Row) -> Mapping[str, TaskScore]:
    return row.guard


def _marked_name(row: Row) -> str:
    """Name of a row; baselines are marked with an asterisk."""
    return f"{row.candidate.name} *" if row.candidate.is_baseline else row.candidate.name


def _recipe(row: Row) -> str:
    """The recipe in one line, or why there is no score."""
    return row.candidate.failure or recipe_line(row.candidate.recipe)


def _score(value: TaskScore | None, write: Callable[[float, float], str] = score) -> str:
    return "-" if value is None else write(value.value, value.se)


def _difference(difference: Difference | None) -> str:
    return "-" if difference is None else signed(difference.value)


def _p(difference: Difference | None) -> str:
    return "-" if difference is None else p_value(difference.p)


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
    view = Table(
        title=f"{_title(board)}: {board.objective.phrase}",
        title_justify="left",
        pad_edge=False,
        box=box.SIMPLE_HEAD,
    )
    columns = _columns_that_fit(_terminal_columns(board), shown, width)
    for column in columns:
        justify = "left" if column.title in _WORDS else "right"
        view.add_column(column.title, no_wrap=True, justify=justify)
    for row in shown:
        view.add_row(*(column.text(row) for column in columns), style=_style(row))
    searched = [row for row in shown if row.candidate.is_searched]
    recipes = [f"{row.candidate.name}: {_recipe(row)}" for row in searched[:TOP_RECIPES]]
    return Group(view, *(Text(line, overflow="fold") for line in recipes))


def _columns_that_fit(columns: list[Column], rows: Sequence[Row], width: int) -> list[Column]:
    """Leave out groups of columns, in their order, until the rest fits."""
    for step in range(1, max(column.leave_out for column in columns) + 1):
        widths = [max(map(len, [c.title, *map(c.text, rows)])) + _GAP for c in columns]
        if sum(widths) <= width:
            break
        columns = [column for column in columns if column.leave_out != step]
    return columns


def _title(board: Leaderboard) -> str:
    return board.name if board.finished else f"{board.name} (unfinished)"


def _front_columns(board: Leaderboard) -> list[Column]:
    """Whether a row is on the front, where there is one."""
    if not board.objective.has_several:
        return []
    return [Column("front", lambda row: "yes" if row.is_on_front else "-")]


def _term_columns(board: Leaderboard, leave_out: int = 0) -> list[Column]:
    """Search scores of what is optimised and is no task's metric."""
    return [
        Column(
            term.title,
            lambda row, name=term.name: _score(row.candidate.terms.get(name)),
            leave_out,
        )
        for term in board.columns
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
    return "dim" if row.verdict in ("unconfirmed", "raced") else ""


def markdown(board: Leaderboard) -> str:
    """Return the leaderboard as a Markdown page."""
    columns = _page_columns(board)
    lines = [
        f"# {_title(board)}",
        "",
        "  \n".join(found_lines(board)),
        "",
        *_notes(board),
        "",
        _markdown_line(column.title for column in columns),
        _markdown_line(["---"] * len(columns)),
        *(_markdown_line(column.text(row) for column in columns) for row in board.rows),
        "",
    ]
    return "\n".join(lines)


def _notes(board: Leaderboard) -> Iterable[str]:
    objective = board.objective
    front = " (ranked and compared by their mean)" if objective.has_several else ""
    yield (
        f"Objective: {objective.phrase}{front}. Ranked by it on the confirm items, then on "
        "the search items. Rows marked * are null baselines. Δ is the paired difference in the "
        f"objective to {board.best_parent} (the best parent) and to the uniform merge on the "
        "confirm items; p is two-sided and, for searched candidates, Holm-corrected for the number "
        "of finalists. Raced candidates were stopped when they were losing to the best so far; "
        "their search scores are estimates for all items."
    )
    if board.audited:
        yield (
            "Generated answers, on the search items: share cut short at the token limit, share in "
            "which the task's filter found no answer, mean length, mean share of repeated 4-grams. "
            "Where they differ between rows, so may scores, with no difference in skill."
        )


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "·").replace("\n", " ") for text in texts) + " |"


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
