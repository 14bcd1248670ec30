"""The columns of a study's leaderboard: what stands in them on a terminal and on a Markdown page.

Knows rows and how numbers are written; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from ...evals.scores.audit import Audit
from ...evals.scores.scores import AUDIT, TaskScore
from ...evals.stats.comparison import Difference
from ..format import p_value, recipe_line, score, short, signed
from .board import Leaderboard, Row
from .tables import Column

PARENT, UNIFORM, RECIPE = "Δ parent", "Δ uniform", "recipe"
GUARD_MARK = "guard Δ"
BASE = "the base"
T = TypeVar("T")
RowColumn = Column[Row]


def page_columns(board: Leaderboard) -> list[RowColumn]:
    """Columns of the Markdown page: every task on both splits, every difference, the recipe."""
    parent = board.best_parent or "best parent"
    return [
        *_first_columns("rank"),
        *_task_columns(_search_of, board.tasks, [f"{task} search ± SE" for task in board.tasks]),
        *_term_columns(board),
        Column("search ± SE", lambda row: score_text(row.search)),
        *_task_columns(_confirm_of, board.tasks, [f"{task} confirm ± SE" for task in board.tasks]),
        Column("confirm ± SE", lambda row: score_text(row.confirm)),
        *_front_columns(board),
        *difference_columns(f"Δ {parent}", lambda row: row.to_parent),
        *difference_columns(UNIFORM, lambda row: row.to_uniform),
        *_task_columns(_guard_of, board.guards, [f"guard {task} ± SE" for task in board.guards]),
        *_guard_columns(board.guards, "{} Δ base", lambda row: row.guard_to_base),
        *_guard_columns(board.guards, f"{{}} Δ {parent}", lambda row: row.guard_to_parent),
        *_audit_columns(board, [f"{task} answers" for task in board.audited], _audit_text),
        *_cost_columns(),
        Column(RECIPE, recipe, is_number=False),
    ]


def terminal_columns(board: Leaderboard) -> list[RowColumn]:
    """Columns of the terminal table; a narrow one does without some, recipes first.

    In this order: recipe, seconds, items, answers cut short, guard scores, scores per task, guard
    differences, difference to uniform, difference to the best parent, search score, verdict. Until
    a row is confirmed there are search scores alone; then scores per task are of confirm items.
    """
    tasks = _without_prefix(board.tasks)
    is_confirmed = any(row.confirm for row in board.rows)
    titles = [f"{task} ({'confirm' if is_confirmed else 'search'})" for task in tasks]
    by_task = _confirm_of if is_confirmed else _search_of
    search = 10 if is_confirmed else 0
    return [
        *_first_columns("#", leave_out=11),
        Column("search", lambda row: score_text(row.search, short), search),
        *_term_columns(board, leave_out=search),
        *([Column("confirm", _confirm)] if is_confirmed else ()),
        *_task_columns(by_task, board.tasks, titles, short, leave_out=6),
        *(_confirm_columns(board) if is_confirmed else ()),
        *_audit_columns(board, [f"{task} cut" for task in board.audited], _cut, leave_out=4),
        *_cost_columns(items=3, seconds=2),
        Column(RECIPE, recipe, 1, is_number=False),
    ]


def _confirm_columns(board: Leaderboard) -> list[RowColumn]:
    """What a short table says of confirmed rows besides their scores."""
    guards = _without_prefix(board.guards)
    against = guard_reference(board)
    return [
        *_front_columns(board),
        *difference_columns(PARENT, lambda row: row.to_parent, leave_out=9),
        *difference_columns(UNIFORM, lambda row: row.to_uniform, leave_out=8),
        *_task_columns(_guard_of, board.guards, [f"guard {g}" for g in guards], short, leave_out=5),
        *_guard_columns(
            board.guards,
            GUARD_MARK + " {}" if len(guards) > 1 else GUARD_MARK,
            lambda row: row.guard_to_base if against == BASE else row.guard_to_parent,
            leave_out=7,
        ),
    ]


def _confirm(row: Row) -> str:
    return score_text(row.confirm, short)


def guard_reference(board: Leaderboard) -> str:
    """What the terminal holds guard scores against: the base, or where that has none, a parent.

    The base, because a guard task stands for what the base could do before anyone tuned it.
    """
    has_base = any(row.guard_to_base for row in board.rows)
    return BASE if has_base else f"{board.best_parent} (the best parent)"


def _first_columns(rank: str, leave_out: int = 0) -> list[RowColumn]:
    return [
        Column(rank, lambda row: "-" if row.rank is None else str(row.rank)),
        Column("name", _marked_name, is_number=False),
        Column("verdict", lambda row: row.verdict, leave_out, is_number=False),
    ]


def _cost_columns(items: int = 0, seconds: int = 0) -> list[RowColumn]:
    return [
        Column("items", lambda row: str(row.candidate.items), items),
        Column("seconds", lambda row: f"{row.candidate.seconds:.1f}", seconds),
    ]


def _guard_columns(
    guards: Sequence[str],
    title: str,
    find: Callable[[Row], Mapping[str, Difference]],
    leave_out: int = 0,
) -> list[RowColumn]:
    """Difference and p of each guard task."""
    titles = zip(guards, _without_prefix(guards) if leave_out else guards, strict=True)
    return [
        column
        for guard, name in titles
        for column in difference_columns(title.format(name), _entry(find, guard), leave_out)
    ]


def _entry(
    find: Callable[[Row], Mapping[str, Difference]], name: str
) -> Callable[[Row], Difference | None]:
    return lambda row: find(row).get(name)


def _task_columns(
    scores: Callable[[Row], Mapping[str, TaskScore]],
    tasks: Sequence[str],
    titles: Sequence[str],
    write: Callable[[float, float], str] = score,
    leave_out: int = 0,
) -> list[RowColumn]:
    return [
        Column(title, lambda row, task=task: score_text(scores(row).get(task), write), leave_out)
        for task, title in zip(tasks, titles, strict=True)
    ]


def _audit_columns(
    board: Leaderboard,
    titles: Sequence[str],
    write: Callable[[Audit | None], str],
    leave_out: int = 0,
) -> list[RowColumn]:
    return [
        Column(title, lambda row, task=task: write(row.candidate.audit.get(task)), leave_out)
        for task, title in zip(board.audited, titles, strict=True)
    ]


def _cut(audit: Audit | None) -> str:
    """Share of answers that the token limit cut short."""
    return "-" if audit is None else f"{audit.truncated:.0%}"


def _audit_text(audit: Audit | None) -> str:
    """How the answers came about, in words."""
    if audit is None:
        return "-"
    return (
        f"{audit.truncated:.0%} cut short, {audit.no_answer:.0%} without an answer, "
        f"{audit.length:.0f} tokens, {audit.repetition:.0%} repeated"
    )


def difference_columns(
    title: str, find: Callable[[T], Difference | None], leave_out: int = 0
) -> list[Column[T]]:
    """A paired difference, and its p."""
    return [
        Column(title, lambda row: _difference(find(row)), leave_out),
        Column("p", lambda row: _p(find(row)), leave_out),
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


def recipe(row: Row) -> str:
    """The recipe in one line, or why there is no score."""
    return row.candidate.failure or recipe_line(row.candidate.recipe, row.candidate.origin)


def score_text(value: TaskScore | None, write: Callable[[float, float], str] = score) -> str:
    """A score and its standard error, or a dash."""
    return "-" if value is None else write(value.value, value.se)


def _difference(difference: Difference | None) -> str:
    return "-" if difference is None else signed(difference.value)


def _p(difference: Difference | None) -> str:
    return "-" if difference is None else p_value(difference.p)


def _front_columns(board: Leaderboard) -> list[RowColumn]:
    """Whether a row is on the front, where there is one."""
    if not board.objective.has_several:
        return []
    return [Column("front", lambda row: "yes" if row.is_on_front else "-")]


def _term_columns(board: Leaderboard, leave_out: int = 0) -> list[RowColumn]:
    """Search scores of what is optimised and is no task's metric."""
    return [
        Column(
            term.title,
            lambda row, name=term.name: score_text(row.candidate.terms.get(name)),
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


Record = dict[str, Any]
"""Column -> value of one row; None where there is none. All rows of a board have all columns."""
Fields = Mapping[str, Callable[[Any], Any]]
"""Column -> its value of a row, computed when it is asked for."""


def filled(columns: Fields, rows: Sequence[Any]) -> list[Record]:
    """Compute every column of rows."""
    return [{name: value(row) for name, value in columns.items()} for row in rows]


def fields(board: Leaderboard) -> Fields:
    """The columns of a study's leaderboard, in order."""
    found: dict[str, Callable[[Row], Any]] = {
        "rank": attrgetter("rank"),
        "place": attrgetter("place"),
        "trial": attrgetter("candidate.number"),
        "name": attrgetter("candidate.name"),
        "baseline": attrgetter("candidate.is_baseline"),
        "verdict": attrgetter("verdict"),
    }
    found |= score_fields("search", lambda row: row.search)
    for split, scores, names in (
        ("search", lambda row: row.candidate.scores, board.tasks),
        ("confirm", lambda row: row.confirm_tasks, board.tasks),
        ("guard", lambda row: row.guard, board.guards),
    ):
        for name in names:
            found |= _entry_fields(f"{split}:{name}", scores, name)
    for name in board.guards:
        found |= difference_fields(f"guard:{name}:vs_base", _guard(name, "guard_to_base"))
        found |= difference_fields(f"guard:{name}:vs_parent", _guard(name, "guard_to_parent"))
    for name in board.audited:
        found |= {f"search:{name}:{column}": _audit(name, column) for column in AUDIT}
    for term in board.columns:
        title = f"search:{term.title}"
        found |= _entry_fields(title, lambda row: row.candidate.terms, term.name)
    found |= score_fields("confirm", lambda row: row.confirm)
    found |= {"front": attrgetter("is_on_front"), "best_parent": lambda _: board.best_parent}
    found |= difference_fields("vs_parent", lambda row: row.to_parent)
    found |= difference_fields("vs_uniform", lambda row: row.to_uniform)
    return found | {
        "items": attrgetter("candidate.items"),
        "raced": attrgetter("candidate.raced"),
        "seconds": attrgetter("candidate.seconds"),
        "failure": attrgetter("candidate.failure"),
        **({"stage": partial(_stage, board)} if board.stages else {}),
        "recipe": lambda row: recipe_line(row.candidate.recipe, row.candidate.origin),
        "digest": attrgetter("candidate.recipe.digest"),
    }


def _stage(board: Leaderboard, row: Row) -> str | None:
    place = row.candidate.stage
    return None if place is None else board.stages[place]


def score_fields(name: str, find: Callable[[Any], TaskScore | None]) -> Fields:
    """Columns of a score and its standard error."""
    return {name: _part(find, "value"), f"{name}_se": _part(find, "se")}


def difference_fields(name: str, find: Callable[[Any], Difference | None]) -> Fields:
    """Columns of a paired difference: value, standard error, p."""
    return {
        name: _part(find, "value"),
        f"{name}_se": _part(find, "se"),
        f"{name}_p": _part(find, "p"),
    }


def _entry_fields(
    title: str, scores: Callable[[Row], Mapping[str, TaskScore]], name: str
) -> Fields:
    """Columns of one entry of scores: value, standard error, items."""

    def find(row: Row) -> TaskScore | None:
        return scores(row).get(name)

    parts = {"": "value", ":se": "se", ":n": "n"}
    return {f"{title}{end}": _part(find, part) for end, part in parts.items()}


def _part(find: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(find(row), name, None)


def _guard(task: str, which: str) -> Callable[[Row], Difference | None]:
    return lambda row: getattr(row, which).get(task)


def _audit(task: str, column: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.candidate.audit.get(task), column, None)
