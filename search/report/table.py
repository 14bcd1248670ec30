"""The table of a study's page: which rows, which columns, and what stands in a cell.

Knows rows and how numbers are written; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...evals.scores.scores import TaskScore
from ...evals.stats.comparison import Difference
from ..format import p_value, recipe_line, score, signed
from ..leaderboard.board import Leaderboard, Row
from .plots import finite, in_points

MOST_ROWS = 500
"""Best rows of the page's table, besides the baselines; the CSV file has all."""


@dataclass(frozen=True)
class Cell:
    """A cell of the page's table.

    Attributes:
        text: What is read.
        order: What it is sorted by; None: by the text.
        is_number: Whether it stands to the right.
    """

    text: str
    order: float | None = None
    is_number: bool = False


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The best rows, all baselines, and failures while there is room."""
    ranked = [r for r in rows if r.candidate.is_baseline or (r.place and r.place <= MOST_ROWS)]
    failed = [r for r in rows if r.candidate.failure and not r.candidate.is_baseline]
    return ranked + failed[: max(MOST_ROWS - len(ranked), 0)]


def bare(name: str | None) -> str:
    """A parent's own name, of a row's."""
    return (name or "").removeprefix("parent:")


def with_interval(found: Difference, points: bool, *, sign: bool = True) -> str:
    """A difference and its 95 % interval; in points where scores are shares."""
    scale, digits = (100, 1) if points else (1, 4)
    turn = -1 if not sign and found.high < 0 else 1
    value, *ends = (turn * scale * v for v in (found.value, found.low, found.high))
    low, high = sorted(ends)
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return f"{shown} [{low:.{digits}f}, {high:.{digits}f}]" + (" points" if points else "")


@dataclass(frozen=True)
class Columns:
    """What the table has columns of, looked up once for all rows.

    Attributes:
        tasks: Of the objective.
        guards: Guard tasks that were scored.
        audited: Tasks whose answers are generated.
        best_parent: Its name; None without one.
        points: Whether differences are written in points.
        confirmed: Whether any row has met the confirm items.
    """

    tasks: tuple[str, ...]
    guards: tuple[str, ...]
    audited: tuple[str, ...]
    best_parent: str | None
    points: bool
    confirmed: bool

    @classmethod
    def of(cls, board: Leaderboard) -> Columns:
        """Those of a leaderboard."""
        names = (board.tasks, board.guards, board.audited)
        confirmed = any(row.confirm for row in board.rows)
        return cls(*names, board.best_parent, in_points(board), confirmed)

    @property
    def head(self) -> list[tuple[str, bool]]:
        """Titles, and whether numbers stand below."""
        parent = bare(self.best_parent) or "best parent"
        titles = ["search ± SE"]
        if self.confirmed:
            titles += ["confirm ± SE", f"Δ {parent} [95 %]", "p of that"]
            titles += ["Δ uniform [95 %]", "p of that"]
            titles += [f"{task} confirm" for task in self.tasks]
            titles += [f"guard {task}" for task in self.guards]
        titles += [f"{task} search" for task in self.tasks]
        titles += [f"{task} cut" for task in self.audited] + ["items", "seconds"]
        words = [("#", True), ("name", False), ("verdict", False)]
        return [*words, *((title, True) for title in titles), ("recipe, or why it failed", False)]

    def cells(self, row: Row) -> list[Cell]:
        """A row, cell by cell, in the order of `head`."""
        candidate = row.candidate
        rank = Cell("-" if row.rank is None else str(row.rank), row.place, is_number=True)
        cells = [rank, Cell(candidate.name), Cell(row.verdict)]
        cells += [score_cell(row.search), *(self._confirm_cells(row) if self.confirmed else ())]
        cells += [score_cell(candidate.scores.get(task)) for task in self.tasks]
        audits = [candidate.audit.get(task) for task in self.audited]
        cells += [_number_cell(audit.truncated if audit else None, "{:.0%}") for audit in audits]
        cells += [_number_cell(candidate.items, "{}"), _number_cell(candidate.seconds, "{:.1f}")]
        return [*cells, Cell(candidate.failure or recipe_line(candidate.recipe, candidate.origin))]

    def _confirm_cells(self, row: Row) -> Iterator[Cell]:
        yield score_cell(row.confirm)
        for found in (row.to_parent, row.to_uniform):
            yield from (difference_cell(found, self.points), _p_cell(found))
        yield from (score_cell(row.confirm_tasks.get(task)) for task in self.tasks)
        yield from (score_cell(row.guard.get(task)) for task in self.guards)


def _number_cell(value: float | None, form: str) -> Cell:
    order = finite(value)
    return Cell("-" if order is None else form.format(value), order, is_number=True)


def score_cell(found: TaskScore | None) -> Cell:
    """A score with its standard error."""
    if found is None or finite(found.value) is None:
        return Cell("-", is_number=True)
    return Cell(score(found.value, finite(found.se)), found.value, is_number=True)


def difference_cell(found: Difference | None, points: bool) -> Cell:
    """A paired difference with its interval."""
    if found is None:
        return Cell("-", is_number=True)
    is_bare = finite(found.low) is None
    text = signed(found.value) if is_bare else with_interval(found, points)
    return Cell(text.removesuffix(" points"), found.value, is_number=True)


def _p_cell(found: Difference | None) -> Cell:
    return Cell("-" if found is None else p_value(found.p), found and found.p, is_number=True)
