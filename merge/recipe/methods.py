"""The table of merge methods: each turns a layer group's setting into the plan of one tensor.

A plan is numbers only (plans.py); the kernels carry it out. A method may query `Statistics` of the
tensor (inner products, magnitudes, variances), which are computed once per parent set. The formulas
are in arithmetic.py (deltas, entry by entry) and spherical.py (whole vectors). Knows no tensors,
files or search; no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from ..recipe import arithmetic, spherical
from .plans import Plan, Setting, Statistics

__all__ = ["METHODS", "Method", "Parameter"]


@dataclass(frozen=True)
class Parameter:
    """A number that a method has besides weight, drop rate and lambda.

    It lies in [low, high]. `is_shared` says one number for all parents of a layer group, else one
    per parent. A parameter of unit "switch" is 0 or 1. `is_smooth`: merged weights are a
    continuous function of it, differentiable almost everywhere.
    """

    name: str
    low: float
    high: float
    default: float
    is_shared: bool
    unit: str
    summary: str
    is_smooth: bool = False


@dataclass(frozen=True)
class Method:
    """A row of the table.

    `plan` maps a setting with at least one parent and a tensor's statistics to the plan.
    `is_random`: whether `mask_seed` matters. `needs`: the statistics that it or its plans use
    (gram, magnitudes, variances, ranks, importance). `most_parents`: the largest number of parents
    that may take part. `is_linear`: whether merged weights are a linear function of the parents'
    weights. `neutral`: the parameters at which, with drop rates 0, one parent of weight
    1 gives that parent; None if there are none.
    """

    name: str
    plan: Callable[[Setting, Statistics], Plan]
    paper: str
    summary: str
    uses_drop_rate: bool = False
    uses_lambda: bool = False
    is_random: bool = False
    parameters: tuple[Parameter, ...] = ()
    needs: frozenset[str] = frozenset()
    most_parents: int | None = None
    is_linear: bool = False
    neutral: Mapping[str, float] | None = field(default_factory=dict, hash=False)


_NORMALIZE = Parameter(
    "normalize", 0.0, 1.0, 1.0, True, "switch", "divide by the weights of the parents that agree"
)
_EPSILON = Parameter(
    "epsilon", 0.0, 1.0, 0.3, False, "probability", "width of the window of drop probabilities"
)
_GAMMA = Parameter(
    "gamma", 0.0, 1.0, 0.01, False, "share of entries", "share of the largest entries that is cut"
)
_T = Parameter(
    "t",
    0.0,
    1.0,
    1e-4,
    False,
    "weight",
    "farthest an entry moves toward the parent",
    is_smooth=True,
)
_SELECT_TOPK = Parameter(
    "select_topk", 0.0, 1.0, 1.0, True, "share of entries", "share of entries that is selected"
)
_DELTAS = Parameter("deltas", 0.0, 1.0, 1.0, True, "switch", "1: between deltas, 0: full weights")
_NO_DELTAS = Parameter("deltas", 0.0, 1.0, 0.0, True, "switch", _DELTAS.summary)
_GRAM = frozenset({"gram"})
_MAGNITUDES = frozenset({"magnitudes"})
_RANKS = frozenset({"ranks"})
_dropping = partial(Method, uses_drop_rate=True, uses_lambda=True)
_random = partial(_dropping, is_random=True)
_ROWS = (
    Method(
        "linear",
        arithmetic.linear,
        "arXiv:2203.05482",
        "weighted average of the parents; the base keeps what the weights leave",
        is_linear=True,
    ),
    Method(
        "task_arithmetic",
        arithmetic.task_arithmetic,
        "arXiv:2212.04089",
        "base plus lambda times the weighted sum of deltas",
        uses_lambda=True,
        is_linear=True,
    ),
    _dropping(
        "ties",
        arithmetic.ties,
        "arXiv:2306.01708",
        "keep the largest delta entries, elect a sign, average the parents that agree",
        parameters=(_NORMALIZE,),
        needs=_MAGNITUDES,
    ),
    _random(
        "dare_linear",
        arithmetic.dare_linear,
        "arXiv:2311.03099",
        "drop delta entries at random, rescale the rest, then task arithmetic",
        is_linear=True,
    ),
    _random(
        "dare_ties",
        arithmetic.dare_ties,
        "arXiv:2311.03099",
        "drop delta entries at random, rescale the rest, then elect and average",
        parameters=(_NORMALIZE,),
    ),
    _random(
        "della",
        arithmetic.della,
        "arXiv:2406.11617",
        "drop small delta entries more often than large ones, then elect and average",
        parameters=(_EPSILON, _NORMALIZE),
        needs=_RANKS,
    ),
    _random(
        "della_linear",
        arithmetic.della_linear,
        "arXiv:2406.11617",
        "drop small delta entries more often than large ones, then task arithmetic",
        parameters=(_EPSILON,),
        needs=_RANKS,
        is_linear=True,
    ),
    _dropping(
        "breadcrumbs",
        arithmetic.breadcrumbs,
        "arXiv:2312.06795",
        "cut the largest and the smallest delta entries, then task arithmetic",
        parameters=(_GAMMA,),
        needs=_MAGNITUDES,
        is_linear=True,
    ),
    _dropping(
        "breadcrumbs_ties",
        arithmetic.breadcrumbs_ties,
        "arXiv:2312.06795",
        "cut the largest and the smallest delta entries, then elect and average",
        parameters=(_GAMMA, _NORMALIZE),
        needs=_MAGNITUDES,
    ),
    Method(
        "slerp",
        spherical.slerp,
        "Shoemake, SIGGRAPH 1985",
        "along the great circle between two parents, or the base and one",
        needs=_GRAM,
        most_parents=2,
    ),
    Method(
        "nuslerp",
        spherical.nuslerp,
        "mergekit, 2024",
        "slerp of the deltas of two parents, added to the base",
        parameters=(_DELTAS,),
        needs=_GRAM,
        most_parents=2,
    ),
    Method(
        "multislerp",
        spherical.multislerp,
        "Goddard, 2025",
        "weighted mean direction of the deltas at their weighted mean length",
        parameters=(_DELTAS,),
        needs=_GRAM,
    ),
    Method(
        "karcher",
        spherical.karcher,
        "arXiv:2603.04972",
        "weighted mean on the sphere by squared angles, at the weighted mean length",
        parameters=(_NO_DELTAS,),
        needs=_GRAM,
    ),
    Method(
        "model_stock",
        spherical.model_stock,
        "arXiv:2403.19522",
        "average of the parents, drawn to the base as far as their deltas disagree",
        needs=_GRAM,
    ),
    Method(
        "sce",
        arithmetic.sce,
        "arXiv:2408.07990",
        "select entries that vary, weigh parents by their squares there, erase minority signs",
        uses_lambda=True,
        parameters=(_SELECT_TOPK,),
        needs=frozenset({"variances"}),
    ),
    Method(
        "arcee_fusion",
        arithmetic.arcee_fusion,
        "Arcee AI, 2025",
        "take only the delta entries of outlying importance",
        needs=frozenset({"importance"}),
        neutral=None,
        is_linear=True,
    ),
    Method(
        "nearswap",
        arithmetic.nearswap,
        "alchemonaut, 2024",
        "move each entry toward the parent by at most t",
        parameters=(_T,),
        neutral=MappingProxyType({"t": 1.0}),
        is_linear=True,
    ),
)
_BY_NAME = {row.name: row for row in _ROWS}
METHODS = MappingProxyType(_BY_NAME)
"""The method table, in the order in which methods are listed."""
