"""Data of the page's plots, as plain JSON values. Knows rows; draws nothing, computes no test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from typing import Any

import numpy as np

from ...evals.scores.scores import TaskScore
from ...evals.stats.comparison import Difference
from ...merge.recipe.recipe import Recipe
from ..evaluate.pareto import is_on_front
from ..leaderboard.board import Leaderboard, Row
from ..leaderboard.kinds import finite
from ..storage.candidate import Candidate
from ..study.variants import shows_loss
from .importance import Importances

Plain = dict[str, Any]
TOP_RECIPES = 20
"""Best rows whose weights can be shown."""
MOST_DOTS = 2000
"""Largest number of candidates in one plot; more are thinned out evenly, but not the front."""
MOST_GENES = 40
"""Largest number of genes in one plot."""
Z_95 = 1.959964
"""Half width of a 95 % interval, in standard errors."""


def plots(board: Leaderboard, estimated: Importances | None = None) -> Plain:
    """Return the data of the page's plots, except `pairs`.

    Args:
        board: A leaderboard; what is missing in it is an empty list here.
        estimated: Importances of genes from all trials, if any.
    """
    return {
        "progress": _progress(board),
        "recipes": [_weights(row) for row in _shown_recipes(board)],
        "estimated": _estimated(estimated),
        "genes": _genes(board),
        "forest": list(_forests(board)),
        "funnel": funnel([row.candidate for row in board.rows]),
    }


def half_width(score: TaskScore) -> float | None:
    """Return half the width of a score's 95 % interval."""
    return finite(Z_95 * score.se)


def kind_of(board: Leaderboard, row: Row) -> str:
    """Return how a row is marked: winner, parent, baseline, candidate or variant."""
    candidate = row.candidate
    if row is board.winner:
        return "winner"
    if candidate.is_variant:
        return "variant"
    return candidate.kind if candidate.kind in ("parent", "candidate") else "baseline"


def funnel(candidates: Sequence[Candidate]) -> list[Plain]:
    """Return the number of candidates that were scored on at least the items of each rung."""
    counts = [c.items for c in candidates if c.is_searched and c.value is not None]
    if not any(c.raced for c in candidates):
        return []
    return [
        {"items": items, "candidates": sum(count >= items for count in counts)}
        for items in sorted(set(counts))
    ]


def failures(board: Leaderboard) -> list[Plain]:
    """Return the reasons of failure, the most frequent first, with the candidates' names."""
    failed = [row.candidate for row in board.rows if row.candidate.failure]
    count = Counter(c.failure for c in failed)
    return [
        {"reason": reason, "count": n, "names": [c.name for c in failed if c.failure == reason]}
        for reason, n in count.most_common()
    ]


def _progress(board: Leaderboard) -> Plain:
    """Search score of each candidate and the best so far, over the items scored."""
    searched = [row.candidate for row in board.rows if row.candidate.is_searched]
    spent, best, dots, steps = 0, -math.inf, [], []
    for candidate in sorted(searched, key=attrgetter("number")):
        spent += candidate.items
        value = finite(candidate.value)
        if value is None:
            continue
        dots.append([spent, value, candidate.name, candidate.raced])
        if value > best and not candidate.raced:
            best = value
            steps.append([spent, value, candidate.name])
    if steps:
        steps.append([spent, best, ""])
    every = max(math.ceil(len(dots) / MOST_DOTS), 1)
    return {"dots": dots[::every], "best": steps, "lines": _lines(board), "every": every}


def _lines(board: Leaderboard) -> list[Plain]:
    """Search scores of the best parent, the uniform merge and the best baseline."""
    baselines = [r for r in board.rows if r.candidate.is_baseline and finite(r.candidate.value)]
    lines = {}
    for label, kind in (("best parent", "parent"), ("uniform", "uniform"), ("baseline", None)):
        same = [r.candidate for r in baselines if kind in (None, r.candidate.kind)]
        best = max(same, key=lambda c: c.value or -math.inf, default=None)
        if best is not None:
            lines.setdefault(best.name, {"label": label, "name": best.name, "value": best.value})
    return list(lines.values())


def _shown_recipes(board: Leaderboard) -> list[Row]:
    ranked = [row for row in board.rows if row.place and not row.candidate.is_baseline]
    return ranked[:TOP_RECIPES]


def _weights(row: Row) -> Plain:
    """Weights and drop rates of a recipe, group by group in the order of the forward pass."""
    recipe: Recipe = row.candidate.recipe.canonical
    groups = recipe.coefficients
    return {
        "name": row.candidate.name,
        "parents": list(recipe.parents),
        "groups": list(groups),
        "weights": [[round(w, 4) for w in c.weights] for c in groups.values()],
        "drop_rates": [[round(rate, 4) for rate in c.drop_rates] for c in groups.values()],
    }


def _estimated(importances: Importances | None) -> Plain | None:
    """Importances of genes, the largest first, up to MOST_GENES."""
    if importances is None:
        return None
    genes = [
        {"name": name, "share": g.share, "low": g.low, "high": g.high, "shown": g.is_shown}
        for name, g in list(importances.genes.items())[:MOST_GENES]
    ]
    more = len(importances.genes) - len(genes)
    chance, trials = importances.chance, importances.trials
    return {"genes": genes, "chance": chance, "trials": trials, "more": more}


def _genes(board: Leaderboard) -> list[Plain]:
    """Change of the winner's score with each gene reset, the largest loss first."""
    effects = board.ablation.effects if board.ablation else {}
    order = sorted(effects, key=lambda gene: effects[gene].value)
    return [
        {"name": gene, **difference(effects[gene]), "matters": shows_loss(effects[gene])}
        for gene in order
    ]


def difference(gain: Difference) -> Plain:
    """Return a paired difference with its interval."""
    names = ("value", "low", "high", "p")
    return {name: finite(getattr(gain, name)) for name in names} | {"n": gain.n}


def _forests(board: Leaderboard) -> Iterator[Plain]:
    """Confirm scores with intervals, a plot per task and guard task."""
    rows = [row for row in board.rows if row.confirm is not None]
    for task in board.tasks:
        yield {"task": task, "rows": _intervals(board, [(r, r.confirm_tasks[task]) for r in rows])}
    for task in board.guards:
        own = [(row, row.guard[task]) for row in rows if task in row.guard]
        yield {"task": f"{task} (guard)", "rows": _intervals(board, own)}


def _intervals(board: Leaderboard, scores: Sequence[tuple[Row, TaskScore]]) -> list[Plain]:
    return [
        {
            "name": row.candidate.name,
            "kind": kind_of(board, row),
            "value": finite(score.value),
            "half": half_width(score),
        }
        for row, score in scores
    ]


def pairs(board: Leaderboard) -> Iterator[Plain]:
    """Return each pair of tasks on the confirm items, if any, and on the search items.

    A mark is ``[x, y, half width of its interval in x, in y, name, kind, is on the front]``.
    """
    confirmed = [(row, row.confirm_tasks) for row in board.rows if row.confirm_tasks]
    searched = [(r, r.candidate.scores) for r in board.rows if not r.candidate.is_variant]
    for x, y in combinations(board.tasks, 2):
        if confirmed:
            yield _pair(board, "confirm", x, y, confirmed)
        yield _pair(board, "search", x, y, searched)


def _pair(
    board: Leaderboard,
    split: str,
    x: str,
    y: str,
    scored: Sequence[tuple[Row, Mapping[str, TaskScore]]],
) -> Plain:
    """One pair on the items of one split; raced candidates are not on the front."""
    scored = [(row, scores) for row, scores in scored if _has(scores, x, y)]
    both = [[scores[x], scores[y]] for _, scores in scored]
    signs = {t.task: board.objective.signs[t.name] for t in board.objective.terms if t.is_plain}
    values = np.array([[score.value for score in pair] for pair in both]).reshape(-1, 2)
    better_when_higher = values * [signs.get(x, 1), signs.get(y, 1)]
    is_search = split == "search"
    complete = np.array([not (is_search and r.candidate.raced) for r, _ in scored], dtype=bool)
    front = np.zeros(len(scored), dtype=bool)
    front[complete] = is_on_front(better_when_higher[complete])
    marks = [
        [
            *map(float, value),
            *(None if is_search else half_width(score) for score in pair),
            row.candidate.name,
            kind_of(board, row),
            bool(is_in),
        ]
        for (row, _), pair, value, is_in in zip(scored, both, values, front, strict=True)
    ]
    most = max((score.n for pair in both for score in pair), default=0)
    return {"x": x, "y": y, "split": split, "items": most, "marks": _thinned(marks)}


def _has(scores: Mapping[str, TaskScore], *tasks: str) -> bool:
    values = (scores.get(task) for task in tasks)
    return all(score is not None and math.isfinite(score.value) for score in values)


def _thinned(marks: list[list[Any]]) -> list[list[Any]]:
    """All special marks, and as many plain candidates as can be drawn."""
    plain = [mark for mark in marks if mark[-2] == "candidate" and not mark[-1]]
    every = max(math.ceil(len(plain) / MOST_DOTS), 1)
    return plain[::every] + [mark for mark in marks if mark[-2] != "candidate" or mark[-1]]
