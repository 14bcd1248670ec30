"""Which delta entries are kept: DARE's random masks and the magnitude trim of TIES.

Random masks come from a counter-based hash of (mask_seed, tensor name, parent name, flat index):
nothing is stored, no global generator is touched, and the bits do not depend on chunks, order,
process or device. An entry is kept iff its uniform number is at least the drop rate, so a higher
rate only ever drops more. Knows no files and no models.

Shapes: N entries of a tensor or of a run of it.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

GRID = 1000
"""Steps of the magnitude trim: drop rates are rounded to 1/GRID."""

# Multipliers of the 32-bit integer hash "lowbias32" (C. Wellons, 2018), as signed int32.
_M1 = 0x7FEB352D
_M2 = 0x846CA68B - (1 << 32)


def keep_mask(
    drop_rate: float,
    start: int,
    count: int,
    *,
    mask_seed: int,
    tensor: str,
    parent: str,
    device: torch.device | str = "cpu",
) -> Tensor:
    """DARE's mask for a run of entries of one tensor.

    Args:
        drop_rate: Share of entries dropped, in ``[0, 1)``.
        start: Flat index of the first entry, any size.
        count: Number of entries N.
        mask_seed: Integer in ``[0, 2**64)``.
        tensor: Name of the tensor.
        parent: Name of the parent.
        device: Where the mask is made.

    Returns:
        Bool (N,), True where the entry is kept.

    Raises:
        ValueError: If ``drop_rate`` is outside ``[0, 1)``.

    Source:
        Yu et al., arXiv:2311.03099, Eq. 1 (m ~ Bernoulli).
    """
    _check_rate(drop_rate)
    bits = random_bits(
        start, count, mask_seed=mask_seed, tensor=tensor, parent=parent, device=device
    )
    # u >= p, with u = (bits + 2**31) / 2**32; the last step of u is always kept.
    return bits >= min(math.ceil(drop_rate * 2**32), 2**32 - 1) - 2**31


def random_bits(
    start: int,
    count: int,
    *,
    mask_seed: int,
    tensor: str,
    parent: str,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform int32 (N,), one per entry; ``(bits + 2**31) / 2**32`` is the uniform number u."""
    runs = []
    while count > 0:
        size = min(count, 2**31 - start % 2**31)
        first = start % 2**32 - (2**32 if start % 2**32 >= 2**31 else 0)  # as a signed int32
        index = torch.arange(first, first + size, dtype=torch.int32, device=device)
        keys = stream_keys(mask_seed, tensor, parent, start // 2**32)
        runs.append(hash_in_place(index, *keys))
        start, count = start + size, count - size
    return runs[0] if len(runs) == 1 else torch.cat(runs)


@lru_cache(maxsize=4096)
def stream_keys(mask_seed: int, tensor: str, parent: str, high: int) -> tuple[int, int]:
    """Two signed 32-bit keys of one stream; ``high`` is the flat index divided by 2**32."""
    text = "\0".join((str(mask_seed), tensor, parent, str(high)))
    digest = hashlib.sha256(text.encode()).digest()
    return (
        int.from_bytes(digest[:4], "little", signed=True),
        int.from_bytes(digest[4:8], "little", signed=True),
    )


def hash_in_place(x: Tensor, key: int, second_key: int) -> Tensor:
    """Hash int32 (N,) in place, keyed; logical shifts are arithmetic ones with the sign masked."""
    x ^= key
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _M1
    x ^= second_key
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _M2
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def magnitude_grid(delta: Tensor) -> Tensor:
    """Smallest magnitude kept at each drop rate of the grid, exactly.

    Entry q is the magnitude below which an entry is dropped at rate ``q / GRID``: the
    ``floor(q * N / GRID)`` smallest lie below it, unless magnitudes are equal, which are kept.

    Args:
        delta: Parent minus base, any shape, float32; left unchanged.

    Returns:
        float32 (GRID,) on the CPU.

    Source:
        Yadav et al., arXiv:2306.01708, Sec. 3, step 1 (top-k by magnitude).
    """
    magnitudes = delta.detach().abs().flatten()
    ranks = [q * magnitudes.numel() // GRID for q in range(GRID)]
    if magnitudes.device.type == "cpu":
        ordered = magnitudes.numpy()  # its sort uses SIMD, ten times as fast as torch's
        ordered.sort()
        return torch.from_numpy(ordered[np.array(ranks)])
    return magnitudes.sort().values[torch.tensor(ranks, device=magnitudes.device)].cpu()


def grid_step(drop_rate: float) -> int:
    """Index into `magnitude_grid`: the drop rate in steps of 1/GRID, rounded, below GRID."""
    _check_rate(drop_rate)
    return min(round(drop_rate * GRID), GRID - 1)


def _check_rate(drop_rate: float) -> None:
    if not 0.0 <= drop_rate < 1.0:
        raise ValueError(f"`drop_rate` must be in [0, 1), got {drop_rate}; use 0 to drop nothing")
