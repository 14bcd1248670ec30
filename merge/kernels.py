"""The two kernels: a linear combination, and a masked consensus. One source, eager or compiled.

Each overwrites `out` once, from one read of base and parents, in float32 that is rounded at the
write. Scalars come in as tensors, so that one compiled kernel serves every recipe: `floats[k]` and
`ints[k]` are 0-dim, or (N,) where entries of several tensors are merged together. Products and
sums are separate steps in a fixed order, so eager and compiled give the same bits. Knows plans'
words and no recipes, names or files.

Shapes: P parents that take part, N entries.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .masks import hash_bits
from .spread import variance

FLOATS_HEAD, FLOATS_EACH = 2, 5
"""Floats of a consensus: factor, joint reciprocal; then per parent scale, weight, low, high, share.

`weight` is the reciprocal 1 / weights_i of two electing parents, `joint` that of their sum. Of
"ranked", low and high are the whole numbers of `rank_window`.
"""
INTS_HEAD, INTS_EACH = 1, 3
"""Integers: flat index of the first entry; then per parent two keys and the random threshold."""

RANK_STEPS = 256
UNIT = 1 << 24
"""Drop probabilities of "ranked" are whole numbers of 1/UNIT: float32 holds and adds them exactly
on every device, fused or not."""

_NOBODY = 1e-30  # below any sum of weights that float32 keeps, above what makes 0 / 0


class Scalars(Protocol):
    """Rows of numbers: 0-dim each, or one value per entry (N,)."""

    def __getitem__(self, row: int, /) -> Tensor:
        """Row number ``row``."""
        ...


def write_combination(
    out: Tensor, base: Tensor | None, parents: Sequence[Tensor], floats: Scalars
) -> None:
    """Overwrite ``out`` (N,) with floats[0] * base + sum_i floats[1 + i] * parent_i.

    Args:
        out: Any floating dtype.
        base: (N,), or None where its share is 0: it is not read.
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
    out: Tensor,
    base: Tensor,
    parents: Sequence[Tensor],
    planes: Sequence[Tensor],
    floats: Scalars,
    ints: Scalars,
    index: Tensor | None,
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
        planes: P of (N,) uint8 for "ranked" and "chosen", else none.
        floats: FLOATS_HEAD + P * FLOATS_EACH rows.
        ints: INTS_HEAD + P * INTS_EACH rows; of drawn masks alone.
        index: int32 (N,) flat index of each entry in its tensor; None counts up from ``ints[0]``.
        keep: As in `plans.Consensus`.
        combine: As in `plans.Consensus`.
        has_shares: Whether `shares` weigh the votes of those who agree.
        has_high: Whether any band has an upper end.
    """
    base = base.float()
    deltas = [parent.float() - base for parent in parents]
    if keep in ("random", "ranked") and index is None:
        index = torch.arange(out.numel(), dtype=torch.int32, device=out.device) + ints[0]
    common = variance(deltas) >= floats[FLOATS_HEAD + 2] if keep == "common" else None
    votes = []
    for i, delta in enumerate(deltas):
        scale, _, low, high, _ = (floats[FLOATS_HEAD + FLOATS_EACH * i + k] for k in range(5))
        if keep == "band":
            size = delta.abs()
            is_kept = (size >= low) & (size < high) if has_high else size >= low
            delta = torch.where(is_kept, delta, 0.0)
        elif keep == "near":
            delta = torch.minimum(torch.maximum(delta, -low), low)
        elif keep == "chosen":
            delta = torch.where(planes[i] != 0, delta, 0.0)
        elif common is not None:
            delta = torch.where(common, delta, 0.0)
        elif keep in ("random", "ranked"):
            assert index is not None
            first, second, threshold = (ints[INTS_HEAD + INTS_EACH * i + k] for k in range(3))
            bits = hash_bits(index, first, second)
            if keep == "random":
                delta = torch.where(bits >= threshold, delta, 0.0)
            else:
                dropped = low - high * planes[i].float()
                is_kept = (bits >> 8).float() >= dropped - UNIT // 2
                delta = torch.where(is_kept, delta / (UNIT - dropped), 0.0)
        votes.append(delta * scale)
    out.copy_(base + _combined(votes, floats, combine, has_shares))


def _combined(votes: list[Tensor], floats: Scalars, combine: str, has_shares: bool) -> Tensor:
    # arXiv:2306.01708, Sec. 3, steps 2-3: elect the sign of the sum, take the mean of who agrees.
    total = votes[0]
    for vote in votes[1:]:
        total = total + vote
    if combine == "sum":
        return total
    agree = [vote * total > 0.0 for vote in votes]
    heads = range(FLOATS_HEAD, FLOATS_HEAD + FLOATS_EACH * len(votes), FLOATS_EACH)
    taken = [vote * floats[k + 4] for vote, k in zip(votes, heads, strict=True)]
    elected = _masked_sum(agree, taken if has_shares else votes)
    if combine == "elect_mean" and len(votes) == 2 and not has_shares:
        alone = [floats[k + 1] for k in heads]
        both = torch.where(agree[1], floats[1], alone[0])
        elected = elected * torch.where(agree[0], both, alone[1])
    elif combine == "elect_mean":
        weights = [floats[k + 1] for k in heads]
        elected = elected / (_masked_sum(agree, weights) + _NOBODY)
    return elected * floats[0]


def _masked_sum(masks: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    total = torch.where(masks[0], terms[0], 0.0)
    for mask, term in zip(masks[1:], terms[1:], strict=True):
        total = total + torch.where(mask, term, 0.0)
    return total


def rank_window(low: float, high: float) -> tuple[float, float]:
    """Whole numbers (a, s): an entry of rank code c is dropped with probability (a - s * c) / UNIT.

    Args:
        low: Drop probability of the smallest entry.
        high: Drop probability of the largest, at most ``low``.
    """
    step = int((low - high) / RANK_STEPS * UNIT)
    middle = (low + high) / 2 * UNIT
    return float(round(middle + step * (RANK_STEPS - 1) / 2)), float(step)
