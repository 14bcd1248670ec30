"""Item scores as parquet tables: the schema, the headers in the metadata, and conversions.

Knows pyarrow and item scores; `store.py` knows which file holds what.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..quiet import one_line
from .scores import COLUMNS, OPTIONAL, PER_TASK, ItemScores, item_scores

HEADERS = b"heterosis.headers"
SCHEMA = pa.schema(
    [
        ("trial", pa.int64()),
        ("split", pa.string()),
        (
            "header",
            pa.int64(),
        ),  # index in the JSON list in the file's metadata: tasks, metrics, ...
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
    """A file of an item store that cannot be read as what its name says."""


def header_of(scores: ItemScores) -> dict[str, Any]:
    """Return the header of some scores, ready for JSON: lists per task, and the fingerprint."""
    per_task: dict[str, Any] = {name: list(getattr(scores, name)) for name in PER_TASK}
    return per_task | {"fingerprint": scores.fingerprint}


def to_table(trial: int, split: str, scores: ItemScores) -> pa.Table:
    """Return the table of one part: n rows, and the header in the metadata."""
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
    """Return the headers in a file's metadata."""
    return json.loads((schema.metadata or {})[HEADERS])


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a numeric column by DLPack: pyarrow's `to_numpy` imports pandas, which takes 0.3 s."""
    chunks = [np.from_dlpack(chunk) for chunk in table[name].chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.int64), *chunks])


def to_scores(table: pa.Table) -> ItemScores:
    """Return rows of one (trial, split), in any order, as `ItemScores` (n items)."""
    header = headers(table.schema)[table["header"][0].as_py() if table.num_rows else 0]
    order = np.lexsort((numbers(table, "doc_id"), numbers(table, "task_index")))
    columns = {name: numbers(table, name)[order] for name in COLUMNS}
    return item_scores(header, columns, header.get("fingerprint", ""))


def completed(table: pa.Table) -> pa.Table:
    """Add missing optional columns as nan: earlier versions did not store them all."""
    missing = [name for name in OPTIONAL if name not in table.schema.names]
    if not missing:
        return table
    empty = pa.array(np.full(table.num_rows, np.nan))
    for name in missing:
        table = table.append_column(SCHEMA.field(name), empty)
    return table.select(SCHEMA.names)


def concatenate(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables; equal headers are stored once."""
    if len(tables) == 1:
        return tables[0]
    shared: list[dict[str, Any]] = []
    for position, table in enumerate(tables):
        listed = headers(table.schema)
        shared += [header for header in listed if header not in shared]
        rows = np.array([shared.index(header) for header in listed], dtype=np.int64)
        column = pa.array(rows[numbers(table, "header")])
        at = table.schema.get_field_index("header")
        tables[position] = table.set_column(at, "header", column).replace_schema_metadata(None)
    return pa.concat_tables(tables).replace_schema_metadata({HEADERS: json.dumps(shared)})


def load(path: Path) -> pa.Table:
    """Read all rows of a file of an item store.

    Raises:
        FileNotFoundError: If it does not exist (any more).
        StoreError: If it is damaged, or not an item store's.
    """
    with opened(path) as file:
        return completed(file.read())


def opened(path: Path) -> pq.ParquetFile:
    """Open a file of an item store without reading rows; raises as `load`."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(
            f"{path} must be a readable parquet file, got: {one_line(error)}; "
            "remove it: the same search command scores its items again"
        ) from error
    schema = file.schema_arrow
    wanted = [field for field in SCHEMA if field.name in schema.names or field.name not in OPTIONAL]
    if list(schema) != wanted or HEADERS not in (schema.metadata or {}):
        file.close()
        raise StoreError(
            f"{path} must hold the item columns {', '.join(SCHEMA.names)}, got "
            f"{', '.join(schema.names)}; heterosis did not write it: move it away"
        )
    return file
