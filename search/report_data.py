"""What a study's page shows, as plain JSON values. Knows rows; draws nothing, computes no test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..evals.comparison import Difference
from ..evals.scores import TaskScore
from ..merge.recipe import Recipe
from .candidate import Candidate
from .dissection import shows_loss
from .importance import Importances
from .leaderboard import Leaderboard, Row

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


def finite(value: float | None) -> float | None:
    """A number as JSON knows it: neither nan nor infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def half_width(score: TaskScore) -> float | None:
    """Half of a score's 95 % interval."""
    return finite(Z_95 * score.se)


def in_points(board: Leaderboard) -> bool:
    """Whether scores are shares, so that a hundredth of them is a point.

    Estimates do not count: they may lie outside.
    """
    signs = board.objective.signs.values()
    if board.columns or board.objective.normalize or min(signs, default=1) < 0:
        return False
    whole = [row.candidate.scores.values() for row in board.rows if not row.candidate.raced]
    return all(0 <= s.value <= 1 for scores in whole for s in scores if not math.isnan(s.value))


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
    effects = board.dissection.effects if board.dissection else {}
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
