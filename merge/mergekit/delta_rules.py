"""mergekit's averages and methods on deltas: their parameters to coefficients of ours, and back.

Semantics are those of mergekit 0.1.5, determined by running it; what is not supported is refused
here. mergekit's density is 1 - drop_rate, its `epsilon` is half of ours. Knows no files; no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ..recipe.coefficients import Coefficients
from .at_group import EXACT, GroupSetting, Row, decimal, weight_rows
from .at_tensor import At
from .parameters import MergekitError
from .text import Number

ONE = Decimal(1)
MOST_GROWTH = 10
"""Largest factor on deltas that dividing by a sum of weights of both signs may give."""


def coefficients(
    weights: Sequence[Decimal | float],
    drop_rates: Sequence[Decimal | float] = (),
    lambda_: Decimal | None = None,
    **parameters: Sequence[Decimal | float],
) -> Coefficients:
    """Return coefficients from decimals; drop rates default to 0."""
    return Coefficients(
        tuple(map(float, weights)),
        tuple(map(float, drop_rates or [0.0] * len(weights))),
        {name: tuple(map(float, values)) for name, values in parameters.items()},
        lambda_=None if lambda_ is None else float(lambda_),
    )


def divided(at: At, weights: Sequence[Decimal]) -> list[Decimal]:
    """Return weights divided by their sum.

    Raises:
        MergekitError: If they nearly cancel, so that the quotients are huge.
    """
    total = sum(weights)
    if total == 0 or sum(map(abs, weights)) > MOST_GROWTH * abs(total):
        values = ", ".join(str(weight) for weight in weights)
        raise MergekitError(
            f"weights {values} nearly cancel at tensor {at.tensor}: divided by their sum {total} "
            f"they blow up; set normalize: false, or choose weights whose sum is not near 0"
        )
    return [weight / total for weight in weights]


def read_linear(at: At) -> Coefficients:
    """Read `linear`, whose base is one of the averaged models; ours keeps what the others leave."""
    weights = at.each("weight")
    own = at.own("weight", at.base) if at.takes_part(at.base) else Decimal(0)
    if at.flag("normalize", True):
        return coefficients(divided(at, [own, *weights])[1:])
    total = own + sum(weights)
    if abs(total - ONE) > Decimal("1e-9"):
        raise MergekitError(
            f"`linear` with normalize: false must have weights that sum to 1, got {total:.9g} at "
            f"tensor {at.tensor}, which scales the model itself; use normalize: true, or "
            f"`task_arithmetic`, which scales the deltas"
        )
    return coefficients(weights)


def write_linear(group: GroupSetting) -> Row:
    """Write `linear`: the base gets the weight that the parents leave."""
    left = ONE
    for weight in group.weights:
        left = EXACT.subtract(left, decimal(weight))
    return Row(weight_rows(group), {"normalize": False}, {"weight": left})


@dataclass(frozen=True)
class Deltas:
    """Reads and writes a method on deltas.

    ``keep`` says how entries are kept (none, trim, random, ranked, band), ``elects`` whether a sign
    is elected; ``normalize`` and ``rescale`` are mergekit's defaults.
    """

    keep: str
    elects: bool
    normalize: bool = False
    rescale: bool = False

    def read(self, at: At) -> Coefficients:
        """Read the parameters at one tensor."""
        weights = at.each("weight")
        densities = [ONE] * len(weights)
        if self.keep != "none":
            densities = [_share(d) for d in at.each("density", "1")]
        lambda_ = at.shared("lambda", "1")
        parameters: dict[str, Sequence[Decimal | float]] = {}
        divides = at.flag("normalize", self.normalize)
        if self.elects:
            parameters["normalize"] = (float(divides),)
            _check_signs(at, weights if divides else ())
        elif divides and abs(sum(weights)) >= Decimal("1e-8"):
            weights = divided(at, weights)
        if self.keep == "band":
            parameters["gamma"] = _gammas(at)
        if self.keep == "ranked":
            parameters["epsilon"] = _widths(at, densities)
        if self.keep != "none" and min(densities) < 1:
            widths = parameters.get("epsilon", [0.0] * len(weights))
            is_even = not any(w for w, d in zip(widths, densities, strict=True) if d < 1)
            weights, lambda_ = self._scaled(at, weights, densities, lambda_, is_even)
        weights = [w if d > 0 else Decimal(0) for w, d in zip(weights, densities, strict=True)]
        rates = [1 - d if d > 0 else Decimal(0) for d in densities]
        return coefficients(weights, rates, lambda_, **parameters)

    def _scaled(
        self,
        at: At,
        weights: list[Decimal],
        densities: list[Decimal],
        lambda_: Decimal,
        is_even: bool,
    ) -> tuple[list[Decimal], Decimal]:
        """Return weights and lambda that undo a rescale that ours has and the file has not."""
        rescales = at.flag("rescale", self.rescale)
        if self.keep in ("trim", "band"):
            if rescales:
                raise MergekitError(
                    f"`{at.file.method}` with rescale: true, which scales each tensor by what its "
                    f"trim took away, is not supported; set rescale: false, and raise lambda"
                )
            return weights, lambda_
        if rescales:
            return weights, lambda_
        if not is_even:
            raise MergekitError(
                f"`{at.file.method}` with rescale: false is not supported: here each entry is "
                f"divided by its own chance to be kept; set rescale: true"
            )
        if not (self.elects and at.flag("normalize", self.normalize)):
            return [w * d for w, d in zip(weights, densities, strict=True)], lambda_
        if len(set(densities)) > 1:
            raise MergekitError(
                f"`{at.file.method}` with rescale: false, normalize: true and densities that "
                f"differ between models is not supported; set rescale: true"
            )
        return weights, lambda_ * densities[0]

    def write(self, group: GroupSetting) -> Row:
        """Write the coefficients of one layer group."""
        shared: dict[str, Number] = {"lambda": decimal(group.lambda_), "normalize": False}
        if self.elects:
            shared["normalize"] = group.is_on("normalize")
            if shared["normalize"] and min(group.weights) < 0.0:
                raise group.fail(
                    f"mergekit divides by the signed sum of weights, which flips the sign of a "
                    f"negative weight ({min(group.weights)})"
                )
        rows = weight_rows(group)
        if self.keep != "none":
            shared["rescale"] = self.keep in ("random", "ranked")
            for row, rate in zip(rows, group.drop_rates, strict=True):
                row["density"] = EXACT.subtract(ONE, decimal(rate))
        if self.keep == "band":
            for row, gamma in zip(rows, group.parameters["gamma"], strict=True):
                row["gamma"] = decimal(gamma)
        if self.keep == "ranked":
            for row, half in zip(rows, _half_widths(group), strict=True):
                row["epsilon"] = half
        return Row(rows, shared)


def _share(density: Decimal) -> Decimal:
    """Clip a density to [0, 1]; one so small that nothing is kept becomes 0."""
    return min(density, ONE) if density > 0 and float(1 - density) < 1.0 else Decimal(0)


def _check_signs(at: At, weights: Sequence[Decimal]) -> None:
    if min(weights, default=0) < 0:
        raise MergekitError(
            f"`{at.file.method}` with normalize: true and a negative weight ({min(weights)} at "
            f"tensor {at.tensor}) is not supported: mergekit divides by the signed sum of "
            f"weights, which flips deltas or blows them up; set normalize: false"
        )


def _gammas(at: At) -> list[Decimal]:
    gammas = at.each("gamma", "0.01")
    if min(gammas) < 0:
        raise MergekitError(f"`gamma` must be in [0, 1], got {min(gammas)}; use 0 to cut nothing")
    return [min(gamma, ONE) for gamma in gammas]


def _widths(at: At, densities: Sequence[Decimal]) -> list[Decimal]:
    halves = at.each("epsilon", "0.15")
    for density, half in zip(densities, halves, strict=True):
        if half < 0 or (0 < density < 1 and not half < density < 1 - half):
            most = min(density, 1 - density)
            raise MergekitError(
                f"`density` -+ `epsilon` must stay inside (0, 1), got {density} -+ {half} at "
                f"tensor {at.tensor}; use an epsilon of at least 0 and below {most}"
            )
    return [min(2 * half, ONE) for half in halves]


def _half_widths(group: GroupSetting) -> Iterator[Decimal]:
    for rate, width in zip(group.drop_rates, group.parameters["epsilon"], strict=True):
        if rate > 0.0 and not width / 2.0 < min(rate, 1.0 - rate):
            raise group.fail(
                f"mergekit refuses drop probabilities that leave (0, 1): drop rate {rate} with a "
                f"window of width {width}"
            )
        yield EXACT.multiply(decimal(width), Decimal("0.5"))
