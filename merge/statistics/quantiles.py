"""Exact order statistics of magnitudes: the smallest |delta| kept at each drop rate.

Thresholds are computed once on a grid of drop rates, so that no candidate has to sort. Small
tensors are sorted; large ones are counted by the bits of their float32 numbers, in three passes
over blocks, without a second copy of the tensor. Both give the same bits. Knows no files.

Shapes: N entries of a tensor, Q ranks asked for.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from ..blocks import blocks

GRID = 1000
"""Steps of the grid: drop rates are rounded to 1/GRID."""
SORT_LIMIT = 1 << 20
"""Entries up to which a tensor is sorted (4 MiB of float32); above, counting its bits is faster."""
_LEVELS = ((20, 11), (10, 10), (0, 10))
"""(shift, width) in bits of each pass over the 31 bits of a non-negative float32."""


def grid_step(drop_rate: float) -> int:
    """Return the index into `magnitude_grid`: the drop rate in steps of 1/GRID, rounded, below
    GRID.

    Raises:
        ValueError: If ``drop_rate`` is outside ``[0, 1)``.
    """
    if not 0.0 <= drop_rate < 1.0:
        raise ValueError(f"`drop_rate` must be in [0, 1), got {drop_rate}; use 0 to drop nothing")
    return min(round(drop_rate * GRID), GRID - 1)


def grid_ranks(n_entries: int) -> list[int]:
    """Return the number of entries dropped at each step of the grid: floor(q * N / GRID)."""
    return [q * n_entries // GRID for q in range(GRID)]


def delta(base: Float[Tensor, "*S"], parent: Float[Tensor, "*S"]) -> Float32[Tensor, "*S"]:
    """Return parent minus base in float32: the delta of kernels and statistics."""
    return parent.to(torch.float32) - base.to(torch.float32)


def magnitude_grid(
    base: Float[Tensor, "*S"], parent: Float[Tensor, "*S"]
) -> Float32[Tensor, " GRID"]:
    """Return the smallest magnitude of the delta kept at each drop rate of the grid, exactly.

    Entries below element q are dropped at rate ``q / GRID``: the ``floor(q * N / GRID)`` smallest,
    except for those equal to it, which are kept.

    Args:
        base: Any shape ``(*S)``, floating point.
        parent: ``(*S)``, any floating dtype, on the device of ``base``.

    Returns:
        float32 (GRID,) on the CPU; zeros if there are no entries.

    Source:
        Yadav et al., arXiv:2306.01708, Sec. 3, step 1 (top-k by magnitude).
    """
    if base.numel() == 0:
        return torch.zeros(GRID)
    flat_base, flat_parent = base.reshape(-1), parent.reshape(-1)

    def magnitudes() -> Iterator[Tensor]:
        for run in blocks(flat_base.numel(), flat_base.device):
            yield delta(flat_base[run], flat_parent[run]).abs_()

    return order_statistics(magnitudes, base.numel(), grid_ranks(base.numel()))


def order_statistics(
    pieces: Callable[[], Iterator[Float32[Tensor, "*piece"]]], n_entries: int, ranks: Sequence[int]
) -> Float32[Tensor, " Q"]:
    """Return the entries at some ranks of the ascending order.

    The workspace is at most 8 bytes times SORT_LIMIT for small inputs and some 40 MiB for large
    ones of any size; ``pieces`` is iterated up to three times.

    Args:
        pieces: Returns the N entries in pieces of any size, the same at each call: float32, no
            negative numbers, no NaN. The pieces are left unchanged.
        n_entries: N, at least 1.
        ranks: Q ranks in ``[0, N)``.

    Returns:
        float32 (Q,) on the CPU.
    """
    places = torch.tensor(ranks, dtype=torch.int64)
    if n_entries > SORT_LIMIT:
        return _count_bits(pieces, places)
    ordered = sort_rows(torch.cat([piece.reshape(-1) for piece in pieces()]))
    return ordered[places.to(ordered.device)].cpu()


def sort_rows(x: Shaped[Tensor, "*S"]) -> Shaped[Tensor, "*S"]:
    """Sort a contiguous tensor along its last dimension; on the CPU it is overwritten."""
    if x.device.type != "cpu":
        return x.sort(dim=-1).values
    x.numpy().sort(axis=-1)  # SIMD: several times as fast as torch
    return x


def _count_bits(pieces: Callable[[], Iterator[Tensor]], places: Tensor) -> Tensor:
    # Non-negative floats are ordered like their bits. Each pass determines the next bits of each
    # rank: it counts entries by these bits, separately for each prefix that some rank has (a slot).
    rest, slots = places.clone(), torch.zeros_like(places)
    result = torch.zeros_like(places)
    tables: list[Tensor] = []  # per earlier pass: prefix -> slot; the last slot is for no rank
    n_slots = 1
    for shift, width in _LEVELS:
        n_bins = n_slots << width
        below = torch.zeros(n_bins + 1, dtype=torch.int64)  # entries in earlier bins
        torch.cumsum(_counts(pieces, tables, n_bins), 0, out=below[1:])
        rest += below[slots << width]
        bins = torch.searchsorted(below[1:], rest, right=True)
        rest -= below[bins]
        result |= (bins & ((1 << width) - 1)) << shift
        wanted, slots = bins.unique(return_inverse=True)
        table = torch.full((n_bins,), len(wanted), dtype=torch.int32)
        table[wanted] = torch.arange(len(wanted), dtype=torch.int32)
        tables.append(table)
        n_slots = len(wanted) + 1
    return result.to(torch.int32).view(torch.float32)


def _counts(pieces: Callable[[], Iterator[Tensor]], tables: list[Tensor], n_bins: int) -> Tensor:
    # Entries per (slot, next bits), int64 (n_bins,) on the CPU.
    counts = None
    for piece in pieces():
        bits = piece.reshape(-1).view(torch.int32)
        index = bits >> _LEVELS[0][0]
        for table, (shift, width) in zip(tables, _LEVELS[1:], strict=False):
            index = table.to(bits.device).index_select(0, index) << width
            index |= (bits >> shift) & ((1 << width) - 1)
        if counts is None:
            counts = torch.zeros(n_bins, dtype=torch.int64, device=bits.device)
        counts.scatter_add_(0, index.to(torch.int64), counts.new_ones(1).expand_as(index))
    assert counts is not None
    return counts.cpu()
