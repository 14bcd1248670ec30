"""Tasks against each other: every pair's scores, and whom no other beats in both. Knows rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ..evals.scores import TaskScore
from .leaderboard import Leaderboard, Row
from .pareto import is_on_front
from .report_data import MOST_DOTS, Plain, half_width, kind_of


def pairs(board: Leaderboard) -> Iterator[Plain]:
    """Each pair of tasks on the confirm items, where any row has met them, then on the search ones.

    A mark is ``[x, y, half of its interval in x, in y, name, kind, is on the front]``.
    """
    confirmed = [row for row in board.rows if row.confirm_tasks]
    scored = [r for r in board.rows if r.candidate.scores and not r.candidate.is_variant]
    for x, y in combinations(board.tasks, 2):
        own = {row.candidate.number: row.confirm_tasks for row in confirmed}
        if confirmed:
            yield _pair(board, "confirm", x, y, confirmed, own)
        own = {row.candidate.number: row.candidate.scores for row in scored}
        yield _pair(board, "search", x, y, scored, own)


def _pair(
    board: Leaderboard,
    split: str,
    x: str,
    y: str,
    rows: list[Row],
    scores: Mapping[int, Mapping[str, TaskScore]],
) -> Plain:
    """One pair on the items of one split; estimates of raced candidates are on no front."""
    rows = [row for row in rows if _has(scores[row.candidate.number], x, y)]
    found = [[scores[row.candidate.number][task] for task in (x, y)] for row in rows]
    signs = {t.task: board.objective.signs[t.name] for t in board.objective.terms if t.is_plain}
    values = np.array([[score.value for score in both] for both in found]).reshape(-1, 2)
    turned = values * [signs.get(x, 1), signs.get(y, 1)]
    is_estimate = split == "search"
    whole = np.array([not (is_estimate and r.candidate.raced) for r in rows], dtype=bool)
    front = np.zeros(len(rows), dtype=bool)
    front[whole] = is_on_front(turned[whole])
    marks = [
        [
            *map(float, value),
            *(None if is_estimate else half_width(score) for score in both),
            row.candidate.name,
            kind_of(board, row),
            bool(is_in),
        ]
        for row, both, value, is_in in zip(rows, found, values, front, strict=True)
    ]
    most = max((score.n for both in found for score in both), default=0)
    return {"x": x, "y": y, "split": split, "items": most, "marks": _thinned(marks)}


def _has(scores: Mapping[str, TaskScore], *tasks: str) -> bool:
    found = (scores.get(task) for task in tasks)
    return all(score is not None and math.isfinite(score.value) for score in found)


def _thinned(marks: list[list[Any]]) -> list[list[Any]]:
    """All that is marked, and of plain candidates as many as can be drawn."""
    plain = [mark for mark in marks if mark[-2] == "candidate" and not mark[-1]]
    every = max(math.ceil(len(plain) / MOST_DOTS), 1)
    return plain[::every] + [m for m in marks if m[-2] != "candidate" or m[-1]]
