"""Cached statistics: safetensors files, written atomically and read by memory map.

A file belongs to one kind of statistics and to the hashes of the models it was computed from. A
damaged or truncated file, or one of another program or version, is computed again; if nothing can
be written, statistics stay in memory. Knows no models and no formulas.
"""

import hashlib
import json
import logging
import math
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..hints import reason

log = logging.getLogger(__name__)
VERSION = "1"
"""Increased when any kind is computed or laid out differently; other versions are rebuilt."""
_DTYPES = MappingProxyType({torch.uint8: "U8", torch.float32: "F32", torch.float64: "F64"})
_NO_SUM = b"--------"  # placeholder until the checksum of the data is known
_READ = 1 << 22  # bytes read at once
_STALE = 24 * 3600  # seconds after which a temporary file belongs to a dead process


def default_folder() -> Path:
    """Return `facts` in `$HETEROSIS_CACHE`, by default in `~/.cache/heterosis`."""
    root = os.environ.get("HETEROSIS_CACHE") or "~/.cache/heterosis"
    return Path(root).expanduser() / "facts"


@dataclass(frozen=True)
class StatisticsFile:
    """Header of a file of statistics.

    ``key`` holds the hashes of the models, in a fixed order; ``shapes`` the shapes of all tensors,
    in the order of the file; all have ``dtype``.
    """

    kind: str
    key: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Return the file name: the kind and a hash of the key."""
        text = "\n".join((self.kind, *self.key))
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    @property
    def n_bytes(self) -> int:
        """Return the size of the data, without the header."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize

    def header(self) -> bytes:
        """Return the file up to its data, with _NO_SUM in place of the checksum of the data."""
        start, entries = 0, {}
        for name, shape in self.shapes.items():
            end = start + math.prod(shape) * self.dtype.itemsize
            entries[name] = {
                "dtype": _DTYPES[self.dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            start = end
        about = {"heterosis_facts": VERSION, "kind": self.kind, "key": " ".join(self.key)}
        about["crc32"] = _NO_SUM.decode()
        text = json.dumps({"__metadata__": about, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class StatisticsCache:
    """Files of statistics in one folder; safe to share between processes."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is created at the first write."""
        self._folder = folder
        self._is_writable = True

    def get(
        self, file: StatisticsFile, compute: Callable[[], Iterable[tuple[str, Tensor]]]
    ) -> Mapping[str, Tensor] | None:
        """Return the statistics of a file; compute and write them if there is no valid one.

        Args:
            file: Describes the statistics.
            compute: Returns (name, tensor on the CPU) in the order of ``file.shapes``; its
                exceptions propagate and leave no file.

        Returns:
            Name -> tensor, memory-mapped and read-only; None if no file is usable and none can be
            written (logged once).
        """
        path = self._folder / file.name
        tensors = _read(path, file)
        if tensors is None and self._is_writable:
            try:
                _write(path, file, compute())
                tensors = _read(path, file)
            except OSError as error:
                self._is_writable = False
                log.warning(
                    "statistics cannot be cached in %s (%s); they stay in memory for this run, set "
                    "HETEROSIS_CACHE to a folder with room",
                    self._folder,
                    error.strerror or error,
                )
        return tensors


def _read(path: Path, file: StatisticsFile) -> Mapping[str, Tensor] | None:
    try:
        fault = _fault(path, file)
        if fault is None:
            with safe_open(path, framework="pt") as handle:
                return {name: handle.get_tensor(name) for name in file.shapes}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError) as error:
        fault = reason(error)
    log.warning("statistics in %s are computed again: %s", path, fault)
    return None


def _fault(path: Path, file: StatisticsFile) -> str | None:
    expected = file.header()
    with path.open("rb") as stream:
        header = stream.read(len(expected))
        size = os.fstat(stream.fileno()).st_size
        at = expected.index(_NO_SUM)
        found = header[at : at + len(_NO_SUM)]
        if header[:at] + _NO_SUM + header[at + len(_NO_SUM) :] != expected:
            return "another program or version wrote the file, or its header is damaged"
        if size != len(expected) + file.n_bytes:
            return f"{size} bytes instead of {len(expected) + file.n_bytes}"
        checksum = 0
        while piece := stream.read(_READ):
            checksum = zlib.crc32(piece, checksum)
    return None if found == b"%08x" % checksum else "its data are damaged"


def _write(path: Path, file: StatisticsFile, tensors: Iterable[tuple[str, Tensor]]) -> None:
    # Atomic: a temporary file beside it, renamed when it is complete and on the disk.
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            _fill(stream, file, tensors)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _fill(stream: BinaryIO, file: StatisticsFile, tensors: Iterable[tuple[str, Tensor]]) -> None:
    header = file.header()
    stream.write(header)
    checksum, names = 0, iter(file.shapes.items())
    for name, tensor in tensors:
        assert (name, tuple(tensor.shape)) == next(names) and tensor.dtype == file.dtype
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(data, checksum)
        stream.write(data)
    assert next(names, None) is None
    stream.seek(header.index(_NO_SUM))
    stream.write(b"%08x" % checksum)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was faster
