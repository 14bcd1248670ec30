"""The leaderboard as CSV and JSON, numbers in full."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from .board import Leaderboard, Row
from .columns import Fields, Record, board_fields
from .kinds import finite


def records(board: Leaderboard, rows: Sequence[Row] | None = None) -> list[Record]:
    """Return the rows of a leaderboard, or some of them, as plain values."""
    return as_records(board_fields(board), board.rows if rows is None else rows)


def as_records(fields: Fields, rows: Sequence[Any]) -> list[Record]:
    """Return rows as plain values."""
    return [{key: value(row) for key, value in fields.items()} for row in rows]


def csv_text(board: Leaderboard, rows: Sequence[Row] | None = None) -> str:
    """Return the leaderboard, or some of its rows, as CSV: one column per number."""
    return as_csv(records(board, rows))


def as_csv(records: Sequence[Record]) -> str:
    """Return records as CSV; a missing value is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, records[0] if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def json_text(board: Leaderboard, rows: Sequence[Row] | None = None) -> str:
    """Return a leaderboard as JSON: a list of one study with its rows."""
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
    """Return plain values as JSON; nan and infinity are null."""
    return json.dumps(_without_nan(values), indent=1, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return finite(value) if isinstance(value, float) else value
