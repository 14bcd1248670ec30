"""The leaderboard as CSV: one line per candidate, numbers in full. Knows rows."""

from __future__ import annotations

import csv
import io

from ..evals.scores import AUDIT, TaskScore
from .format import recipe_line
from .leaderboard import Leaderboard, Row


def csv_text(board: Leaderboard) -> str:
    """Return the leaderboard as CSV: numbers in full, one column each."""
    tasks, guards = board.tasks, board.guards
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["rank", "trial", "name", "baseline", "verdict", "search", "search_se"]
    for split, names in (("search", tasks), ("confirm", tasks), ("guard", guards)):
        header += [f"{split}:{name}{suffix}" for name in names for suffix in ("", ":se", ":n")]
    header += [f"search:{name}:{column}" for name in board.audited for column in AUDIT]
    header += [f"search:{term.title}{s}" for term in board.columns for s in ("", ":se", ":n")]
    header += ["confirm", "confirm_se", "front", "best_parent"]
    for other in ("parent", "uniform"):
        header += [f"vs_{other}", f"vs_{other}_se", f"vs_{other}_p"]
    writer.writerow([*header, "seconds", "failure", "recipe", "digest"])
    writer.writerows(_csv_row(board, row) for row in board.rows)
    return out.getvalue()


def _csv_row(board: Leaderboard, row: Row) -> list[object]:
    candidate = row.candidate
    out: list[object] = [row.rank, candidate.number, candidate.name, candidate.is_baseline]
    out += [row.verdict, *_numbers(row.search)[:2]]
    for scores, names in (
        (candidate.scores, board.tasks),
        (row.confirm_tasks, board.tasks),
        (row.guard, board.guards),
    ):
        out += [number for name in names for number in _numbers(scores.get(name))]
    for audit in (candidate.audit.get(name) for name in board.audited):
        out += ["" if audit is None else getattr(audit, column) for column in AUDIT]
    for term in board.columns:
        out += _numbers(candidate.terms.get(term.name))
    out += [*_numbers(row.confirm)[:2], row.is_on_front, board.best_parent]
    for difference in (row.to_parent, row.to_uniform):
        found = difference is not None
        out += [difference.value, difference.se, difference.p] if found else ["", "", ""]
    recipe = candidate.recipe
    return [*out, candidate.seconds, candidate.failure, recipe_line(recipe), recipe.digest]


def _numbers(value: TaskScore | None) -> list[object]:
    return ["", "", ""] if value is None else [value.value, value.se, value.n]
