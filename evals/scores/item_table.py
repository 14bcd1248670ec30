"""Item scores as parquet tables: their columns, what stands once per file, and how tables join.

Knows pyarrow and item scores; which file holds what is the matter of `store.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .scores import COLUMNS, OPTIONAL, PER_TASK, ItemScores, item_scores

HEADERS = b"heterosis.headers"
SCHEMA = pa.schema(
    [
        ("trial", pa.int64()),
        ("split", pa.string()),
        ("header", pa.int64()),  # row of the JSON list in the file's metadata: tasks, metrics, ...
        ("task", pa.string()),
        ("task_index", pa.int64()),
        ("doc_id", pa.int64()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        *((name, pa.float64()) for name in OPTIONAL),
    ]
)


class StoreError(ValueError):
    """A file in the store's folder cannot be read as what its name says."""


def header_of(scores: ItemScores) -> dict[str, Any]:
    """What an `ItemScores` says once, ready for JSON: lists per task, and the fingerprint."""
    per_task: dict[str, Any] = {name: list(getattr(scores, name)) for name in PER_TASK}
    return per_task | {"fingerprint": scores.fingerprint}


def to_table(trial: int, split: str, scores: ItemScores) -> pa.Table:
    """One part: n rows and the header in the metadata."""
    columns: dict[str, Any] = {
        "trial": np.full(scores.n, trial, dtype=np.int64),
        "split": [split] * scores.n,
        "header": np.zeros(scores.n, dtype=np.int64),
        "task": [scores.tasks[i] for i in scores.task_index],
    }
    columns |= {name: np.asarray(getattr(scores, name)) for name in COLUMNS}
    table = pa.table(columns, schema=SCHEMA)
    return table.replace_schema_metadata({HEADERS: json.dumps([header_of(scores)])})


def headers(schema: pa.Schema) -> list[dict[str, Any]]:
    """The headers that a file carries in its metadata."""
    return json.loads((schema.metadata or {})[HEADERS])


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers, by DLPack: pyarrow's own way imports pandas, 0.3 s of a leaderboard."""
    chunks = [np.from_dlpack(chunk) for chunk in table[name].chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.int64), *chunks])


def to_scores(table: pa.Table) -> ItemScores:
    """Rows of one (trial, split), in any order, back to `ItemScores`; (n,) columns."""
    header = headers(table.schema)[table["header"][0].as_py() if table.num_rows else 0]
    order = np.lexsort((numbers(table, "doc_id"), numbers(table, "task_index")))
    columns = {name: numbers(table, name)[order] for name in COLUMNS}
    return item_scores(header, columns, header.get("fingerprint", ""))


def completed(table: pa.Table) -> pa.Table:
    """A table of a study from before some optional columns were kept, with nan in their place."""
    missing = [name for name in OPTIONAL if name not in table.schema.names]
    if not missing:
        return table
    empty = pa.array(np.full(table.num_rows, np.nan))
    for name in missing:
        table = table.append_column(SCHEMA.field(name), empty)
    return table.select(SCHEMA.names)


def fold(tables: list[pa.Table]) -> pa.Table:
    """Join tables, sharing equal headers between them."""
    if len(tables) == 1:
        return tables[0]
    shared: list[dict[str, Any]] = []
    for position, table in enumerate(tables):
        own = headers(table.schema)
        shared += [header for header in own if header not in shared]
        rows = np.array([shared.index(header) for header in own], dtype=np.int64)
        column = pa.array(rows[numbers(table, "header")])
        at = table.schema.get_field_index("header")
        tables[position] = table.set_column(at, "header", column).replace_schema_metadata(None)
    return pa.concat_tables(tables).replace_schema_metadata({HEADERS: json.dumps(shared)})


def load(path: Path) -> pa.Table:
    """Read a file of ours.

    Raises:
        FileNotFoundError: If it is not there (any more).
        StoreError: If it is torn, or is not ours.
    """
    with opened(path) as file:
        return completed(file.read())


def opened(path: Path) -> pq.ParquetFile:
    """Open a file of ours, and read none of its rows; raises as `load`."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"{path} must be a readable parquet file, got: {str(error).splitlines()[0]}; "
            "remove it: the same search command scores again what it held"
        ) from error
    found = file.schema_arrow
    own = [field for field in SCHEMA if field.name in found.names or field.name not in OPTIONAL]
    if list(found) != own or HEADERS not in (found.metadata or {}):
        file.close()
        raise StoreError(
            f"{path} must hold the item columns {', '.join(SCHEMA.names)}, got "
            f"{', '.join(found.names)}; it was not written by heterosis: move it away"
        )
    return file
