"""The leaderboard as plain data: a record per candidate, numbers in full; CSV and JSON of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from ..evals.comparison import Difference
from ..evals.scores import AUDIT, TaskScore
from .format import recipe_line
from .leaderboard import Leaderboard, Row

Record = dict[str, Any]
"""Column -> value of one row; None where there is none. All rows of a board have all columns."""


def records(board: Leaderboard) -> list[Record]:
    """Return the rows of a board as plain data, in its order."""
    return [_record(board, row) for row in board.rows]


def csv_text(board: Leaderboard) -> str:
    """Return the leaderboard as CSV: one column per number."""
    out = io.StringIO()
    found = records(board)
    writer = csv.DictWriter(out, found[0] if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def json_text(boards: Sequence[Leaderboard]) -> str:
    """Return leaderboards as JSON: a list of studies, each with its rows; no number is null."""
    studies = [
        {
            "name": board.name,
            "folder": str(board.folder),
            "objective": board.objective.phrase,
            "finished": board.finished,
            "winner": board.winner.candidate.number if board.winner else None,
            "inflation": board.inflation,
            "rows": [{k: _finite(v) for k, v in row.items()} for row in records(board)],
        }
        for board in boards
    ]
    return json.dumps(studies, indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(board: Leaderboard, row: Row) -> Record:
    candidate, tasks = row.candidate, board.tasks
    record: Record = {
        "rank": row.rank,
        "trial": candidate.number,
        "name": candidate.name,
        "baseline": candidate.is_baseline,
        "verdict": row.verdict,
        **_score("search", row.search, count=False),
    }
    for split, scores, names in (
        ("search", candidate.scores, tasks),
        ("confirm", row.confirm_tasks, tasks),
        ("guard", row.guard, board.guards),
    ):
        for name in names:
            record |= _score(f"{split}:{name}", scores.get(name), ":")
    for name in board.audited:
        audit = candidate.audit.get(name)
        record |= {f"search:{name}:{c}": audit and getattr(audit, c) for c in AUDIT}
    for term in board.columns:
        record |= _score(f"search:{term.title}", candidate.terms.get(term.name), ":")
    record |= _score("confirm", row.confirm, count=False)
    record |= {"front": row.is_on_front, "best_parent": board.best_parent}
    record |= _difference("vs_parent", row.to_parent) | _difference("vs_uniform", row.to_uniform)
    return record | {
        "items": candidate.items,
        "raced": candidate.raced,
        "seconds": candidate.seconds,
        "failure": candidate.failure,
        "recipe": recipe_line(candidate.recipe),
        "digest": candidate.recipe.digest,
    }


def _score(name: str, found: TaskScore | None, join: str = "_", *, count: bool = True) -> Record:
    record = {name: found and found.value, f"{name}{join}se": found and found.se}
    return record | ({f"{name}{join}n": found and found.n} if count else {})


def _difference(name: str, found: Difference | None) -> Record:
    values = (found.value, found.se, found.p) if found else (None, None, None)
    return dict(zip((name, f"{name}_se", f"{name}_p"), values, strict=True))
