"""What mergekit's parameters mean to each method, as coefficients of ours, for one tensor.

A row per method: which parameters it has, whether it needs a base, how many models it takes, and
the function that turns values into coefficients. Semantics are those of mergekit 0.1.5, found by
running it; what cannot be had is refused here. Knows no files; no torch.

Words of mergekit that are not ours: density is 1 - drop_rate, its `epsilon` is half of ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from ..hints import hint
from ..recipe.coefficients import Coefficients
from .at_tensor import At
from .parameters import MergekitError

__all__ = ["RULES", "Rule", "rule_of"]
ONE = Decimal(1)
MOST_GROWTH = 10
"""Largest factor on deltas by which `normalize` may divide where weights cancel each other."""
_NOT_OURS = MappingProxyType(
    {
        "passthrough": "copies or stacks layers; copy the model, or use mergekit to stack it",
        "ram": "is in mergekit alone; the nearest here is `sce`",
        "ramplus_tl": "is in mergekit alone; the nearest here is `sce`",
        "dare": "is called `dare_linear` or `dare_ties`",
    }
)


@dataclass(frozen=True)
class Rule:
    """A method of mergekit's that is one of ours.

    ``shared`` and ``own`` are the parameters that it has there, for the whole merge and for each
    model; ``fewest`` and ``most`` bound the models beside the base. ``base_is_parent`` says that
    the base takes part as one more model. ``notes`` are told whenever the method is used,
    ``drop_notes`` where it drops entries.
    """

    make: Callable[[At], Coefficients]
    shared: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    needs_base: bool = True
    base_is_parent: bool = False
    fewest: int = 1
    most: int | None = None
    notes: tuple[str, ...] = ()
    drop_notes: tuple[str, ...] = ()


def rule_of(method: str) -> Rule:
    """The row of a method; MergekitError with the remedy where there is none."""
    if method in RULES:
        return RULES[method]
    if method in _NOT_OURS:
        raise MergekitError(f"merge_method: `{method}` {_NOT_OURS[method]}")
    raise MergekitError(f"merge_method: `{method}` is unknown; {hint(method, RULES)}")


def _coefficients(
    weights: Sequence[Decimal | float],
    drop_rates: Sequence[Decimal | float] = (),
    lambda_: Decimal | None = None,
    **parameters: Sequence[Decimal | float],
) -> Coefficients:
    return Coefficients(
        tuple(map(float, weights)),
        tuple(map(float, drop_rates or [0.0] * len(weights))),
        {name: tuple(map(float, values)) for name, values in parameters.items()},
        lambda_=None if lambda_ is None else float(lambda_),
    )


def _linear(at: At) -> Coefficients:
    # The base is one of the averaged models where it is named; ours keeps what the others leave.
    weights = at.each("weight")
    own = at.own("weight", at.base) if at.takes_part(at.base) else Decimal(0)
    if at.flag("normalize", True):
        return _coefficients(_shares(at, [own, *weights])[1:])
    total = own + sum(weights)
    if abs(total - ONE) > Decimal("1e-9"):
        raise MergekitError(
            f"`linear` with normalize: false must have weights that sum to 1, got {total:.9g} at "
            f"tensor {at.tensor}, which scales the model itself; use normalize: true, or "
            f"`task_arithmetic`, which scales the deltas"
        )
    return _coefficients(weights)


def _shares(at: At, weights: Sequence[Decimal]) -> list[Decimal]:
    """Weights divided by their sum; refused where they cancel and the quotients explode."""
    total = sum(weights)
    if total == 0 or sum(map(abs, weights)) > MOST_GROWTH * abs(total):
        values = ", ".join(str(weight) for weight in weights)
        raise MergekitError(
            f"weights {values} nearly cancel at tensor {at.tensor}: divided by their sum {total} "
            f"they blow up; set normalize: false, or choose weights whose sum is not near 0"
        )
    return [weight / total for weight in weights]


@dataclass(frozen=True)
class _Deltas:
    """The methods on deltas: how entries are kept (none, trim, random, ranked, band), whether a
    sign is elected, and mergekit's defaults."""

    keep: str
    elects: bool
    normalize: bool = False
    rescale: bool = False

    def __call__(self, at: At) -> Coefficients:
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
            weights = _shares(at, weights)
        if self.keep == "band":
            parameters["gamma"] = _gammas(at)
        if self.keep == "ranked":
            parameters["epsilon"] = _widths(at, densities)
        rescales = at.flag("rescale", self.rescale)
        if self.keep != "none" and min(densities) < 1:
            widths = parameters.get("epsilon", [0.0] * len(weights))
            is_even = not any(w for w, d in zip(widths, densities, strict=True) if d < 1)
            weights, lambda_ = self._scaled(at, rescales, weights, densities, lambda_, is_even)
        weights = [w if d > 0 else Decimal(0) for w, d in zip(weights, densities, strict=True)]
        rates = [1 - d if d > 0 else Decimal(0) for d in densities]
        return _coefficients(weights, rates, lambda_, **parameters)

    def _scaled(
        self,
        at: At,
        rescales: bool,
        weights: list[Decimal],
        densities: list[Decimal],
        lambda_: Decimal,
        is_even: bool,
    ) -> tuple[list[Decimal], Decimal]:
        """Weights and lambda that make up for a rescale that ours does and the file does not."""
        if self.keep in ("trim", "band"):
            if rescales:
                raise MergekitError(
                    f"`{at.file.method}` with rescale: true, which scales each tensor by what its "
                    f"trim took away, cannot be honoured; set rescale: false, and raise lambda"
                )
            return weights, lambda_
        if rescales:
            return weights, lambda_
        if not is_even:
            raise MergekitError(
                f"`{at.file.method}` with rescale: false cannot be honoured: here each entry is "
                f"divided by its own chance to be kept; set rescale: true"
            )
        if not (self.elects and at.flag("normalize", self.normalize)):
            return [w * d for w, d in zip(weights, densities, strict=True)], lambda_
        if len(set(densities)) > 1:
            raise MergekitError(
                f"`{at.file.method}` with rescale: false, normalize: true and densities that "
                f"differ between models cannot be honoured; set rescale: true"
            )
        return weights, lambda_ * densities[0]


def _share(density: Decimal) -> Decimal:
    """A density in [0, 1]; one so small that nothing is kept is 0."""
    return min(density, ONE) if density > 0 and float(1 - density) < 1.0 else Decimal(0)


def _check_signs(at: At, weights: Sequence[Decimal]) -> None:
    if min(weights, default=0) < 0:
        raise MergekitError(
            f"`{at.file.method}` with normalize: true and a negative weight ({min(weights)} at "
            f"tensor {at.tensor}) cannot be honoured: mergekit divides by the signed sum of "
            f"weights, which turns deltas round or blows them up; set normalize: false"
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


def _slerp(at: At) -> Coefficients:
    t = at.shared("t")
    return _coefficients([t if at.takes_part(parent) else 0.0 for parent in at.parents])


def _nuslerp(at: At) -> Coefficients:
    if not at.flag("nuslerp_flatten", True):
        raise MergekitError(
            "`nuslerp_flatten: false` (row by row) cannot be honoured; remove it: whole tensors "
            "are interpolated"
        )
    weights = at.each("weight")
    if abs(sum(weights)) < Decimal("1e-6"):
        weights = [Decimal("0.5") * at.takes_part(parent) for parent in at.parents]
    return _coefficients(_ratio(weights), deltas=_between(at))


def _ratio(weights: Sequence[Decimal]) -> Sequence[Decimal]:
    """Weights of which only the ratio counts; a model alone is taken whole, so it weighs 1."""
    alone = sum(weight != 0 for weight in weights) == 1
    return [weight / weight if weight else weight for weight in weights] if alone else weights


def _multislerp(at: At) -> Coefficients:
    weights = at.each("weight")
    if at.flag("normalize_weights", True):
        _shares(at, weights)
    elif abs(sum(weights) - ONE) > Decimal("1e-9"):
        raise MergekitError(
            f"`multislerp` with normalize_weights: false must have weights that sum to 1, got "
            f"{sum(weights)} at tensor {at.tensor}; set normalize_weights: true"
        )
    return _coefficients(_ratio(weights), deltas=_between(at))


def _between(at: At) -> tuple[float, ...]:
    return (0.0 if at.file.base is None else 1.0,)


def _equal(at: At) -> list[float]:
    here = [at.takes_part(parent) for parent in at.parents]
    return [1 / sum(here) if takes_part else 0.0 for takes_part in here]


def _karcher(at: At) -> Coefficients:
    return _coefficients(_equal(at), deltas=(0.0,))


def _model_stock(at: At) -> Coefficients:
    if at.flag("filter_wise", False):
        raise MergekitError(
            "`filter_wise: true` (row by row) cannot be honoured; remove it: the angle is taken "
            "over whole tensors"
        )
    return _coefficients(_equal(at))


def _sce(at: At) -> Coefficients:
    select_topk = min(max(at.shared("select_topk", "1"), Decimal(0)), ONE)
    return _coefficients(_equal(at), lambda_=ONE, select_topk=(select_topk,))


def _arcee_fusion(at: At) -> Coefficients:
    return _coefficients(_equal(at))


def _nearswap(at: At) -> Coefficients:
    t = min(max(at.shared("t"), Decimal(0)), ONE)
    return _coefficients(_equal(at), t=[t] * len(at.parents))


_SUMMED = ("normalize", "rescale", "lambda", "int8_mask")
_OWN = ("weight", "density")
_L1 = "survivors are divided by their chance to be kept, as in the paper; mergekit scales each "
_DARE = (
    f"{_L1}tensor by its realised ratio of L1 norms: equal in expectation, apart in small tensors",
)
_DELLA = (
    f"{_L1}tensor by one ratio of L1 norms, so that in expectation its small entries come out "
    f"smaller and its large ones larger than here, by up to epsilon / density",
)
_TRIM = (
    "entries of equal size at the edge of a trim are all kept or all cut; mergekit takes as many "
    "as the density says, in the order of its sort",
)
_ELECTED = ("where votes cancel to exactly 0, nobody is elected; mergekit elects plus",)


def _deltas(rule: _Deltas, *own: str, drop_notes: tuple[str, ...] = ()) -> Rule:
    notes = _ELECTED if rule.elects else ()
    return Rule(rule, shared=_SUMMED, own=(*_OWN, *own), notes=notes, drop_notes=drop_notes)


RULES = MappingProxyType(
    {
        "linear": Rule(_linear, ("normalize",), ("weight",), needs_base=False),
        "task_arithmetic": _deltas(_Deltas("none", elects=False)),
        "ties": _deltas(_Deltas("trim", elects=True, normalize=True), drop_notes=_TRIM),
        "dare_linear": _deltas(_Deltas("random", elects=False, rescale=True), drop_notes=_DARE),
        "dare_ties": _deltas(_Deltas("random", elects=True, rescale=True), drop_notes=_DARE),
        "della": _deltas(
            _Deltas("ranked", elects=True, normalize=True, rescale=True),
            "epsilon",
            drop_notes=_DELLA,
        ),
        "della_linear": _deltas(
            _Deltas("ranked", elects=False, rescale=True), "epsilon", drop_notes=_DELLA
        ),
        "breadcrumbs": _deltas(_Deltas("band", elects=False), "gamma", drop_notes=_TRIM),
        "breadcrumbs_ties": _deltas(_Deltas("band", elects=True), "gamma", drop_notes=_TRIM),
        "slerp": Rule(
            _slerp,
            ("t",),
            most=1,
            notes=("mergekit interpolates linearly where |cos| > 0.9995; here the arc holds",),
        ),
        "nuslerp": Rule(
            _nuslerp,
            ("nuslerp_row_wise", "nuslerp_flatten"),
            ("weight",),
            needs_base=False,
            fewest=2,
            most=2,
        ),
        "multislerp": Rule(
            _multislerp, ("normalize_weights", "eps"), ("weight",), needs_base=False
        ),
        "karcher": Rule(
            _karcher,
            ("max_iter", "tol"),
            needs_base=False,
            base_is_parent=True,
            notes=("`karcher` runs until it has converged, whatever `max_iter` and `tol` say",),
        ),
        "model_stock": Rule(
            _model_stock,
            ("filter_wise",),
            fewest=2,
            notes=("mergekit takes |delta| |delta'| below 1e-6 for 1e-6; here the cosine holds",),
        ),
        "sce": Rule(
            _sce,
            ("select_topk", "int8_mask"),
            notes=(
                "models are weighed by the squares of their deltas (the paper's Eq. 3); mergekit "
                "weighs them equally where the mean squares sum to less than 1e-6",
                *_ELECTED,
            ),
        ),
        "arcee_fusion": Rule(
            _arcee_fusion,
            most=1,
            notes=("quartiles are exact; mergekit samples tensors above 10^6 entries",),
        ),
        "nearswap": Rule(_nearswap, ("t",), most=1),
    }
)
"""The methods of mergekit that can be read, by name; all of ours are among them."""
