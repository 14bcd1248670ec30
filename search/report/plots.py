"""What a study's page shows, as plain JSON values. Knows rows; draws nothing, computes no test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
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
"""Best rows whose weights can be looked at."""
MOST_DOTS = 2000
"""Candidates drawn in one plot: more are thinned out evenly, the best ones never."""
MOST_GENES = 40
"""Genes drawn in one plot."""
Z_95 = 1.959964
"""Standard errors on either side of a 95 % interval of a score."""


def plots(board: Leaderboard, estimated: Importances | None = None) -> Plain:
    """What the page's plots are drawn from, tasks against each other aside (report_front.py).

    Args:
        board: Of any state: what is not there yet is an empty list.
        estimated: Which genes matter, from all trials.
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
    """Half of a score's 95 % interval."""
    return finite(Z_95 * score.se)


def kind_of(board: Leaderboard, row: Row) -> str:
    """What a mark in a plot stands for: winner, parent, baseline, candidate or variant."""
    candidate = row.candidate
    if row is board.winner:
        return "winner"
    if candidate.is_variant:
        return "variant"
    return candidate.kind if candidate.kind in ("parent", "candidate") else "baseline"


def funnel(candidates: Sequence[Candidate]) -> list[Plain]:
    """How many searched candidates have met so many items, at every length that a race had."""
    met = [c.items for c in candidates if c.is_searched and c.value is not None]
    if not any(c.raced for c in candidates):
        return []
    return [
        {"items": items, "candidates": sum(own >= items for own in met)}
        for items in sorted(set(met))
    ]


def failures(board: Leaderboard) -> list[Plain]:
    """Reasons of failure, the most frequent first, each with the names of whom it met."""
    failed = [row.candidate for row in board.rows if row.candidate.failure]
    count = Counter(c.failure for c in failed)
    return [
        {"reason": reason, "count": n, "names": [c.name for c in failed if c.failure == reason]}
        for reason, n in count.most_common()
    ]


def _progress(board: Leaderboard) -> Plain:
    """Search score of each candidate, and of the best so far, over the items spent."""
    order = sorted((r.candidate for r in board.rows if r.candidate.is_searched), key=_number)
    spent, best, dots, steps = 0, -math.inf, [], []
    for candidate in order:
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


def _number(candidate: Candidate) -> int:
    return candidate.number


def _lines(board: Leaderboard) -> list[Plain]:
    """Search scores to compare with: best parent, uniform merge, best baseline."""
    given = [r for r in board.rows if r.candidate.is_baseline and finite(r.candidate.value)]
    found = {}
    for label, kinds in (("best parent", ("parent",)), ("uniform", ("uniform",)), ("baseline", ())):
        own = [r.candidate for r in given if not kinds or r.candidate.kind in kinds]
        best = max(own, key=lambda c: c.value or -math.inf, default=None)
        if best is not None:
            found.setdefault(best.name, {"label": label, "name": best.name, "value": best.value})
    return list(found.values())


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


def _estimated(found: Importances | None) -> Plain | None:
    """Genes by what all trials say of them, the greatest first, as many as can be read."""
    if found is None:
        return None
    genes = [
        {"name": name, "share": g.share, "low": g.low, "high": g.high, "shown": g.is_shown}
        for name, g in list(found.genes.items())[:MOST_GENES]
    ]
    more = len(found.genes) - len(genes)
    return {"genes": genes, "chance": found.chance, "trials": found.trials, "more": more}


def _genes(board: Leaderboard) -> list[Plain]:
    """What the winner loses without each gene, the greatest loss first."""
    effects = board.ablation.effects if board.ablation else {}
    order = sorted(effects, key=lambda gene: effects[gene].value)
    return [
        {"name": gene, **difference(effects[gene]), "matters": shows_loss(effects[gene])}
        for gene in order
    ]


def difference(found: Difference) -> Plain:
    """A paired difference with its interval."""
    return {
        "value": finite(found.value),
        "low": finite(found.low),
        "high": finite(found.high),
        "p": finite(found.p),
        "n": found.n,
    }


def _forests(board: Leaderboard) -> Iterator[Plain]:
    """Confirm scores with intervals: one plot for each task, and each guard task."""
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
