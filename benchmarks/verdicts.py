"""Results of searches, compared on confirm items that none of them has seen.

Reads finished studies; runs nothing. Legend: s seeds, n items, d draws.
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
from samplers import interval_text, items_to, mean_cell, median_cell
from scipy.stats import t as student

LEVEL = 0.95
DRAWS = 2000
"""Bootstrap draws of seeds and items."""

BASELINE_KINDS = {
    "uniform": ("uniform",),
    "task arithmetic": ("uniform", "task_arithmetic"),
    "TIES": ("ties",),
    "DARE-TIES": ("dare_ties",),
    "best parent": ("parent:",),
}
"""Kind -> prefixes of its baselines' names. Uniform is also task arithmetic with lambda 1/P."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """The best candidate of a search, or a baseline.

    Attributes:
        row: Its leaderboard row.
        items: Its scores on the confirm items.
        candidates: Number of candidates it is the best of.
        spent: Search items scored for all of these.
        steps: Items spent and the best score so far on all search items, after each candidate
            (t, 2); empty for a baseline.
        seconds: CPU time of the study, baselines and confirmation included; None for a baseline.
    """

    row: Row
    items: ItemScores
    candidates: int
    spent: int
    steps: Floats = field(default_factory=lambda: np.empty((0, 2)))
    seconds: float | None = None

    @property
    def value(self) -> float:
        """Objective value on the confirm items."""
        assert self.row.confirm is not None, "finalists and baselines are confirmed"
        return self.row.confirm.value

    @property
    def searched_value(self) -> float:
        """Objective value on the search items."""
        assert self.row.search is not None, "the best on the search items has a score there"
        return self.row.search.value


def best_of_search(folder: Path, seconds: float) -> Result:
    """Return a search's best candidate on the search items; confirm items play no part in it."""
    board = read_leaderboard(folder)
    searched = [row.candidate for row in board.rows if row.candidate.is_searched]
    number = finalists(searched, 1)[0].number
    row = next(row for row in board.rows if row.candidate.number == number)
    steps = _steps(searched)
    spent = int(steps[-1, 0])
    return Result(row, _confirmed(folder, row), len(searched), spent, steps, seconds)


def _steps(searched: Sequence[Candidate]) -> Floats:
    """Return items spent and the best score so far (t, 2); raced candidates have no score."""
    ordered = sorted(searched, key=lambda candidate: candidate.number)
    spent = np.cumsum([candidate.items for candidate in ordered])
    values = [-np.inf if c.raced or c.value is None else c.value for c in ordered]
    return np.column_stack([spent, np.maximum.accumulate(values)])


def best_baselines(folder: Path) -> Iterator[tuple[str, Result]]:
    """Yield the baseline of each kind that is best on the search items."""

    rows = [row for row in read_leaderboard(folder).rows if row.candidate.is_baseline]
    for name, prefixes in BASELINE_KINDS.items():
        group = [row for row in rows if row.candidate.name.startswith(prefixes) and row.search]
        if not group:
            continue
        best = max(group, key=lambda row: row.search.value if row.search else 0.0)
        spent = sum(row.candidate.items for row in group)
        result = Result(best, _confirmed(folder, best), len(group), spent)
        yield (f"{name} ({best.candidate.name})" if len(group) > 1 else name), result


def _confirmed(folder: Path, row: Row) -> ItemScores:
    scores = ItemStore(folder / "items").read(row.candidate.number, CONFIRM)
    if scores is None:
        raise ValueError(f"{folder}: {row.candidate.name} was not confirmed: run its search again")
    return scores


class PairedBootstrap:
    """Bootstrap intervals of differences on the confirm items.

    Seeds and items are both drawn with replacement, the same items for both sides.

    Args:
        objective: Objective of the comparison.
        like: Any model's scores on the items (n).
        draws: Bootstrap draws (d).

    Raises:
        ValueError: If a task's score is not the mean of its items.
    """

    def __init__(self, objective: Objective, like: ItemScores, draws: int = DRAWS) -> None:
        if set(like.aggregations) != {"mean"} or not objective.is_plain or objective.normalize:
            raise ValueError(
                "searches are compared by tasks whose scores are means of their items, got "
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
        """Return the 95 % interval of the mean difference of two groups (s each)."""
        d = np.array([self._drawn(scores) for scores in first])
        d -= np.array([self._drawn(scores) for scores in other])
        draws = np.arange(d.shape[1])[:, None]
        seeds = self._chance.integers(len(d), size=(d.shape[1], len(d)))
        means = d[seeds, draws].mean(axis=1)
        return np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()

    def _drawn(self, scores: ItemScores) -> Floats:
        """Return the objective on each draw of the items (d,)."""
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
    """Return the 95 % interval of the mean over seeds (s,), Student's t; None for one seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return [mean - half, mean + half]


def rows(
    searched: Mapping[str, Sequence[Result]],
    others: Mapping[str, Result],
    bootstrap: PairedBootstrap,
) -> Iterator[dict[str, Any]]:
    """Yield one row per search setting (s studies each) and per baseline.

    All others are compared with the first setting. Items are counted up to the search score that
    half of the last setting's searches reach.
    """
    first, last = next(iter(searched.values())), [*searched.values()][-1]
    aim = float(np.quantile([result.steps[-1, 1] for result in last], 0.5, method="lower"))
    for name, group in searched.items():
        values = [result.value for result in group]
        yield {
            **_row(name, group, first, bootstrap),
            "confirm_interval": over_seeds(values),
            "seconds": float(np.mean([result.seconds for result in group if result.seconds])),
            "seeds": values,
            "aim": aim,
            "items_to_aim": [items_to(result.steps, aim) for result in group],
            "verdicts": [result.row.verdict for result in group],
        }
    for name, result in others.items():
        yield _row(name, [result] * len(first), first, bootstrap)


def _row(
    name: str, group: Sequence[Result], first: Sequence[Result], bootstrap: PairedBootstrap
) -> dict[str, Any]:
    ahead = [a.value - b.value for a, b in zip(first, group, strict=True)]
    mine, theirs = ([result.items for result in side] for side in (first, group))
    return {
        "name": name,
        "candidates": float(np.mean([result.candidates for result in group])),
        "items": float(np.mean([result.spent for result in group])),
        "search": float(np.mean([result.searched_value for result in group])),
        "confirm": float(np.mean([result.value for result in group])),
        "tasks": {
            task: float(np.mean([result.row.confirm_tasks[task].value for result in group]))
            for task in group[0].row.confirm_tasks
        },
        "ahead": None if group is first else float(np.mean(ahead)),
        "ahead_interval": None if group is first else bootstrap.interval(mine, theirs),
        "seeds_ahead": None if group is first else sum(d > 0 for d in ahead),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    tasks = list(results[0]["tasks"])
    heads = [
        "search or baseline",
        "candidates",
        "items",
        "search score",
        "**confirm score** (95 % over seeds)",
        *tasks,
        f"items to search score {results[0]['aim']:.4f}, median (quartiles)",
        "lead of the first row (95 %, seeds and items)",
        "seeds with a lead",
        "verdict *better*",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row, tasks))} |" for row in results)])


def _cells(row: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    count = len(row["seeds"]) if "seeds" in row else 0
    yield row["name"]
    yield f"{row['candidates']:.0f}"
    yield f"{row['items']:.0f}"
    yield f"{row['search']:.4f}"
    yield f"**{row['confirm']:.4f}**{interval_text(row.get('confirm_interval'))}"
    yield from (f"{row['tasks'][task]:.4f}" for task in tasks)
    needed = row.get("items_to_aim")
    yield "" if needed is None else _needed(needed)
    ahead = row["ahead"]
    yield "" if ahead is None else mean_cell(ahead, row["ahead_interval"], "+")
    yield "" if ahead is None else f"{row['seeds_ahead']}"
    yield f"{row['verdicts'].count('better')}/{count}" if count else ""


def _needed(items: Sequence[float]) -> str:
    quartiles = np.quantile(items, (0.25, 0.75), method="nearest").tolist()
    return median_cell(float(np.median(items)), quartiles)
