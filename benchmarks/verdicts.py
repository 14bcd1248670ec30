"""What searches have handed back, held against each other on the items that none of them has seen.

Knows finished studies on disk; runs nothing. Legend: s seeds, n items, d draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM
from heterosis.search.evaluate.objective import Objective
from heterosis.search.leaderboard.board import Row, read_leaderboard
from heterosis.search.storage.candidate import Candidate
from heterosis.search.study.finalists import finalists
from numpy.typing import NDArray
from samplers import items_to, median_cell
from scipy.stats import t as student

LEVEL = 0.95
DRAWS = 2000
"""Bootstrap draws of seeds and items."""

UNSEARCHED = {
    "uniform": ("uniform",),
    "task arithmetic": ("uniform", "task_arithmetic"),
    "TIES": ("ties",),
    "DARE-TIES": ("dare_ties",),
    "best parent": ("parent:",),
}
"""Merges that need no search -> how the names of their baselines begin. Uniform is a point of the
grid of task arithmetic, too: lambda 1/P."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a study has handed back.

    Attributes:
        row: One candidate of its leaderboard.
        items: The candidate's on the confirm items.
        candidates: That were tried to find it.
        spent: Search items that those have met.
        steps: Items spent and the best score so far on all search items, after each candidate
            (t, 2); empty for a merge that needs no search.
        seconds: CPU time of the whole study, baselines and confirmation among it; None for a merge
            that needs no search.
    """

    row: Row
    items: ItemScores
    candidates: int
    spent: int
    steps: Floats = field(default_factory=lambda: np.empty((0, 2)))
    seconds: float | None = None

    @property
    def value(self) -> float:
        """The objective on the confirm items."""
        assert self.row.confirm is not None, "finalists and baselines are confirmed"
        return self.row.confirm.value

    @property
    def searched_value(self) -> float:
        """The objective on the search items."""
        assert self.row.search is not None, "who is best on the search items has a score there"
        return self.row.search.value


def handed_back(folder: Path, seconds: float) -> Found:
    """The best candidate of a search on the search items: no confirm item has chosen it."""
    board = read_leaderboard(folder)
    searched = [row.candidate for row in board.rows if row.candidate.is_searched]
    number = finalists(searched, 1)[0].number
    row = next(row for row in board.rows if row.candidate.number == number)
    steps = _steps(searched)
    spent = int(steps[-1, 0])
    return Found(row, _confirmed(folder, row), len(searched), spent, steps, seconds)


def _steps(searched: Sequence[Candidate]) -> Floats:
    """Items spent and the best score so far (t, 2); what lost its race has no score."""
    ordered = sorted(searched, key=lambda candidate: candidate.number)
    spent = np.cumsum([candidate.items for candidate in ordered])
    values = [-np.inf if c.raced or c.value is None else c.value for c in ordered]
    return np.column_stack([spent, np.maximum.accumulate(values)])


def unsearched(folder: Path) -> Iterator[tuple[str, Found]]:
    """Merges that need no search, from a study's baselines.

    Where there are several of one kind, the best on the search items is taken, as a person would
    who has tried them all.
    """
    rows = [row for row in read_leaderboard(folder).rows if row.candidate.is_baseline]
    for name, beginnings in UNSEARCHED.items():
        own = [row for row in rows if row.candidate.name.startswith(beginnings) and row.search]
        if not own:
            continue
        best = max(own, key=lambda row: row.search.value if row.search else 0.0)
        spent = sum(row.candidate.items for row in own)
        found = Found(best, _confirmed(folder, best), len(own), spent)
        yield (f"{name} ({best.candidate.name})" if len(own) > 1 else name), found


def _confirmed(folder: Path, row: Row) -> ItemScores:
    scores = ItemStore(folder / "items").read(row.candidate.number, CONFIRM)
    if scores is None:
        raise ValueError(f"{folder}: {row.candidate.name} was not confirmed; run its search again")
    return scores


class Judge:
    """How sure the differences on the confirm items are.

    Items and seeds are drawn with replacement at once, the same items for both sides.

    Args:
        objective: What is judged by.
        like: Any model's scores on the items (n).
        draws: Of the bootstrap (d).
    """

    def __init__(self, objective: Objective, like: ItemScores, draws: int = DRAWS) -> None:
        if set(like.aggregations) != {"mean"} or not objective.is_plain or objective.normalize:
            raise ValueError(
                "searches are judged by tasks whose scores are means of their items, got "
                f"{', '.join(like.aggregations)} for the {objective.phrase}"
            )
        self._objective, self._like = objective, like
        self._chance = np.random.default_rng(0)
        self._rows = [like.rows(task) for task in objective.tasks]
        self._counts = [
            self._chance.multinomial(rows.size, np.full(rows.size, 1 / rows.size), draws)
            for rows in self._rows
        ]

    def interval(self, first: Sequence[ItemScores], other: Sequence[ItemScores]) -> list[float]:
        """95 % interval of the mean difference of two (s each)."""
        d = np.array([self._drawn(scores) for scores in first])
        d -= np.array([self._drawn(scores) for scores in other])
        draws = np.arange(d.shape[1])[:, None]
        seeds = self._chance.integers(len(d), size=(d.shape[1], len(d)))
        means = d[seeds, draws].mean(axis=1)
        return np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()

    def _drawn(self, scores: ItemScores) -> Floats:
        """The objective on each draw of the items (d,)."""
        same = np.array_equal(scores.keys, self._like.keys)
        assert same, "studies of one configuration have the same confirm items"
        means = [
            counts @ scores.value[rows] / rows.size
            for counts, rows in zip(self._counts, self._rows, strict=True)
        ]
        tasks = self._objective.tasks
        each = (dict(zip(tasks, row, strict=True)) for row in zip(*means, strict=True))
        return np.array([self._objective.value(values) for values in each])


def over_seeds(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean over seeds (s,), Student's t; None for one seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return [mean - half, mean + half]


def rows(
    searched: Mapping[str, Sequence[Found]], others: Mapping[str, Found], judge: Judge
) -> Iterator[dict[str, Any]]:
    """One row per way to search (s studies each) and per merge that needs none.

    The first way to search is held against all others; items are counted up to what half of the
    last way's searches reach on the search items.
    """
    first, last = next(iter(searched.values())), [*searched.values()][-1]
    aim = float(np.quantile([found.steps[-1, 1] for found in last], 0.5, method="lower"))
    for name, group in searched.items():
        values = [found.value for found in group]
        yield {
            **_row(name, group, first, judge),
            "confirm_interval": over_seeds(values),
            "seconds": float(np.mean([found.seconds for found in group if found.seconds])),
            "seeds": values,
            "aim": aim,
            "items_to_aim": [items_to(found.steps, aim) for found in group],
            "verdicts": [found.row.verdict for found in group],
        }
    for name, found in others.items():
        yield _row(name, [found] * len(first), first, judge)


def _row(name: str, group: Sequence[Found], first: Sequence[Found], judge: Judge) -> dict[str, Any]:
    ahead = [a.value - b.value for a, b in zip(first, group, strict=True)]
    mine, theirs = ([found.items for found in side] for side in (first, group))
    return {
        "name": name,
        "candidates": float(np.mean([found.candidates for found in group])),
        "items": float(np.mean([found.spent for found in group])),
        "search": float(np.mean([found.searched_value for found in group])),
        "confirm": float(np.mean([found.value for found in group])),
        "tasks": {
            task: float(np.mean([found.row.confirm_tasks[task].value for found in group]))
            for task in group[0].row.confirm_tasks
        },
        "ahead": None if group is first else float(np.mean(ahead)),
        "ahead_interval": None if group is first else judge.interval(mine, theirs),
        "seeds_ahead": None if group is first else sum(d > 0 for d in ahead),
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    tasks = list(found[0]["tasks"])
    heads = [
        "search, or merge without one",
        "candidates",
        "items",
        "on search items",
        "**on confirm items** (95 % over seeds)",
        *tasks,
        f"items to {found[0]['aim']:.4f} on search items, median (quartiles)",
        "the first row is ahead by (95 %, seeds and items)",
        "in seeds",
        "verdict *better*",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row, tasks))} |" for row in found)])


def _cells(row: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    count = len(row["seeds"]) if "seeds" in row else 0
    yield row["name"]
    yield f"{row['candidates']:.0f}"
    yield f"{row['items']:.0f}"
    yield f"{row['search']:.4f}"
    yield f"**{row['confirm']:.4f}**{_interval(row.get('confirm_interval'))}"
    yield from (f"{row['tasks'][task]:.4f}" for task in tasks)
    needed = row.get("items_to_aim")
    yield "" if needed is None else _needed(needed)
    ahead = row["ahead"]
    yield "" if ahead is None else f"{ahead:+.4f}{_interval(row['ahead_interval'], '+')}"
    yield "" if ahead is None else f"{row['seeds_ahead']}"
    yield f"{row['verdicts'].count('better')}/{count}" if count else ""


def _needed(items: Sequence[float]) -> str:
    quartiles = np.quantile(items, (0.25, 0.75), method="nearest").tolist()
    return median_cell(float(np.median(items)), quartiles)


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "" if ends is None else f" ({ends[0]:{sign}.4f}, {ends[1]:{sign}.4f})"
