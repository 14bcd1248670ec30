"""Cuts tensors into runs that stay in a core's cache, and runs them on one thread.

Elementwise arithmetic makes several temporaries; on runs of 2**16 entries they stay in the L2
cache, on whole tensors each of them goes through main memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_BLOCK = 1 << 16
"""Entries per block on a CPU: 256 KiB per float32 temporary (measured best: 2**16 to 2**17).

A power of two no larger than a chunk of masks (masks.py), so that each block lies in one.
"""
GPU_BLOCK = 1 << 26
"""Entries per block on an accelerator: 256 MiB per float32 temporary."""


def blocks(n_entries: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``[0, n_entries)`` in order."""
    yield from _slices(n_entries, _block_size(device))


def row_blocks(n_rows: int, n_columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of whole rows that cover ``[0, n_rows)`` in order, one row at least in each.

    Work on rows is heavier than elementwise work: an accelerator gets an eighth of a block.
    """
    size = _block_size(device) // (1 if device.type == "cpu" else 8)
    yield from _slices(n_rows, max(size // max(n_columns, 1), 1))


def _block_size(device: torch.device) -> int:
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one CPU thread, then give back what there was.

    Blocks are too small to share: each of some forty steps per block would wait for all threads,
    and where other work holds a core that wait takes milliseconds (measured: 300 times slower).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
