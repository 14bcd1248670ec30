"""A plan as kernel arguments: which kernel, and the rows of numbers that it reads.

The layout of rows is that of kernels.py. Knows plans, kernels and masks; no tensors to merge.

Shapes: P parents that take part.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..recipe.plans import Combination, Consensus, Plan
from .kernels import LIFT, rank_window, write_combination, write_consensus
from .masks import CHUNK, REGION, chunk_word, stream_keys, threshold

Kernel = Callable[..., None]
"""(out, base, parents, maps, floats, ints, hashed) -> None; overwrites out."""
RANDOM = ("random", "ranked")
"""The values of `Consensus.keep` with random masks."""


def kernel_variant(plan: Plan) -> tuple[Any, ...]:
    """Return the options that a kernel is specialised for; equal ones (and P) share it."""
    if isinstance(plan, Combination):
        return (plan.base_share != 0.0,)
    has_high = plan.keep == "band" and min(plan.high) < math.inf
    return plan.keep, plan.combine, bool(plan.shares), has_high


def make_kernel(plan: Plan) -> Kernel:
    """Return the kernel of a plan."""
    options = kernel_variant(plan)
    if isinstance(plan, Combination):
        return partial(_combination, options[0])
    return lambda *arguments: write_consensus(*arguments, *options)


def _combination(has_base: bool, out: Tensor, base: Tensor, parents: Any, *more: Any) -> None:
    write_combination(out, base if has_base else None, parents, more[1])


def copy_source(plan: Plan) -> int | None:
    """Return the only tensor that a plan copies: 0 for the base, 1 + i for parent i, else None."""
    if isinstance(plan, Consensus):
        return None
    if plan.coefficients == (1.0,) and plan.base_share == 0.0:
        return 1
    return 0 if not plan.coefficients and plan.base_share == 1.0 else None


def float_rows(plan: Plan) -> list[float]:
    """Return the float rows of a plan, equal for all entries of a tensor."""
    if isinstance(plan, Combination):
        return [plan.base_share, *plan.coefficients]
    weights = plan.weights
    is_pair = plan.combine == "elect_mean" and len(weights) == 2 and not plan.shares
    lift = 1.0 if plan.combine == "sum" else LIFT
    factor = plan.factor / lift
    rows = [factor, factor / sum(weights) if is_pair else 0.0]
    for i, scale in enumerate(plan.scales):
        low = _at(plan.low, 0 if plan.keep == "common" else i)
        high = _at(plan.high, i)
        if plan.keep == "ranked":
            scale, (low, high) = scale * 2.0**32, rank_window(low, high)
        weight = factor / weights[i] if is_pair else _at(weights, i)
        rows += scale * lift, weight, low, high, _at(plan.shares, i)
    return rows


def int_rows(plan: Plan, tensor: str, start: int) -> list[int]:
    """Return the integer rows of a plan for a block of entries; empty without random masks.

    Args:
        plan: The plan of the tensor.
        tensor: Name of the tensor.
        start: Flat index of the first entry of the chunk that hashed places are relative to.
    """
    if isinstance(plan, Combination) or plan.mask_seed is None:
        return []
    region, place = divmod(start, REGION)
    keys = [stream_keys(plan.mask_seed, tensor, parent, region) for parent in plan.parents]
    rows = [keys[0][0] ^ chunk_word(place // CHUNK)]
    for i, (_, multiplier) in enumerate(keys):
        rows += multiplier, threshold(plan.low[i]) if plan.keep == "random" else 0
    return rows


def _at(numbers: tuple[float, ...], i: int) -> float:
    return numbers[i] if i < len(numbers) else 0.0
