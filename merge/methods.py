"""The table of merge methods: each turns one block of entries into coefficients of the parents.

Every method is an affine combination, entry by entry, in float32:

    out = (1 - sum_i c_i) * base + sum_i c_i * parent_i

so that coefficients 0 give the base and a single coefficient 1 gives that parent, to the bit.
A method only says what the c_i are. It knows no files, no models, no search, and it imports no
torch (tensors come in, their operators do the work), so the table can be listed without it.

Shapes: P parents that take part (sorted by name), N entries of one block of one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["METHODS", "Block", "Method"]


@dataclass(frozen=True)
class Block:
    """What a method sees of one tensor: a run of N entries of the base and of P parents.

    Parents are sorted by name and have a weight other than 0. `keep_random(i)` is the DARE mask
    of parent i, bool (N,); `trim(i, delta)` is the delta of parent i, float32 (N,), with the
    entries that are too small for its drop rate set to 0.
    """

    base: Tensor
    parents: Sequence[Tensor]
    weights: Sequence[float]
    drop_rates: Sequence[float]
    lambda_: float
    keep_random: Callable[[int], Tensor]
    trim: Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    `function` maps a Block to P coefficients, each a float or a new float32 tensor (N,); it leaves
    the block unchanged. `is_random` says that `mask_seed` matters.
    """

    name: str
    function: Callable[[Block], list[float | Tensor]]
    uses_drop_rate: bool
    uses_lambda: bool
    is_random: bool
    paper: str
    summary: str


def linear(block: Block) -> list[float | Tensor]:
    """Weighted average; the base keeps 1 - sum_i w_i (arXiv:2203.05482, Sec. 2)."""
    return list(block.weights)


def task_arithmetic(block: Block) -> list[float | Tensor]:
    """base + lambda * sum_i w_i * delta_i (arXiv:2212.04089, Sec. 2)."""
    return [block.lambda_ * weight for weight in block.weights]


def dare_linear(block: Block) -> list[float | Tensor]:
    """Task arithmetic on randomly dropped, rescaled deltas (arXiv:2311.03099, Eq. 1-3)."""
    return [_kept_weight(block, i, block.lambda_) for i in range(len(block.parents))]


def ties(block: Block) -> list[float | Tensor]:
    """Trim by magnitude, elect a sign, average those who agree (arXiv:2306.01708, Alg. 1).

    The trim is per tensor (the paper's is over the whole task vector), so that drop rates may
    differ by layer group; rates are rounded to 0.001. Weights scale the votes and the mean.
    """
    if len(block.parents) == 1 and block.drop_rates[0] == 0.0:
        return [_sign(block.weights[0]) * block.lambda_]
    votes = []
    for i, weight in enumerate(block.weights):
        delta = block.parents[i] - block.base
        if block.drop_rates[i] > 0.0:
            delta = block.trim(i, delta)
        votes.append(delta.mul_(weight))
    return _disjoint_mean(votes, block.weights, [1.0] * len(votes), block.lambda_)


def dare_ties(block: Block) -> list[float | Tensor]:
    """DARE's drop and rescale, then TIES' election and disjoint mean (arXiv:2311.03099, Sec. 4)."""
    if len(block.parents) == 1:
        return [_kept_weight(block, 0, block.lambda_ / abs(block.weights[0]))]
    votes = []
    for i in range(len(block.parents)):
        delta = block.parents[i] - block.base
        votes.append(delta.mul_(_kept_weight(block, i, 1.0)))
    scales = [1.0 / (1.0 - rate) for rate in block.drop_rates]
    return _disjoint_mean(votes, block.weights, scales, block.lambda_)


def _kept_weight(block: Block, i: int, factor: float) -> float | Tensor:
    # factor * w_i * m_i / (1 - p_i), arXiv:2311.03099, Eq. 2; a plain number at p_i = 0.
    rate = block.drop_rates[i]
    weight = factor * block.weights[i] / (1.0 - rate)
    return weight if rate == 0.0 else block.keep_random(i).to(block.base.dtype).mul_(weight)


def _disjoint_mean(
    votes: list[Tensor], weights: Sequence[float], scales: Sequence[float], lambda_: float
) -> list[float | Tensor]:
    # arXiv:2306.01708, Sec. 3, steps 2-3. `votes` (P of (N,)) are w_i * delta_i and are consumed.
    # Agreement is arithmetic on signs: comparisons to bool and back cost five times as much.
    elected = votes[0].clone()
    for vote in votes[1:]:
        elected += vote
    elected.sign_()  # 0 where votes cancel: then nobody agrees
    agrees = [vote.sign_().mul_(elected).clamp_min_(0.0) for vote in votes]
    total = agrees[0] * abs(weights[0])
    for agree, weight in zip(agrees[1:], weights[1:], strict=True):
        total += agree * abs(weight)
    total.clamp_min_(min(map(abs, weights)))  # only lifts 0, where every numerator is 0
    return [
        agree.mul_(lambda_ * weight * scale).div_(total)
        for agree, weight, scale in zip(agrees, weights, scales, strict=True)
    ]


def _sign(number: float) -> float:
    return (number > 0.0) - (number < 0.0) + 0.0


_ROWS = (
    Method(
        "linear",
        linear,
        uses_drop_rate=False,
        uses_lambda=False,
        is_random=False,
        paper="arXiv:2203.05482",
        summary="weighted average of the parents; the base keeps what the weights leave",
    ),
    Method(
        "task_arithmetic",
        task_arithmetic,
        uses_drop_rate=False,
        uses_lambda=True,
        is_random=False,
        paper="arXiv:2212.04089",
        summary="base plus lambda times the weighted sum of deltas",
    ),
    Method(
        "ties",
        ties,
        uses_drop_rate=True,
        uses_lambda=True,
        is_random=False,
        paper="arXiv:2306.01708",
        summary="keep the largest delta entries, elect a sign, average the parents that agree",
    ),
    Method(
        "dare_linear",
        dare_linear,
        uses_drop_rate=True,
        uses_lambda=True,
        is_random=True,
        paper="arXiv:2311.03099",
        summary="drop delta entries at random, rescale the rest, then task arithmetic",
    ),
    Method(
        "dare_ties",
        dare_ties,
        uses_drop_rate=True,
        uses_lambda=True,
        is_random=True,
        paper="arXiv:2311.03099",
        summary="drop delta entries at random, rescale the rest, then elect and average",
    ),
)

METHODS = MappingProxyType({row.name: row for row in _ROWS})
