"""The compacted file of an item store: its index of (trial, split), and reading rows by it.

Only the rows asked for are read: of ten thousand trials a leaderboard needs twenty. Knows one
parquet file; `store.py` knows the folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .item_table import completed, headers, numbers, opened

Key = tuple[int, str]  # trial, split
GROUP_ROWS = 1 << 14
"""Rows per row group, the unit of reading: about a hundred trials. Smaller groups: larger file."""


class CompactedFile:
    """One version of a compacted file, closed between reads so that its disk can be unmounted.

    Args:
        path: Path of the file.

    Attributes:
        version: Version of the file, from `version_of`.
        spans: (trial, split) -> spans of its rows, as (start, stop, header).

    Raises:
        FileNotFoundError: If the file is missing, or was replaced after this object was made.
        StoreError: If the file is damaged or not an item store's.
    """

    def __init__(self, path: Path) -> None:
        """Read the index."""
        self._path, self.version = path, version_of(path)
        self._cached: tuple[tuple[int, int], pa.Table] | None = None  # row groups, their rows
        with self._opened() as file:
            self._headers = headers(file.schema_arrow)
            metadata = file.metadata
            sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            self._ends = np.cumsum(sizes, dtype=np.int64)
            self.spans = _spans(file.read(columns=["trial", "split", "header"]))

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """Open the file, if it is still this version."""
        with opened(self._path) as file:
            if version_of(self._path) != self.version:
                raise FileNotFoundError(f"{self._path} has been written anew")
            yield file

    def fingerprints(self) -> dict[Key, str]:
        """Return the fingerprint of each (trial, split); "" if none is stored."""
        return {
            key: self._headers[spans[0][2]].get("fingerprint", "")
            for key, spans in self.spans.items()
        }

    def table(self) -> pa.Table:
        """Read all rows."""
        with self._opened() as file:
            return completed(file.read())

    def rows(self, key: Key) -> pa.Table | None:
        """Read the rows of one (trial, split); None if it has none."""
        spans = self.spans.get(key)
        if spans is None:
            return None
        return pa.concat_tables([self._slice(start, stop) for start, stop, _ in spans])

    def without(self, keys: set[Key]) -> pa.Table:
        """Read all rows except those of some (trial, split)."""
        table = self.table()
        keep = np.ones(table.num_rows, dtype=bool)
        for key in keys & self.spans.keys():
            for start, stop, _ in self.spans[key]:
                keep[start:stop] = False
        return table if keep.all() else table.filter(pa.array(keep))

    def _slice(self, start: int, stop: int) -> pa.Table:
        """Read rows start to stop; the last row groups read are cached for the next call."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        if self._cached is None or self._cached[0] != (first, last):
            with self._opened() as file:
                groups = completed(file.read_row_groups(range(first, last + 1)))
            self._cached = ((first, last), groups)
        before = int(self._ends[first - 1]) if first else 0
        return self._cached[1].slice(start - before, stop - start)


def version_of(path: Path) -> tuple[int, int, int]:
    """Return what identifies a version of a file: modification time, size and inode."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _spans(keys: pa.Table) -> dict[Key, list[tuple[int, int, int]]]:
    """Return the spans of each (trial, split), as (start, stop, header)."""
    if not keys.num_rows:
        return {}
    trial, header = numbers(keys, "trial"), numbers(keys, "header")
    coded = keys["split"].combine_chunks().dictionary_encode()
    names: list[str] = coded.dictionary.to_pylist()
    split = np.from_dlpack(coded.indices)
    differs = (trial[1:] != trial[:-1]) | (split[1:] != split[:-1])
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    stops = np.append(starts[1:], trial.size)
    spans: dict[Key, list[tuple[int, int, int]]] = {}
    columns = (trial[starts], split[starts], starts, stops, header[starts])
    for t, s, start, stop, head in zip(*(column.tolist() for column in columns), strict=True):
        spans.setdefault((t, names[s]), []).append((start, stop, head))
    return spans


def write_compacted(table: pa.Table, file: object) -> None:
    """Write a table with the row groups that `CompactedFile` expects."""
    pq.write_table(table, file, compression="zstd", row_group_size=GROUP_ROWS)
