"""The leaderboard as plain data: a record per candidate, numbers in full; CSV and JSON of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from ..evals.comparison import Difference
from ..evals.scores import AUDIT, TaskScore
from .format import recipe_line
from .leaderboard import Leaderboard, Row

Record = dict[str, Any]
"""Column -> value of one row; None where there is none. All rows of a board have all columns."""
Fields = Mapping[str, Callable[[Any], Any]]
"""Column -> its value of a row, computed when it is asked for."""


def records(board: Leaderboard, rows: Sequence[Row] | None = None) -> list[Record]:
    """Return the rows of a board, or some of them, as plain data."""
    return filled(fields(board), board.rows if rows is None else rows)


def filled(columns: Fields, rows: Sequence[Any]) -> list[Record]:
    """Compute every column of rows."""
    return [{name: value(row) for name, value in columns.items()} for row in rows]


def csv_text(board: Leaderboard, rows: Sequence[Row] | None = None) -> str:
    """Return the leaderboard, or some of its rows, as CSV: one column per number."""
    return as_csv(records(board, rows))


def as_csv(found: Sequence[Record]) -> str:
    """Return records as CSV; numbers in full, nothing where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, found[0] if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def json_text(board: Leaderboard, rows: Sequence[Row] | None = None) -> str:
    """Return a leaderboard as JSON: a list of one study with its rows; no number is null."""
    study = {
        "name": board.name,
        "folder": str(board.folder),
        "objective": board.objective.phrase,
        "finished": board.finished,
        "winner": board.winner.candidate.number if board.winner else None,
        "inflation": board.inflation,
        "rows": records(board, rows),
    }
    return as_json([study])


def as_json(values: Any) -> str:
    """Return plain values as JSON; what is no finite number is null."""
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fields(board: Leaderboard) -> Fields:
    """The columns of a study's leaderboard, in order."""
    found: dict[str, Callable[[Row], Any]] = {
        "rank": attrgetter("rank"),
        "place": attrgetter("place"),
        "trial": attrgetter("candidate.number"),
        "name": attrgetter("candidate.name"),
        "baseline": attrgetter("candidate.is_baseline"),
        "verdict": attrgetter("verdict"),
    }
    found |= score_fields("search", lambda row: row.search)
    for split, scores, names in (
        ("search", lambda row: row.candidate.scores, board.tasks),
        ("confirm", lambda row: row.confirm_tasks, board.tasks),
        ("guard", lambda row: row.guard, board.guards),
    ):
        for name in names:
            found |= _entry_fields(f"{split}:{name}", scores, name)
    for name in board.guards:
        found |= difference_fields(f"guard:{name}:vs_base", _guard(name, "guard_to_base"))
        found |= difference_fields(f"guard:{name}:vs_parent", _guard(name, "guard_to_parent"))
    for name in board.audited:
        found |= {f"search:{name}:{column}": _audit(name, column) for column in AUDIT}
    for term in board.columns:
        title = f"search:{term.title}"
        found |= _entry_fields(title, lambda row: row.candidate.terms, term.name)
    found |= score_fields("confirm", lambda row: row.confirm)
    found |= {"front": attrgetter("is_on_front"), "best_parent": lambda _: board.best_parent}
    found |= difference_fields("vs_parent", lambda row: row.to_parent)
    found |= difference_fields("vs_uniform", lambda row: row.to_uniform)
    return found | {
        "items": attrgetter("candidate.items"),
        "raced": attrgetter("candidate.raced"),
        "seconds": attrgetter("candidate.seconds"),
        "failure": attrgetter("candidate.failure"),
        **({"stage": partial(_stage, board)} if board.stages else {}),
        "recipe": lambda row: recipe_line(row.candidate.recipe, row.candidate.origin),
        "digest": attrgetter("candidate.recipe.digest"),
    }


def _stage(board: Leaderboard, row: Row) -> str | None:
    place = row.candidate.stage
    return None if place is None else board.stages[place]


def score_fields(name: str, find: Callable[[Any], TaskScore | None]) -> Fields:
    """Columns of a score and its standard error."""
    return {name: _part(find, "value"), f"{name}_se": _part(find, "se")}


def difference_fields(name: str, find: Callable[[Any], Difference | None]) -> Fields:
    """Columns of a paired difference: value, standard error, p."""
    return {
        name: _part(find, "value"),
        f"{name}_se": _part(find, "se"),
        f"{name}_p": _part(find, "p"),
    }


def _entry_fields(
    title: str, scores: Callable[[Row], Mapping[str, TaskScore]], name: str
) -> Fields:
    """Columns of one entry of scores: value, standard error, items."""

    def find(row: Row) -> TaskScore | None:
        return scores(row).get(name)

    parts = {"": "value", ":se": "se", ":n": "n"}
    return {f"{title}{end}": _part(find, part) for end, part in parts.items()}


def _part(find: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(find(row), name, None)


def _guard(task: str, which: str) -> Callable[[Row], Difference | None]:
    return lambda row: getattr(row, which).get(task)


def _audit(task: str, column: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.candidate.audit.get(task), column, None)
