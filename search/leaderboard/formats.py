"""The leaderboard as plain data: a record per candidate, numbers in full; CSV and JSON of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from .board import Leaderboard, Row
from .columns import Fields, Record, board_fields


def records(board: Leaderboard, rows: Sequence[Row] | None = None) -> list[Record]:
    """Return the rows of a board, or some of them, as plain values."""
    return as_records(board_fields(board), board.rows if rows is None else rows)


def as_records(columns: Fields, rows: Sequence[Any]) -> list[Record]:
    """Return rows as plain values."""
    return [{key: value(row) for key, value in columns.items()} for row in rows]


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
        "inflation": board.selection_bias,
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
