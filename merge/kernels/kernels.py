"""The two kernels: a linear combination and a masked consensus, eager or compiled.

Each reads base and parents once and overwrites `out` once, in float32 that is rounded at the
write. Scalars are tensors, so that one compiled kernel serves every recipe: `floats[k]` and
`ints[k]` are 0-dim, or (N,) if entries of several tensors are merged together. Products and sums
are separate steps in a fixed order, so eager and compiled give the same bits. Knows the options of
plans; no recipes, names or files.

Shapes: P parents that take part, N entries.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from ..statistics.variance import variance
from .masks import hashed_places, shared_bits

FLOATS_HEAD, FLOATS_EACH = 2, 5
SCALE, WEIGHT, LOW, HIGH, SHARE = range(5)
"""Floats of a consensus: factor, pair gain; then per parent scale, weight, low, high, share.

If two parents are averaged, `weight` is the gain of one elected alone, factor / weights_i, and the
pair gain is factor / (weights_0 + weights_1). For "ranked", low and high are the numbers of
`rank_window`, and the scale includes a factor 2**32. If signs are elected, scales include a factor
LIFT, and gains (or the factor) 1 / LIFT.
"""
INTS_HEAD, INTS_EACH = 1, 2
"""Integers: the shared key; then per parent its multiplier and the threshold of "random"."""
RANK_STEPS = 256
RANK_UNIT = 1 << 24
"""Drop probabilities of "ranked" are multiples of 1/RANK_UNIT, which float32 represents and adds
exactly on every device, fused or not."""
LIFT = 2.0**64
"""Keeps the product of two small votes from underflowing; a power of two changes no bit."""
_TINY = 1e-30  # far below any sum of weights, yet avoids 0 / 0 if no parent agrees


@runtime_checkable
class Scalars(Protocol):
    """Rows of numbers: 0-dim each, or one value per entry (N,)."""

    def __getitem__(self, row: int, /) -> Tensor:
        """Return row number ``row``."""
        ...


def write_combination(
    out: Float[Tensor, " N"],
    base: Float[Tensor, " N"] | None,
    parents: Sequence[Float[Tensor, " N"]],
    floats: Scalars,
) -> None:
    """Overwrite ``out`` (N,) with floats[0] * base + sum_i floats[1 + i] * parent_i.

    Args:
        out: Any floating dtype.
        base: (N,), or None if its share is 0 (then it is not read).
        parents: P of (N,), any floating dtype.
        floats: 1 + P rows.
    """
    total = None if base is None else base.float() * floats[0]
    for i, parent in enumerate(parents):
        term = parent.float() * floats[1 + i]
        total = term if total is None else total + term
    if total is None:
        out.zero_()
    else:
        out.copy_(total)


def write_consensus(
    out: Float[Tensor, " N"],
    base: Float[Tensor, " N"],
    parents: Sequence[Float[Tensor, " N"]],
    maps: Sequence[UInt8[Tensor, " N"]],
    floats: Scalars,
    ints: Scalars | None,
    hashed: Int32[Tensor, " N"] | None,
    keep: str,
    combine: str,
    has_shares: bool,
    has_high: bool,
) -> None:
    """Overwrite ``out`` (N,) with base plus masked, scaled deltas, as `plans.Consensus` defines.

    Args:
        out: Any floating dtype.
        base: (N,), any floating dtype.
        parents: P of (N,), any floating dtype.
        maps: P of (N,) uint8 for "ranked" (rank maps) and "important" (masks), else none.
        floats: FLOATS_HEAD + P * FLOATS_EACH rows.
        ints: INTS_HEAD + P * INTS_EACH rows if masks are random, else None.
        hashed: int32 (N,), `masks.hashed_places` if masks are random; None computes them here, for
            entries counted from the first of a region.
        keep: As in `plans.Consensus`.
        combine: As in `plans.Consensus`.
        has_shares: Whether `shares` weigh the votes of parents that agree.
        has_high: Whether any `high` of a "band" is finite.
    """
    base = base.float()
    deltas = [parent.float() - base for parent in parents]
    if ints is not None:
        if hashed is None:
            places = torch.arange(out.numel(), dtype=torch.int32, device=out.device)
            hashed = hashed_places(places)
        votes = _random_votes(keep, deltas, maps, floats, shared_bits(hashed, ints[0]), ints)
    else:
        votes = _masked_votes(keep, deltas, maps, floats, has_high)
    out.copy_(base + _combined(votes, floats, combine, has_shares))


def _masked_votes(
    keep: str,
    deltas: Sequence[Tensor],
    maps: Sequence[Tensor],
    floats: Scalars,
    has_high: bool,
) -> list[Tensor]:
    # scale_i * m_i * delta_i, with masks computed from the entries.
    common = variance(deltas) >= floats[_row(0, LOW)] if keep == "common" else None
    votes = []
    for i, delta in enumerate(deltas):
        if keep == "near":
            limit = floats[_row(i, LOW)]
            delta = torch.minimum(torch.maximum(delta, -limit), limit)
        vote = delta * floats[_row(i, SCALE)]
        if keep == "band":
            size = delta.abs()
            is_kept = size >= floats[_row(i, LOW)]
            if has_high:
                is_kept = is_kept & (size < floats[_row(i, HIGH)])
            vote = torch.where(is_kept, vote, 0.0)
        elif keep == "important":
            vote = torch.where(maps[i] != 0, vote, 0.0)
        elif common is not None:
            vote = torch.where(common, vote, 0.0)
        votes.append(vote)
    return votes


def _random_votes(
    keep: str,
    deltas: Sequence[Tensor],
    maps: Sequence[Tensor],
    floats: Scalars,
    shared: Tensor,
    ints: Scalars,
) -> list[Tensor]:
    # The same with random masks: kept iff u >= p, with u from the bits (masks.py).
    votes = []
    for i, delta in enumerate(deltas):
        bits = shared * ints[INTS_HEAD + INTS_EACH * i]
        vote = delta * floats[_row(i, SCALE)]
        if keep == "random":
            vote = torch.where(bits >= ints[INTS_HEAD + INTS_EACH * i + 1], vote, 0.0)
        else:
            least = floats[_row(i, LOW)] - floats[_row(i, HIGH)] * maps[i].float()
            vote = torch.where(bits.float() >= least, vote, 0.0) / (2.0**31 - least)
        votes.append(vote)
    return votes


def _row(parent: int, which: int) -> int:
    return FLOATS_HEAD + FLOATS_EACH * parent + which


def _combined(votes: list[Tensor], floats: Scalars, combine: str, has_shares: bool) -> Tensor:
    # arXiv:2306.01708, Sec. 3, steps 2-3: elect the sign of the sum, average the votes that agree.
    total = votes[0]
    for vote in votes[1:]:
        total = total + vote
    if combine == "sum":
        return total
    agree = [vote * total > 0.0 for vote in votes]
    gains = [floats[_row(i, WEIGHT)] for i in range(len(votes))]
    if combine == "elect_mean" and len(votes) == 2 and not has_shares:
        alone = torch.where(agree[1], votes[1] * gains[1], 0.0)
        first = torch.where(agree[1], total * floats[1], votes[0] * gains[0])
        return torch.where(agree[0], first, alone)
    if has_shares:
        votes = [vote * floats[_row(i, SHARE)] for i, vote in enumerate(votes)]
    taken = _masked_sum(agree, votes)
    if combine == "elect_mean":
        taken = taken / (_masked_sum(agree, gains) + _TINY)
    return taken * floats[0]


def _masked_sum(masks: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    total = torch.where(masks[0], terms[0], 0.0)
    for mask, term in zip(masks[1:], terms[1:], strict=True):
        total = total + torch.where(mask, term, 0.0)
    return total


def rank_window(low: float, high: float) -> tuple[float, float]:
    """Return (a, s): an entry of rank code c is kept iff its bits are at least a - s * c.

    Its drop probability is ``(a - s * c) / 2**32 + 1/2``, a multiple of 1/RANK_UNIT. All
    differences of these numbers are exact in float32.

    Args:
        low: Drop probability of the smallest entry.
        high: Drop probability of the largest, at most ``low``.
    """
    step = math.floor((low - high) / RANK_STEPS * RANK_UNIT)
    middle = round((low + high) / 2 * RANK_UNIT) + (RANK_STEPS - 1) * step // 2
    return (middle - RANK_UNIT // 2) * 256.0, step * 256.0
