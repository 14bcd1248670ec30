"""mergekit's methods on whole vectors, and those with one weight for all: read and written.

Semantics are those of mergekit 0.1.5, determined by running it; what is not supported is refused
here. Knows no files; no torch.
"""

import math
from collections.abc import Sequence
from decimal import Decimal

from ..recipe.coefficients import Coefficients
from ..recipe.plans import SMALLEST
from .at_group import GroupSetting, Row, decimal, weight_rows
from .at_tensor import At
from .delta_rules import ONE, coefficients, divided
from .parameters import MergekitError


def read_slerp(at: At) -> Coefficients:
    """Read `slerp`, from the base to one model."""
    t = at.shared("t")
    return coefficients([t if at.takes_part(parent) else 0.0 for parent in at.parents])


def write_slerp(group: GroupSetting) -> Row:
    """Write `slerp` of one parent."""
    return Row(({},), {"t": decimal(group.weights[0])})


def read_nuslerp(at: At) -> Coefficients:
    """Read `nuslerp` of two models."""
    if not at.flag("nuslerp_flatten", True):
        raise MergekitError(
            "`nuslerp_flatten: false` (row by row) is not supported; remove it: whole tensors "
            "are interpolated"
        )
    weights = at.each("weight")
    if abs(sum(weights)) < Decimal("1e-6"):
        weights = [Decimal("0.5") * at.takes_part(parent) for parent in at.parents]
    return coefficients(_ratio(weights), deltas=_between(at))


def write_nuslerp(group: GroupSetting) -> Row:
    """Write `nuslerp` of two parents; also `slerp` of two."""
    _check_ratio(group)
    if len(group.weights) != 2:
        raise group.fail("mergekit's `nuslerp` merges exactly two models")
    return Row(weight_rows(group), {"nuslerp_flatten": True})


def read_multislerp(at: At) -> Coefficients:
    """Read `multislerp`."""
    weights = at.each("weight")
    if at.flag("normalize_weights", True):
        divided(at, weights)
    elif abs(sum(weights) - ONE) > Decimal("1e-9"):
        raise MergekitError(
            f"`multislerp` with normalize_weights: false must have weights that sum to 1, got "
            f"{sum(weights)} at tensor {at.tensor}; set normalize_weights: true"
        )
    return coefficients(_ratio(weights), deltas=_between(at))


def write_multislerp(group: GroupSetting) -> Row:
    """Write `multislerp`."""
    _check_ratio(group)
    return Row(weight_rows(group), {"normalize_weights": True})


def read_karcher(at: At) -> Coefficients:
    """Read `karcher`, equal weights on full weights."""
    return coefficients(_equal(at), deltas=(0.0,))


def write_karcher(group: GroupSetting) -> Row:
    """Write `karcher` of full weights."""
    if group.is_on("deltas"):
        raise group.fail("mergekit's `karcher` is of full weights; set `deltas` to 0")
    return _write_equal(group)


def read_model_stock(at: At) -> Coefficients:
    """Read `model_stock`."""
    if at.flag("filter_wise", False):
        raise MergekitError(
            "`filter_wise: true` (row by row) is not supported; remove it: the angle is taken "
            "over whole tensors"
        )
    return coefficients(_equal(at))


def write_model_stock(group: GroupSetting) -> Row:
    """Write `model_stock` of two parents or more."""
    if len(group.weights) < 2:
        raise group.fail("mergekit's `model_stock` merges two models or more")
    return Row(_write_equal(group).own, {"filter_wise": False})


def read_sce(at: At) -> Coefficients:
    """Read `sce`, which has no lambda."""
    select_topk = min(max(at.shared("select_topk", "1"), Decimal(0)), ONE)
    return coefficients(_equal(at), lambda_=ONE, select_topk=(select_topk,))


def write_sce(group: GroupSetting) -> Row:
    """Write `sce` with equal weights and lambda 1."""
    if group.lambda_ != 1.0:
        raise group.fail(f"mergekit's `sce` has no lambda, here it is {group.lambda_}")
    select_topk = decimal(group.parameters["select_topk"][0])
    return Row(_write_equal(group).own, {"select_topk": select_topk})


def read_equal(at: At) -> Coefficients:
    """Read a method without parameters, with equal weights."""
    return coefficients(_equal(at))


def write_arcee_fusion(group: GroupSetting) -> Row:
    """Write `arcee_fusion` of one parent with weight 1."""
    _check_one(group)
    return Row(({},))


def read_nearswap(at: At) -> Coefficients:
    """Read `nearswap` of one model."""
    t = min(max(at.shared("t"), Decimal(0)), ONE)
    return coefficients(_equal(at), t=[t] * len(at.parents))


def write_nearswap(group: GroupSetting) -> Row:
    """Write `nearswap` of one parent with weight 1."""
    _check_one(group)
    return Row(({},), {"t": decimal(group.parameters["t"][0])})


def _ratio(weights: Sequence[Decimal]) -> Sequence[Decimal]:
    """Return weights whose ratio alone matters; mergekit copies a single model, so it weighs 1."""
    alone = sum(weight != 0 for weight in weights) == 1
    return [weight / weight if weight else weight for weight in weights] if alone else weights


def _check_ratio(group: GroupSetting) -> None:
    active = [w for w in group.weights if abs(w) >= SMALLEST]
    if len(active) == 1 and active[0] != 1.0:
        raise group.fail(f"mergekit copies a single model, here its weight is {active[0]}")
    if abs(math.fsum(active)) <= 1e-6 * max(math.fsum(map(abs, active)), 1.0):
        raise group.fail(f"mergekit has no ratio for weights that sum to 0 ({group.weights})")


def _between(at: At) -> tuple[float, ...]:
    return (0.0 if at.file.base is None else 1.0,)


def _equal(at: At) -> list[float]:
    here = [at.takes_part(parent) for parent in at.parents]
    return [1 / sum(here) if takes_part else 0.0 for takes_part in here]


def _write_equal(group: GroupSetting) -> Row:
    if len(set(group.weights)) > 1 or not group.weights[0] >= SMALLEST:
        raise group.fail(
            f"mergekit's `{group.method}` weighs all models equally, here weights are "
            f"{', '.join(map(str, group.weights))}"
        )
    return Row(({},) * len(group.weights))


def _check_one(group: GroupSetting) -> None:
    if set(group.weights) != {1.0} or len(group.weights) > 1:
        raise group.fail(
            f"mergekit's `{group.method}` merges one model with weight 1, here weights are "
            f"{', '.join(map(str, group.weights))}"
        )
