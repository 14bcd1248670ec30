"""The folded file of an item store: where each (trial, split) stands in it, and its rows.

What is asked for is read, and not more: of ten thousand trials a leaderboard looks at twenty. Knows
one parquet file; what else lies in the folder is the matter of `store.py`.
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
"""Rows that are read together: some hundred trials. Smaller groups make a larger file."""


class FoldedFile:
    """One version of a folded file. No file is held open: who unmounts a disk must be able to.

    Args:
        path: The file.

    Attributes:
        version: Of the file.
        spans: (trial, split) -> the first and last row, and its header; several where its rows do
            not stand together.

    Raises:
        FileNotFoundError: If it is not there, or later another version of it is.
        StoreError: If it is torn or foreign.
    """

    def __init__(self, path: Path) -> None:
        """Read where everything stands."""
        self._path, self.version = path, version_of(path)
        self._held: tuple[tuple[int, int], pa.Table] | None = None
        with self._opened() as file:
            self._headers = headers(file.schema_arrow)
            metadata = file.metadata
            sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            self._ends = np.cumsum(sizes, dtype=np.int64)
            self.spans = _spans(file.read(columns=["trial", "split", "header"]))

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """The file, if it is still this version."""
        with opened(self._path) as file:
            if version_of(self._path) != self.version:
                raise FileNotFoundError(f"{self._path} has been written anew")
            yield file

    def fingerprints(self) -> dict[Key, str]:
        """Fingerprint of everything in it; "" where none was kept."""
        return {
            key: self._headers[spans[0][2]].get("fingerprint", "")
            for key, spans in self.spans.items()
        }

    def whole(self) -> pa.Table:
        """All rows."""
        with self._opened() as file:
            return completed(file.read())

    def rows(self, key: Key) -> pa.Table | None:
        """The rows of one (trial, split); None without any."""
        spans = self.spans.get(key)
        if spans is None:
            return None
        return pa.concat_tables([self._slice(start, stop) for start, stop, _ in spans])

    def without(self, keys: set[Key]) -> pa.Table:
        """All rows but those of some (trial, split)."""
        table = self.whole()
        keep = np.ones(table.num_rows, dtype=bool)
        for key in keys & self.spans.keys():
            for start, stop, _ in self.spans[key]:
                keep[start:stop] = False
        return table if keep.all() else table.filter(pa.array(keep))

    def _slice(self, start: int, stop: int) -> pa.Table:
        """Rows from start to stop; the groups that hold them are kept for the next who asks."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        if self._held is None or self._held[0] != (first, last):
            with self._opened() as file:
                groups = completed(file.read_row_groups(range(first, last + 1)))
            self._held = ((first, last), groups)
        before = int(self._ends[first - 1]) if first else 0
        return self._held[1].slice(start - before, stop - start)


def version_of(path: Path) -> tuple[int, int, int]:
    """What tells one version of a file from another."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _spans(keys: pa.Table) -> dict[Key, list[tuple[int, int, int]]]:
    """(trial, split) -> (start, stop, header) of its rows."""
    if not keys.num_rows:
        return {}
    trial, header = numbers(keys, "trial"), numbers(keys, "header")
    coded = keys["split"].combine_chunks().dictionary_encode()
    names: list[str] = coded.dictionary.to_pylist()
    split = np.from_dlpack(coded.indices)
    differs = (trial[1:] != trial[:-1]) | (split[1:] != split[:-1])
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    stops = np.append(starts[1:], trial.size)
    found: dict[Key, list[tuple[int, int, int]]] = {}
    of_spans = (trial[starts], split[starts], starts, stops, header[starts])
    for t, s, start, stop, head in zip(*(column.tolist() for column in of_spans), strict=True):
        found.setdefault((t, names[s]), []).append((start, stop, head))
    return found


def write_folded(table: pa.Table, file: object) -> None:
    """Write a table as `FoldedFile` reads it best."""
    pq.write_table(table, file, compression="zstd", row_group_size=GROUP_ROWS)
