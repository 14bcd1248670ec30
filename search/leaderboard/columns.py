"""The table of a leaderboard's columns, from which every view, file and filter is derived.

A new column is one row of `board_columns`. Knows leaderboards; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import itemgetter
from typing import Any, Generic, Literal, TypeVar

from . import kinds
from .board import Leaderboard, Row
from .kinds import DIFFERENCE, SCORE, TASK_SCORE, WORD, Cell, Kind

PARENT, UNIFORM, RECIPE, GUARD = "Δ parent", "Δ uniform", "recipe", "guard Δ"
View = Literal["terminal", "markdown", "page"]
T = TypeVar("T")
Record = dict[str, Any]
"""Key -> plain value of one row, or None. All rows of a table have all keys."""
Fields = Mapping[str, Callable[[Any], Any]]
"""Key -> function from a row to its plain value."""


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column, in every format.

    Attributes:
        key: Its name in CSV and JSON, and for filters and sorting; see `Kind.parts`.
        kind: How its quantity is split and written.
        value: Function from a row to the quantity, or None.
        terminal: Its title in the terminal; None: not shown there.
        leave_out: Order in which a narrow terminal leaves it out, from 1; 0 is never.
        markdown: Its title in Markdown.
        page: Its title on the HTML page.
        group: What ORDERS calls it; default: its key.
    """

    key: str
    kind: Kind
    value: Callable[[T], Any]
    terminal: str | None = None
    leave_out: int = 0
    markdown: str | None = None
    page: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class ViewColumn(Generic[T]):
    """A column as one view shows it; attributes as in `Column`."""

    title: str
    view: View
    kind: Kind
    value: Callable[[T], Any]
    leave_out: int

    def text(self, row: T) -> str:
        """Write a row's cell for a terminal or Markdown."""
        quantity = self.value(row)
        write = self.kind.short if self.view == "terminal" and self.kind.short else self.kind.text
        return "-" if quantity is None else write(quantity)

    def cell(self, row: T, points: bool) -> Cell:
        """Write a row's cell for the page; see `Kind.cell`."""
        return self.kind.cell(self.value(row), points)


def board_columns(board: Leaderboard) -> list[Column[Row]]:
    """Return the columns of a leaderboard, in the order of CSV and JSON."""
    is_confirmed = any(row.confirm for row in board.rows)

    def late(title: str) -> str | None:
        return title if is_confirmed else None

    parent = board.best_parent or "best parent"
    front = "front" if board.objective.has_several else None
    search = 10 if is_confirmed else 0
    several = len(board.guards) > 1
    return [
        Column("rank", kinds.RANK, at(), "#", 0, "rank", "#"),
        Column("place", kinds.COUNT, at("place")),
        Column("trial", kinds.COUNT, at("candidate.number")),
        Column("name", kinds.NAME, at("candidate"), "name", 0, "name", "name"),
        Column("baseline", WORD, at("candidate.is_baseline")),
        Column("verdict", WORD, at("verdict"), "verdict", 11, "verdict", "verdict"),
        Column("search", SCORE, at("search"), "search", search, "search ± SE", "search ± SE"),
        *(
            Column(
                f"search:{task}", TASK_SCORE, at("candidate.scores", task),
                None if is_confirmed else f"{short} (search)", 6,
                f"{task} search ± SE", f"{task} search", "search tasks",
            )
            for task, short in _shortened(board.tasks)
        ),
        *(
            Column(
                f"confirm:{task}", TASK_SCORE, at("confirm_tasks", task),
                late(f"{short} (confirm)"), 6,
                f"{task} confirm ± SE", late(f"{task} confirm"), "confirm tasks",
            )
            for task, short in _shortened(board.tasks)
        ),
        *(
            Column(
                f"guard:{task}", TASK_SCORE, at("guard", task),
                late(f"guard {short}"), 5, f"guard {task} ± SE", late(f"guard {task}"), "guards",
            )
            for task, short in _shortened(board.guards)
        ),
        *(
            Column(
                f"guard:{task}:vs_{other}", DIFFERENCE, at(f"guard_to_{other}", task),
                late(f"{GUARD} {short}" if several else GUARD) if is_shown else None, 7,
                f"{task} Δ {name}", None, f"guards to {other}",
            )
            for task, short in _shortened(board.guards)
            for other, name, is_shown in (
                ("base", "base", compares_guards_to_base(board)),
                ("parent", parent, not compares_guards_to_base(board)),
            )
        ),
        *(
            Column(
                f"search:{task}", kinds.ANSWERS, at("candidate.audit", task),
                f"{task} cut", 4, f"{task} answers", f"{task} cut", "answers",
            )
            for task in board.audited
        ),
        *(
            Column(
                f"search:{term.title}", kinds.TERM, at("candidate.terms", term.name),
                term.title, search, term.title, None, "terms",
            )
            for term in board.other_terms
        ),
        Column("confirm", SCORE, at("confirm"),
               late("confirm"), 0, "confirm ± SE", late("confirm ± SE")),
        Column("front", kinds.YES, at("is_on_front"), front and late(front), 0, front),
        Column("best_parent", WORD, lambda _: board.best_parent),
        Column("vs_parent", DIFFERENCE, at("to_parent"),
               late(PARENT), 9, f"Δ {parent}", late(f"Δ {parent_name(parent)} [95 %]")),
        Column("vs_uniform", DIFFERENCE, at("to_uniform"),
               late(UNIFORM), 8, UNIFORM, late(f"{UNIFORM} [95 %]")),
        Column("items", kinds.COUNT, at("candidate.items"), "items", 3, "items", "items"),
        Column("raced", WORD, at("candidate.raced")),
        Column("seconds", kinds.SECONDS, at("candidate.seconds"),
               "seconds", 2, "seconds", "seconds"),
        Column("failure", WORD, at("candidate.failure")),
        *([Column("stage", WORD, board.stage_of)] if board.stages else ()),
        Column("recipe", kinds.RECIPE, at("candidate"),
               RECIPE, 1, RECIPE, "recipe, or why it failed"),
        Column("digest", WORD, at("candidate.recipe.digest")),
    ]  # fmt: skip


_FIRST = ("rank", "name", "verdict")
_DIFFERENCES = ("front", "vs_parent", "vs_uniform")
_LAST = ("guards", "guards to base", "guards to parent", "answers", "items", "seconds", "recipe")
ORDERS: Mapping[View, Sequence[str]] = {
    "terminal": (*_FIRST, "search", "terms", "confirm", "search tasks", "confirm tasks",
                 *_DIFFERENCES, *_LAST),
    "markdown": (*_FIRST, "search tasks", "terms", "search", "confirm tasks", "confirm",
                 *_DIFFERENCES, *_LAST),
    "page": (*_FIRST, "search", "confirm", *_DIFFERENCES, "confirm tasks", "guards",
             "search tasks", *_LAST[3:]),
}  # fmt: skip
"""View -> columns in its order; one that is not named comes right after the one before it."""


def board_view(board: Leaderboard, view: View) -> list[ViewColumn[Row]]:
    """Return the columns of a leaderboard that a view shows, in its order."""
    return view_columns(board_columns(board), view, ORDERS[view])


def board_fields(board: Leaderboard) -> Fields:
    """Return the plain values of a leaderboard's rows; see `fields`."""
    return fields(board_columns(board))


def compares_guards_to_base(board: Leaderboard) -> bool:
    """Whether the terminal compares guard scores with the base; else with the best parent.

    A guard task measures what the base could do before fine-tuning.
    """
    return any(row.guard_to_base for row in board.rows)


def parent_name(name: str | None) -> str:
    """Return a parent's name without the ``parent:`` of its row."""
    return (name or "").removeprefix("parent:")


def _shortened(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names, each with a short form for narrow terminals: without the first words of all."""
    words = [name.split("_")[:-1] for name in names] if len(names) > 1 else []
    shared = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False)))
    return [(name, "_".join(name.split("_")[shared:])) for name in names]


def at(path: str = "", entry: str | None = None) -> Callable[[Any], Any]:
    """Return a getter of nested attributes, then of a mapping's entry; it stops at a None."""
    return partial(_at, path.split(".") if path else [], entry)


def _at(names: Sequence[str], entry: str | None, value: Any) -> Any:
    for name in names:
        if value is None:
            return None
        value = getattr(value, name)
    return value if entry is None else value.get(entry)


def view_columns(
    columns: Sequence[Column[T]], view: View, order: Sequence[str]
) -> list[ViewColumn[T]]:
    """Return the columns that a view shows, in its order; a p-value follows its difference.

    Args:
        columns: Of a leaderboard, or of studies.
        view: Where they are shown.
        order: Groups as in ORDERS.
    """
    shown, place = [], 0
    for column in columns:
        group = column.group or column.key
        place = order.index(group) if group in order else place
        title: str | None = getattr(column, view)
        both = {title: column.kind, "p": column.kind.p}
        shown += [
            (place, ViewColumn(head, view, kind, column.value, column.leave_out))
            for head, kind in both.items()
            if title is not None and head is not None and kind is not None
        ]
    return [column for _, column in sorted(shown, key=itemgetter(0))]


def fields(columns: Sequence[Column[Any]]) -> Fields:
    """Return the plain values of columns, for CSV, JSON, filters and sorting."""
    return {
        column.key + end: partial(_plain, column.value, part)
        for column in columns
        for end, part in column.kind.parts.items()
    }


def _plain(value: Callable[[Any], Any], part: Callable[[Any], Any], row: Any) -> Any:
    quantity = value(row)
    return None if quantity is None else part(quantity)
