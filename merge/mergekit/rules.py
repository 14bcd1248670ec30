"""The table of mergekit's methods: one row reads and writes one method.

A row says which parameters mergekit's method has, whether it needs a base, how many models it
takes, how its parameters become coefficients of ours, and how coefficients become parameters. A
method of ours without a row cannot be expressed for mergekit. Knows no files; no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from ..hints import hint
from ..recipe.coefficients import Coefficients
from ..recipe.methods import METHODS
from . import vector_rules as vectors
from .at_group import GroupSetting, Row
from .at_tensor import At
from .delta_rules import Deltas, read_linear, write_linear
from .parameters import MergekitError

__all__ = ["RULES", "Rule", "rule_of"]
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
    """A method of mergekit that is one of ours.

    ``read`` turns mergekit's parameters at one tensor into coefficients, ``write`` the coefficients
    of one layer group into mergekit's parameters. ``shared`` and ``own`` are the parameters of
    mergekit's method, for the whole merge and for each model.

    ``fewest`` and ``most`` bound the number of models beside the base; with more, the method is
    written as ``beyond``, without a base. ``base_is_parent``: the base takes part as one more
    model. ``base_fills``: the base gets what the weights of the others leave. ``are_amounts``: the
    weights themselves matter, not only their ratios. ``notes`` are given whenever the method is
    used, ``drop_notes`` if it drops entries.
    """

    read: Callable[[At], Coefficients]
    write: Callable[[GroupSetting], Row]
    shared: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    needs_base: bool = True
    base_is_parent: bool = False
    base_fills: bool = False
    fewest: int = 1
    most: int | None = None
    beyond: str | None = None
    are_amounts: bool = False
    notes: tuple[str, ...] = ()
    drop_notes: tuple[str, ...] = ()


def rule_of(method: str) -> Rule:
    """Return the row of a method; MergekitError with the remedy if there is none."""
    if method in RULES:
        return RULES[method]
    if method in _NOT_OURS:
        raise MergekitError(f"merge_method: `{method}` {_NOT_OURS[method]}")
    if method in METHODS:
        raise MergekitError(f"merge_method: mergekit has no `{method}`; give a recipe.json")
    raise MergekitError(f"merge_method: `{method}` is unknown; {hint(method, RULES)}")


_L1 = "survivors are divided by their chance to be kept, as in the paper; mergekit scales each "
_DARE = (
    f"{_L1}tensor by its realised ratio of L1 norms: equal in expectation, different in small "
    f"tensors",
)
_DELLA = (
    f"{_L1}tensor by one ratio of L1 norms, so that in expectation its small entries are smaller "
    f"and its large ones larger than here, by up to epsilon / density",
)
_TRIM = (
    "entries of equal size at the edge of a trim are all kept or all cut; mergekit takes as many "
    "as the density says, in the order of its sort",
)
_ELECTED = ("where votes cancel to exactly 0, no sign is elected; mergekit elects plus",)


def _deltas(method: Deltas, *own: str, drop_notes: tuple[str, ...] = ()) -> Rule:
    return Rule(
        method.read,
        method.write,
        shared=("normalize", "rescale", "lambda", "int8_mask"),
        own=("weight", "density", *own),
        are_amounts=True,
        notes=_ELECTED if method.elects else (),
        drop_notes=drop_notes,
    )


RULES = MappingProxyType(
    {
        "linear": Rule(
            read_linear,
            write_linear,
            ("normalize",),
            ("weight",),
            needs_base=False,
            base_fills=True,
            are_amounts=True,
        ),
        "task_arithmetic": _deltas(Deltas("none", elects=False)),
        "ties": _deltas(Deltas("trim", elects=True, normalize=True), drop_notes=_TRIM),
        "dare_linear": _deltas(Deltas("random", elects=False, rescale=True), drop_notes=_DARE),
        "dare_ties": _deltas(Deltas("random", elects=True, rescale=True), drop_notes=_DARE),
        "della": _deltas(
            Deltas("ranked", elects=True, normalize=True, rescale=True),
            "epsilon",
            drop_notes=_DELLA,
        ),
        "della_linear": _deltas(
            Deltas("ranked", elects=False, rescale=True), "epsilon", drop_notes=_DELLA
        ),
        "breadcrumbs": _deltas(Deltas("band", elects=False), "gamma", drop_notes=_TRIM),
        "breadcrumbs_ties": _deltas(Deltas("band", elects=True), "gamma", drop_notes=_TRIM),
        "slerp": Rule(
            vectors.read_slerp,
            vectors.write_slerp,
            ("t",),
            most=1,
            beyond="nuslerp",
            notes=("mergekit interpolates linearly where |cos| > 0.9995; here it is the arc",),
        ),
        "nuslerp": Rule(
            vectors.read_nuslerp,
            vectors.write_nuslerp,
            ("nuslerp_row_wise", "nuslerp_flatten"),
            ("weight",),
            needs_base=False,
            fewest=2,
            most=2,
        ),
        "multislerp": Rule(
            vectors.read_multislerp,
            vectors.write_multislerp,
            ("normalize_weights", "eps"),
            ("weight",),
            needs_base=False,
        ),
        "karcher": Rule(
            vectors.read_karcher,
            vectors.write_karcher,
            ("max_iter", "tol"),
            needs_base=False,
            base_is_parent=True,
            notes=("`karcher` runs until it has converged, whatever `max_iter` and `tol` say",),
        ),
        "model_stock": Rule(
            vectors.read_model_stock,
            vectors.write_model_stock,
            ("filter_wise",),
            fewest=2,
            notes=("mergekit replaces |delta| |delta'| below 1e-6 by 1e-6; here it is exact",),
        ),
        "sce": Rule(
            vectors.read_sce,
            vectors.write_sce,
            ("select_topk", "int8_mask"),
            notes=(
                "models are weighed by the squares of their deltas (the paper's Eq. 3); mergekit "
                "weighs them equally where the mean squares sum to less than 1e-6",
                *_ELECTED,
            ),
        ),
        "arcee_fusion": Rule(
            vectors.read_equal,
            vectors.write_arcee_fusion,
            most=1,
            are_amounts=True,
            notes=("quartiles are exact; mergekit samples tensors above 10^6 entries",),
        ),
        "nearswap": Rule(
            vectors.read_nearswap, vectors.write_nearswap, ("t",), most=1, are_amounts=True
        ),
    }
)
"""The methods that mergekit and we both have, by name."""
