"""Rows of a plan's numbers, and their derivatives with respect to a layer group's coefficients.

While masks and elections are fixed, a merged tensor is a smooth function of a few rows of numbers,
and they of weights, lambda and smooth parameters. The second half is scalar arithmetic of the
methods, differentiated here numerically in float64: six digits, for every method, without a second
set of formulas. Reads no tensors.

Shapes: P parents of the setting, R rows, C coefficients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.arguments import float_rows, kernel_variant
from ..recipe.methods import METHODS, Method
from ..recipe.plans import Combination, Plan, Setting, Statistics

WEIGHT, LAMBDA = "weight", "lambda"
_STEP = 1e-3
"""Of the differences, relative to the coefficient, so never across 0, where a vote changes sides. A
much smaller one would see where `karcher` stops iterating."""


class Coefficient(NamedTuple):
    """One number of a layer group: `WEIGHT`, `LAMBDA` or a parameter; parent "" if it is shared."""

    name: str
    parent: str


@dataclass(frozen=True, eq=False)
class RowSlopes:
    """The plan of one tensor, and how its rows follow the coefficients.

    Attributes:
        plan: The plan, with every parent of the setting.
        parents: Parents of the setting, sorted by name (P).
        coefficients: The coefficients that vary (C).
        slopes: Derivatives of the rows with respect to the coefficients (R, C).
    """

    plan: Plan
    parents: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]
    slopes: NDArray[np.float64]


def row_slopes(setting: Setting, statistics: Statistics) -> RowSlopes:
    """Return the plan of a setting and the derivatives of its rows.

    The rows of a combination are the share of the base plus all coefficients, which multiplies the
    base, and one coefficient per parent of the setting, which multiplies its delta; those of a
    consensus are the kernel's (`float_rows`).

    Args:
        setting: A layer group's setting with at least one parent.
        statistics: Statistics of the tensor.
    """
    method = METHODS[setting.method]
    middle = method.plan(setting, statistics)
    coefficients = _coefficients(setting, method)
    columns = []
    for coefficient in coefficients:
        step = _STEP * (abs(_value(setting, coefficient)) or 1.0)

        def plan(move: float, coefficient: Coefficient = coefficient) -> Plan:
            return method.plan(_moved(setting, coefficient, move), statistics)

        columns.append(_derivative(plan, middle, step, setting.parents))
    slopes = np.stack(columns, axis=1)
    return RowSlopes(middle, setting.parents, tuple(coefficients), slopes)


def _derivative(
    plan: Callable[[float], Plan], middle: Plan, step: float, parents: tuple[str, ...]
) -> NDArray[np.float64]:
    # Richardson's extrapolation. Rows may have a kink where the result has none (equal weights:
    # ratios are to the largest), at which the error of a difference is of first order.
    wide, narrow = (_difference(plan, middle, s, parents) for s in (step, step / 2))
    return 2 * narrow - wide


def _difference(
    plan: Callable[[float], Plan], middle: Plan, step: float, parents: tuple[str, ...]
) -> NDArray[np.float64]:
    # At the edge of a parameter's range one side may have another form: then the other counts.
    sides = [move for move in (step, -step) if _form(plan(move)) == _form(middle)]
    if not sides:
        return np.zeros_like(_rows(middle, parents))
    ends = (sides[0], sides[1] if len(sides) == 2 else 0.0)
    high, low = (_rows(plan(move) if move else middle, parents) for move in ends)
    with np.errstate(invalid="ignore"):
        change = high - low
    return np.nan_to_num(change, nan=0.0) / (ends[0] - ends[1])  # infinite limits do not move


def _form(plan: Plan) -> object:
    if isinstance(plan, Combination):
        return Combination
    return kernel_variant(plan), plan.parents, len(plan.weights)


def _rows(plan: Plan, parents: tuple[str, ...]) -> NDArray[np.float64]:
    if not isinstance(plan, Combination):
        return np.array(float_rows(plan))
    by_parent = dict(zip(plan.parents, plan.coefficients, strict=True))
    deltas = [by_parent.get(parent, 0.0) for parent in parents]
    return np.array([plan.base_share + sum(deltas), *deltas])


def _coefficients(setting: Setting, method: Method) -> list[Coefficient]:
    found = [Coefficient(WEIGHT, parent) for parent in setting.parents]
    if method.uses_lambda:
        found.append(Coefficient(LAMBDA, ""))
    for row in method.parameters:
        if row.is_smooth:
            owners = ("",) if row.is_shared else setting.parents
            found += [Coefficient(row.name, owner) for owner in owners]
    return found


def _value(setting: Setting, coefficient: Coefficient) -> float:
    if coefficient.name == LAMBDA:
        return setting.lambda_
    return _numbers(setting, coefficient.name)[_index(setting, coefficient.parent)]


def _moved(setting: Setting, coefficient: Coefficient, move: float) -> Setting:
    if coefficient.name == LAMBDA:
        return replace(setting, lambda_=setting.lambda_ + move)
    numbers = list(_numbers(setting, coefficient.name))
    numbers[_index(setting, coefficient.parent)] += move
    if coefficient.name == WEIGHT:
        return replace(setting, weights=tuple(numbers))
    parameters = {**setting.parameters, coefficient.name: tuple(numbers)}
    return replace(setting, parameters=parameters)


def _numbers(setting: Setting, name: str) -> tuple[float, ...]:
    return setting.weights if name == WEIGHT else setting.parameters[name]


def _index(setting: Setting, parent: str) -> int:
    return setting.parents.index(parent) if parent else 0
