"""Cuts tensors into runs that stay in a core's cache, and runs them on one thread.

Elementwise arithmetic makes several temporaries; on runs of 2**16 entries they stay in the L2
cache, on whole tensors each of them goes through main memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_BLOCK = 1 << 16
"""Entries per block on a CPU: 256 KiB per float32 temporary (measured best: 2**16 to 2**17)."""

GPU_BLOCK = 1 << 26
"""Entries per block on an accelerator: 256 MiB per float32 temporary."""


def blocks(n_entries: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``[0, n_entries)`` in order."""
    size = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    for start in range(0, n_entries, size):
        yield slice(start, min(start + size, n_entries))


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
