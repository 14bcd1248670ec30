"""Cut tensors into blocks that fit a core's cache; limit torch to one thread.

Elementwise arithmetic makes several temporaries. For blocks of 2**16 entries they stay in the L2
cache; for whole tensors each goes through main memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_BLOCK = 1 << 16
"""Entries per block on a CPU: 256 KiB per float32 temporary (measured best: 2**16 to 2**17).

A power of two no larger than a chunk of masks (masks.py), so that a block never spans two chunks.
"""
GPU_BLOCK = 1 << 26
"""Entries per block on an accelerator: 256 MiB per float32 temporary."""


def blocks(n_entries: int, device: torch.device) -> Iterator[slice]:
    """Yield slices that cover ``[0, n_entries)`` in order."""
    yield from _slices(n_entries, _block_size(device))


def row_blocks(n_rows: int, n_columns: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of rows that cover ``[0, n_rows)`` in order, at least one row each.

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
    """Limit torch to one CPU thread, then restore the number of threads.

    Blocks are too small to share: each of some forty steps per block would wait for all threads,
    which takes milliseconds if another process occupies a core (measured: 300 times slower).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
