"""Methods on deltas, entry by entry: which entries are kept, elected and summed.

Each function turns a layer group's setting into the plan of one tensor. Its docstring has the
formula and the differences from mergekit. Knows no tensors; no torch.

Throughout: delta_i = parent_i - base, w_i the weight, p_i the drop rate, lambda the factor on the
summed delta. Parents that take part are sorted by name and have nonzero weights.

Shapes: P parents that take part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .plans import BASE_ONLY, Combination, Consensus, Plan, Setting, Statistics

_GRID = 1000  # steps of the magnitude grid
_MOST_DROPPED = 0.999  # DELLA's largest drop probability: survivors are scaled by 1000 at most
_LEAST = 1e-20  # smallest ratio of two weights: invisible in float32 sums, yet not 0 in float32


def linear(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001 - all rows have one signature
    """Weighted average; the base keeps 1 - sum_i w_i (arXiv:2203.05482, Sec. 2).

    mergekit divides by sum_i w_i unless `normalize` is false, and has no base.
    """
    return Combination.affine(setting.parents, setting.weights)


def task_arithmetic(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """base + lambda * sum_i w_i * delta_i (arXiv:2212.04089, Sec. 2)."""
    return _summed(setting, _unmasked(setting))


def dare_linear(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """Task arithmetic on m_i * delta_i / (1 - p_i), m_i random (arXiv:2311.03099, Eq. 1-3).

    mergekit scales by the realised ratio of L1 norms instead of 1 / (1 - p_i): far off for small
    tensors, and NaN in float16 if the sum overflows.
    """
    return _summed(setting, _dropped(setting))


def ties(setting: Setting, statistics: Statistics) -> Plan:
    """Trim by magnitude, elect a sign, average the parents that agree (arXiv:2306.01708, Alg. 1).

    The trim is per tensor (in the paper over the whole task vector), so that drop rates may differ
    by layer group; rates are rounded to 0.001. Weights scale the votes and the mean, which divides
    by the sum of |w_i|; mergekit divides by the signed sum, so that weights of both signs explode.
    If votes cancel to 0, no sign is elected; mergekit elects plus. `normalize` 0 omits the division
    (not in the paper; mergekit's `normalize: false`).
    """
    return _elected(setting, _trimmed(setting, statistics))


def dare_ties(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """DARE's drop and rescale, then TIES' election and disjoint mean (arXiv:2311.03099, Sec. 4).

    There is no trim by magnitude. mergekit differs as in `dare_linear` and `ties`; its default of
    `normalize` is off.
    """
    return _elected(setting, _dropped(setting))


def della(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """MAGPRUNE's drop by rank and rescale, then election and mean (arXiv:2406.11617, Sec. 3).

    In each row of a matrix (a vector is one row) an entry is dropped with a probability that falls
    linearly with the rank of its magnitude, from p_i + epsilon_i / 2 at the smallest to
    p_i - epsilon_i / 2 at the largest, and is divided by one minus its own probability. Ranks have
    256 steps; equal magnitudes share one. The window is narrowed to stay in [0, 0.999]. mergekit's
    `epsilon` is half of this one; it refuses windows that leave (0, 1) and scales by the realised
    ratio of L1 norms.
    """
    return _elected(setting, _ranked(setting))


def della_linear(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """`della` without the election: base + lambda * sum_i w_i * (what is left of delta_i)."""
    return _summed(setting, _ranked(setting))


def breadcrumbs(setting: Setting, statistics: Statistics) -> Plan:
    """Cut the largest and the smallest entries, then sum (arXiv:2312.06795, Sec. 3).

    The share min(gamma_i, p_i) of the largest |delta_i| is cut, and the rest of p_i from the
    smallest, per tensor, in steps of 0.001. A top cut that is not empty takes at least one entry,
    and all entries equal to its smallest.
    """
    return _summed(setting, _banded(setting, statistics))


def breadcrumbs_ties(setting: Setting, statistics: Statistics) -> Plan:
    """`breadcrumbs`' mask, then TIES' election and disjoint mean (`ties`).

    mergekit's default is not to divide (`normalize: false`).
    """
    return _elected(setting, _banded(setting, statistics))


def sce(setting: Setting, statistics: Statistics) -> Plan:
    """Select, calculate, erase (arXiv:2408.07990, Sec. 3.3).

    Select: of the entries with nonzero variance over parents, the share `select_topk` with the
    largest. Calculate: eta_i = sum of delta_i^2 over selected entries, as a ratio. Erase: minority
    signs, by the sum of w_i * delta_i; the others are averaged with w_i * eta_i, divided by the sum
    of |w_i| * eta_i. Weights are an addition: equal ones give the paper's formula. A single parent
    has no variance and is taken in full. mergekit uses equal eta if the mean squares sum to less
    than 1e-6, as those of real fine-tunes do.
    """
    if len(setting.parents) == 1:
        return Combination.affine(setting.parents, [setting.lambda_ * _sign(setting.weights[0])])
    select_topk = setting.parameters["select_topk"][0]
    smallest, squares = statistics.variance(setting.parents, select_topk)
    if select_topk == 0.0 or not max(squares) > 0.0:
        return BASE_ONLY
    shares, ratios = _ratios(squares), _ratios(setting.weights)
    selects_all = select_topk >= 1.0
    return Consensus(
        setting.parents,
        "all" if selects_all else "common",
        "elect_mean",
        scales=ratios,
        weights=tuple(abs(w) * share for w, share in zip(ratios, shares, strict=True)),
        factor=setting.lambda_,
        low=() if selects_all else (smallest,),
        shares=shares,
    )


def arcee_fusion(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """base + sum_i w_i * delta_i where entry importance is an outlier (Arcee AI, 2025; no paper).

    Importance is |delta| times the row's KL divergence of softmax(parent) from softmax(base);
    entries at or above median + 1.5 * (third - first quartile) are taken. mergekit estimates the
    quartiles of tensors above 10^6 entries from a random sample and takes one parent of weight 1.
    """
    return Consensus(setting.parents, "important", "sum", setting.weights)


def nearswap(setting: Setting, statistics: Statistics) -> Plan:  # noqa: ARG001
    """base + sum_i w_i * clamp(t_i / |delta_i|, 0, 1) * delta_i (alchemonaut, 2024; no paper).

    Entries move at most t_i toward the parent, so near ones are replaced by the parent's. t_i = 1,
    the upper bound, is no limit. mergekit takes one parent of weight 1.
    """
    limits = setting.parameters["t"]
    moving = [i for i, t in enumerate(limits) if t > 0.0]
    parents = tuple(setting.parents[i] for i in moving)
    weights = tuple(setting.weights[i] for i in moving)
    if all(limits[i] >= 1.0 for i in moving):
        return Combination.affine(parents, weights)
    low = tuple(limits[i] if limits[i] < 1.0 else math.inf for i in moving)
    return Consensus(parents, "near", "sum", weights, low=low)


@dataclass(frozen=True)
class _Mask:
    """How entries are kept, and the factors on survivors (P,) beside weights."""

    keep: str
    rescales: Sequence[float]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    mask_seed: int | None = None


def _unmasked(setting: Setting) -> _Mask:
    return _Mask("all", (1.0,) * len(setting.parents))


def _dropped(setting: Setting) -> _Mask:
    rates = setting.drop_rates
    if not any(rates):
        return _unmasked(setting)
    rescales = [1.0 / (1.0 - rate) for rate in rates]
    return _Mask("random", rescales, low=rates, mask_seed=setting.mask_seed)


def _ranked(setting: Setting) -> _Mask:
    rates, widths = setting.drop_rates, setting.parameters["epsilon"]
    if not any(rates):
        return _unmasked(setting)
    halves = [
        max(min(width / 2.0, rate, _MOST_DROPPED - rate), 0.0)
        for rate, width in zip(rates, widths, strict=True)
    ]
    return _Mask(
        "ranked",
        (1.0,) * len(rates),
        low=tuple(rate + half for rate, half in zip(rates, halves, strict=True)),
        high=tuple(rate - half for rate, half in zip(rates, halves, strict=True)),
        mask_seed=setting.mask_seed,
    )


def _trimmed(setting: Setting, statistics: Statistics) -> _Mask:
    pairs = zip(setting.parents, setting.drop_rates, strict=True)
    low = tuple(statistics.magnitude(parent, rate) for parent, rate in pairs)
    return _band(setting, low, (math.inf,) * len(low))


def _banded(setting: Setting, statistics: Statistics) -> _Mask:
    low, high = [], []
    rows = zip(setting.parents, setting.drop_rates, setting.parameters["gamma"], strict=True)
    for parent, rate, gamma in rows:
        top = round(min(gamma, rate) * _GRID) / _GRID
        low.append(statistics.magnitude(parent, max(rate - top, 0.0)))
        high.append(statistics.magnitude(parent, 1.0 - top) if top > 0.0 else math.inf)
    return _band(setting, tuple(low), tuple(high))


def _band(setting: Setting, low: tuple[float, ...], high: tuple[float, ...]) -> _Mask:
    if not any(low) and min(high) == math.inf:
        return _unmasked(setting)
    return _Mask("band", (1.0,) * len(low), low, high)


def _summed(setting: Setting, mask: _Mask, weights: Sequence[float] | None = None) -> Plan:
    # base + lambda * sum_i w_i * (what the mask leaves of delta_i)
    weights = setting.weights if weights is None else weights
    scales = tuple(
        setting.lambda_ * w * rescale for w, rescale in zip(weights, mask.rescales, strict=True)
    )
    if mask.keep == "all":
        return Combination.affine(setting.parents, scales)
    return Consensus(
        setting.parents,
        mask.keep,
        "sum",
        scales,
        low=mask.low,
        high=mask.high,
        mask_seed=mask.mask_seed,
    )


def _elected(setting: Setting, mask: _Mask) -> Plan:
    # arXiv:2306.01708, Sec. 3, steps 2-3, on the kept entries. The mean depends on ratios of
    # weights only; a single parent always agrees with itself.
    is_mean = setting.parameters["normalize"][0] >= 0.5
    if len(setting.parents) == 1:
        return _summed(setting, mask, [_sign(setting.weights[0])] if is_mean else None)
    weights = _ratios(setting.weights) if is_mean else setting.weights
    return Consensus(
        setting.parents,
        mask.keep,
        "elect_mean" if is_mean else "elect_sum",
        tuple(w * rescale for w, rescale in zip(weights, mask.rescales, strict=True)),
        weights=tuple(map(abs, weights)),
        factor=setting.lambda_,
        low=mask.low,
        high=mask.high,
        mask_seed=mask.mask_seed,
    )


def _ratios(numbers: Sequence[float]) -> tuple[float, ...]:
    # Relative to the largest magnitude, with signs; bounded below so that float32 divides no 0 by
    # 0.
    largest = max(map(abs, numbers))
    return tuple(math.copysign(max(abs(x) / largest, _LEAST), x) for x in numbers)


def _sign(number: float) -> float:
    return (number > 0.0) - (number < 0.0) + 0.0
