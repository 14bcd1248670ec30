"""Plans: the merge of one tensor as numbers that the kernels carry out.

A plan and the tensors determine the bytes of the result, so equal plans of one tensor give equal
bytes. It names no method. Knows no torch, no files, no recipes.

Shapes: P parents that take part (sorted by name), N entries of the tensor, delta_i = parent_i -
base. Tuples have one number per parent unless they say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

SMALLEST = 2.0**-126
"""Smallest normal float32; smaller magnitudes count as 0."""
_ROUNDING = 2.0**-48  # a share of the base that is lost in float32 sums
KEEPS = ("all", "band", "random", "ranked", "important", "near", "common")
COMBINES = ("sum", "elect_mean", "elect_sum")


class Statistics(Protocol):
    """Statistics of one tensor of base and parents that methods may query."""

    def gram(self, parents: Sequence[str]) -> Sequence[Sequence[float]]:
        """Return inner products (1 + P, 1 + P) of [base, delta_1 .. delta_P], summed in float64."""
        ...

    def magnitude(self, parent: str, drop_rate: float) -> float:
        """Return the smallest |delta| kept at a drop rate (grid 0.001); 0 at rate 0."""
        ...

    def variance(
        self, parents: Sequence[str], select_topk: float
    ) -> tuple[float, tuple[float, ...]]:
        """Return the smallest variance that SCE selects and the sums of selected delta_i^2."""
        ...


@dataclass(frozen=True)
class Combination:
    """out = base_share * base + sum_i coefficients_i * parent_i.

    Build it with `affine` or `weighted`: terms of 0 are left out, not multiplied, so that their
    tensors are not read and signs of zeros are kept.
    """

    parents: tuple[str, ...]
    coefficients: tuple[float, ...]
    base_share: float = 1.0

    @classmethod
    def affine(cls, parents: Sequence[str], coefficients: Sequence[float]) -> Combination:
        """Return base + sum_i c_i * delta_i: the base keeps 1 - sum_i c_i.

        A rounding error as in 1 - 3 * (1/3) counts as 0, so that the base is not read for it.
        """
        share = 1.0 - math.fsum(coefficients)
        return cls.weighted(parents, coefficients, share if abs(share) > _ROUNDING else 0.0)

    @classmethod
    def weighted(
        cls, parents: Sequence[str], coefficients: Sequence[float], base_share: float
    ) -> Combination:
        """Return a combination with a given base share; parents with coefficient 0 are left out."""
        terms = [
            (parent, coefficient)
            for parent, coefficient in zip(parents, coefficients, strict=True)
            if abs(coefficient) >= SMALLEST
        ]
        share = base_share if abs(base_share) >= SMALLEST else 0.0
        return cls(tuple(p for p, _ in terms), tuple(c for _, c in terms), share)


@dataclass(frozen=True)
class Consensus:
    """Base plus masked, scaled deltas, v_i = scales_i * m_i * delta_i, combined entry by entry.

    `combine` says how the v_i become one delta:
        "sum": sum_i v_i (`factor` is 1, `weights` are unused).
        "elect_mean": with e = sum_i v_i, parent i agrees iff v_i * e > 0; the result is
            factor * (sum of shares_i * v_i) / (sum of weights_i), both over those who agree, and
            0 if none agrees. `shares` is empty if all are 1 (always, except in SCE).
        "elect_sum": the same numerator without the division.

    `keep` gives the masks m_i:
        "all": 1.
        "band": 1 iff low_i <= |delta_i| < high_i; high_i may be infinite.
        "random": 1 iff u_i >= low_i, u_i uniform in [0, 1) from the counter-based hash.
        "ranked": 1 / (1 - p) iff u_i >= p, where p falls linearly with the rank of |delta_i| in
            its row, from low_i at the smallest entry to high_i at the largest. Ranks come from
            the parent's rank map.
        "important": 1 where the parent's importance mask is 1.
        "near": min(low_i / |delta_i|, 1), and v_i is 0 where delta_i is; low_i is above 0.
        "common": 1 for all parents iff the variance over the P deltas is at least low_0.

    `mask_seed` is None unless the masks are drawn ("random", "ranked").
    """

    parents: tuple[str, ...]
    keep: str
    combine: str
    scales: tuple[float, ...]
    weights: tuple[float, ...] = ()
    factor: float = 1.0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    mask_seed: int | None = None
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check invariants: known words, one number per parent."""
        assert self.keep in KEEPS and self.combine in COMBINES
        assert len(self.scales) == len(self.parents)
        assert (self.mask_seed is not None) == (self.keep in ("random", "ranked"))


Plan = Combination | Consensus
BASE_ONLY = Combination((), ())
"""The plan of a tensor in which no parent takes part: the base, to the bit."""


@dataclass(frozen=True)
class Setting:
    """Coefficients of one layer group, with every default filled in.

    It has only the parents that take part, sorted by name. ``parameters`` has every parameter of
    the method: one number per parent, or a single one if it is shared.
    """

    method: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    drop_rates: tuple[float, ...]
    lambda_: float
    parameters: Mapping[str, tuple[float, ...]] = field(hash=False)
    mask_seed: int
