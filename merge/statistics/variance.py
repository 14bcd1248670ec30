"""Variance over parents (SCE): the smallest selected, and the sums of squares of selected deltas.

Knows no files and no recipes.

Shapes: P parents, N entries of a tensor.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from ..blocks import blocks
from .quantiles import GRID, delta, grid_ranks, order_statistics


def variance(deltas: Sequence[Float32[Tensor, "*S"]]) -> Float32[Tensor, "*S"]:
    """Return the variance over P deltas, entry by entry, in float32; inputs are left unchanged.

    Statistics and kernels both call this, since entries at the threshold are compared by their
    bits, which depend on the order of the parents.

    Args:
        deltas: P of ``(*S)``, float32.

    Returns:
        float32 ``(*S)``: mean over parents of (delta_i - mean)^2.

    Source:
        Wan et al., arXiv:2408.07990, Sec. 3.3 (the select step).
    """
    share = 1.0 / len(deltas)
    total = deltas[0]
    for one in deltas[1:]:
        total = total + one
    mean = total * share
    squares = (deltas[0] - mean).square()
    for one in deltas[1:]:
        squares = squares + (one - mean).square()
    return squares * share


def variance_table(tensors: Sequence[Float[Tensor, "*S"]]) -> Float64[Tensor, "K GRID"]:
    """Return the smallest selected variance and sums of delta^2 on a grid of `select_topk`.

    Column q belongs to ``select_topk = 1 - q / GRID``. At q = 0 all entries are selected, from
    variance 0. At other steps an entry is selected if its variance is at least that of rank
    ``floor(q * M / GRID)`` among the M entries with nonzero variance, in ascending order; if M = 0,
    nothing is selected, from variance infinity. Entries of equal variance are all selected;
    mergekit takes those that its sort puts first.

    Args:
        tensors: Base and P parents, each ``(*S)``, any floating dtype, on one device; unchanged.

    Returns:
        float64 (1 + P, GRID) on the CPU: smallest variance selected, then per parent the sum of
        delta^2 over the selected entries, added as integers so that the order does not matter.

    Source:
        Wan et al., arXiv:2408.07990, Sec. 3.3 (select and calculate steps).
    """
    base, *parents = [tensor.reshape(-1) for tensor in tensors]
    n = base.numel()
    table = torch.zeros(1 + len(parents), GRID, dtype=torch.float64)
    table[0, 1:] = math.inf
    if n == 0:
        return table

    def pieces() -> Iterator[list[Tensor]]:
        for run in blocks(n, base.device):
            yield [delta(base[run], parent[run]) for parent in parents]

    largest, n_zero = _survey(pieces(), len(parents))
    if n_zero < n:
        places = [n_zero + rank for rank in grid_ranks(n - n_zero)]
        smallest = order_statistics(lambda: map(variance, pieces()), n, places)
        table[0, 1:] = smallest[1:].double()
    thresholds = table[0].float().to(base.device)
    units = [_unit(top, n) for top in largest]
    table[1:] = _selected_squares(pieces(), thresholds, units)
    return table


def _survey(pieces: Iterator[list[Tensor]], n_parents: int) -> tuple[list[float], int]:
    # Largest |delta| of each parent, and the number of entries whose variance is 0.
    largest, n_zero = [0.0] * n_parents, 0
    for deltas in pieces:
        largest = [
            max(top, float(one.abs().amax())) for top, one in zip(largest, deltas, strict=True)
        ]
        variances = variance(deltas)
        n_zero += variances.numel() - int(variances.count_nonzero())
    return largest, n_zero


def _unit(largest: float, n_entries: int) -> float:
    # A power of two as the unit of squares, such that N squares sum to less than 2**62.
    exponent = math.frexp(largest)[1] * 2 + n_entries.bit_length()
    return math.ldexp(1.0, exponent - 62)


def _selected_squares(
    pieces: Iterator[list[Tensor]], thresholds: Tensor, units: list[float]
) -> Tensor:
    # Sums float64 (P, GRID). An entry counts at every step whose threshold it reaches: it is added
    # to the last such step, then steps are accumulated from the end.
    sums = torch.zeros(len(units), GRID, dtype=torch.int64, device=thresholds.device)
    for deltas in pieces:
        last = torch.searchsorted(thresholds, variance(deltas), right=True).sub_(1)
        for row, one, unit in zip(sums, deltas, units, strict=True):
            squares = one.double().square_().div_(unit).round_().to(torch.int64)
            row.scatter_add_(0, last, squares)
    totals = sums.flip(1).cumsum(1).flip(1).cpu().double()
    return totals * torch.tensor(units, dtype=torch.float64).unsqueeze(1)
