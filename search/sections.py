"""The sections of a search's configuration: their keys, defaults, bounds and what they mean.

Knows each section by itself; what sections demand of each other is checked in `config`. Knows
neither torch nor Optuna, so that a misspelt key is reported at once.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from ..evals.columns import METRIC, TermColumn
from ..merge.groups import Grouping
from ..merge.hints import hint
from ..merge.methods import METHODS
from .deadline import deadline_of

ENDS = ("trials", "items", "hours", "until")
"""Keys of `search` that say when it is enough."""

DEFAULT_TRIALS = 200

PARETO_SAMPLER = "NSGAIISampler"
"""Default sampler where several values are told."""

Rule = Literal["mean", "weighted", "min", "harmonic", "pareto"]

MOST_POINTS = 1000
"""Upper bound of `depth`'s K: more than any model has layers."""


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError(f"must be a mapping of keys, got {values!r}")
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in values:
            if key not in known and key not in cls.model_fields:
                raise ValueError(f"unknown key `{key}`; {hint(str(key), known)}")
        return values


def _as_interval(value: Any) -> Any:
    """Read a number as the interval that holds it alone."""
    return (value, value) if isinstance(value, int | float) else value


def _check_interval(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise ValueError(f"must be a number or [low, high] with low <= high, got [{low}, {high}]")
    return value


Interval = Annotated[
    tuple[
        Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]
    ],
    BeforeValidator(_as_interval),
]


def _known_method(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"must be a known merge method, got `{method}`; {hint(method, METHODS)}")
    return method


def _device_map(value: Any) -> Any:
    is_map = isinstance(value, dict) and all(isinstance(d, int | str) for d in value.values())
    if value is None or isinstance(value, str) or is_map:
        return value
    raise ValueError(f"must be a word as `auto`, or module names with devices, got {value!r}")


class Depth(Section):
    """How coefficients vary over the layers: exactly one of the shapes, as one key."""

    shape: Literal["constant", "lines", "control_points", "blocks", "layers"]
    """constant: one value; lines: weight = alpha + slope * depth, all else constant (LiNeS, Wang
    et al., arXiv:2410.17146); control_points: linear between k points; blocks: k equal steps;
    layers: every layer free."""
    count: int = Field(default=1, ge=1, le=MOST_POINTS)
    """k of control_points and blocks, 1 or more; a model of fewer layers has one for each."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Depth):
            return values
        if values in ("constant", "lines", "layers"):
            return {"shape": values}
        if isinstance(values, Mapping) and set(values) == {"shape", "count"}:
            return values
        if isinstance(values, Mapping) and len(values) == 1:
            shape, count = next(iter(values.items()))
            is_count = isinstance(count, int) and 1 <= count <= MOST_POINTS
            if shape in ("control_points", "blocks") and is_count:
                return {"shape": shape, "count": count}
        raise ValueError(
            "must be `constant`, `lines`, `layers`, `{control_points: K}` or `{blocks: K}` with K "
            f"in 1..{MOST_POINTS}, got {values!r}"
        )


class TaskSection(Section):
    """One lm-eval task that candidates are scored on."""

    task: str = Field(min_length=1)
    """lm-eval task name, or the path of a task YAML (relative to this configuration)."""
    num_fewshot: int | None = Field(default=None, ge=0)
    metric: str | None = None
    """Metric, or ``metric,filter``; default: the task's first metric."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of this task in the objectives `weighted` and `harmonic`, relative to the others'."""
    optimize: tuple[TermColumn, ...] = (METRIC,)
    """What counts of it: `metric`; `margin` of the right answer over its best rival, or its
    `log_likelihood` (nats); `length` of generated answers (tokens, fewer are better). Several where
    the objective is `pareto`."""
    max_items: int | None = Field(default=None, ge=1)
    """At most this many docs of the task, those of lowest hash; default: all."""

    @field_validator("optimize", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("optimize")
    @classmethod
    def _each_once(cls, value: tuple[TermColumn, ...]) -> tuple[TermColumn, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"must name one column or more, each once, got {list(value)}")
        return value


class SplitsSection(Section):
    """Which items the search sees, and which are kept for the confirmation."""

    search_share: float = Field(default=0.5, gt=0, lt=1)
    search_items: int | None = Field(default=None, ge=2)
    """At most this many search items per task; default: all in the share."""
    confirm_items: int | None = Field(default=None, ge=2)


class MergeSection(Section):
    """What is computed when a recipe is materialised, and where."""

    method: str | None = None
    """Row of the method table; default task_arithmetic, unless `space.method` names several."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the resident model: the exported file is exactly what was scored."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`."""
    device_map: Annotated[Any, AfterValidator(_device_map)] = None
    """Spreads the resident model over several devices, as in transformers (`auto`, or module name
    -> device); each tensor is merged where it lives."""
    placement: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where base and parents are held: on the device, in pinned host memory, or memory-mapped from
    disk; `auto` takes the first that fits."""
    compile: Literal["auto", True, False] = "auto"
    """Whether the kernels are compiled; `auto` where it works. The bytes are the same."""
    tokenizer: Literal["base", "union"] | None = None
    """Vocabulary of the merge where the parents' differ: the base's, or the union of all; default:
    differences are refused."""
    layer_groups: dict[str, str] = Field(default_factory=dict)
    """Tensor-name pattern -> layer group, before the rule from names; `{layer}` stands for a layer
    index, as in ``"*.layers.{layer}.*.q_proj.*": "layers.{layer}.q"``."""
    mask_seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str | None) -> str | None:
        return None if method is None else _known_method(method)

    @field_validator("layer_groups")
    @classmethod
    def _readable(cls, rules: dict[str, str]) -> dict[str, str]:
        Grouping(tuple(rules.items()))
        return rules

    @property
    def grouping(self) -> Grouping:
        """How tensors form layer groups."""
        return Grouping(tuple(self.layer_groups.items()))


Seed = Annotated[int, Field(ge=0, lt=2**53)]
"""Of masks, where it is searched: a gene is a float, which holds no larger whole number."""


class SpaceSection(Section):
    """What the search may vary, and how far."""

    method: tuple[str, ...] = ()
    """Methods that the search chooses from, per module kind and point of `depth`; the first is the
    middle of the space. Empty: `merge.method` everywhere."""
    depth: Depth = Depth(shape="control_points", count=5)
    modules: tuple[str, ...] = ("attn", "mlp")
    """Module kinds with coefficients of their own; the tensors of the other kinds take the mean
    (and the first kind's method). Empty: all kinds share one curve."""
    weight: Interval | None = None
    """Bounds of every weight; default 1/P -+ 0.5, so that the middle is the uniform merge."""
    slope: Interval | None = None
    """Bounds of what a weight gains from the first layer to the last, for ``depth: lines``;
    default [0, 0.5]."""
    drop_rate: Interval = (0.0, 0.0)
    lambda_: Interval = Field(default=(1.0, 1.0), alias="lambda")
    optional: bool | tuple[str, ...] = False
    """Parents that may be left out of a candidate, each by a gene of its own; true: any of them."""
    mask_seed: tuple[Seed, Seed] | None = None
    """[first, last] of the seeds of random masks; default: `merge.mask_seed` for all."""
    parameters: dict[str, Interval] = Field(default_factory=dict)
    """Parameter of the method(s) -> bounds, or a number; default: the method table's default."""

    @field_validator("method")
    @classmethod
    def _methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if len(methods) == 1 or len(set(methods)) != len(methods):
            raise ValueError(
                f"must name two or more methods, each once, got {list(methods)}; a single one is "
                "`merge.method`"
            )
        return tuple(_known_method(method) for method in methods)

    @field_validator("weight", "lambda_", "slope")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return None if value is None else _check_interval(value)

    @field_validator("mask_seed")
    @classmethod
    def _ordered_seeds(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(
                f"must be [first, last] with first < last, got {list(value)}; one seed is "
                "`merge.mask_seed`"
            )
        return value

    @field_validator("parameters")
    @classmethod
    def _each_ordered(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {name: _check_interval(bounds) for name, bounds in value.items()}

    @field_validator("drop_rate")
    @classmethod
    def _rate(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = _check_interval(value)
        if not 0 <= low <= high < 1:
            raise ValueError(f"`drop_rate` must be in [0, 1), got [{low}, {high}]")
        return value

    @field_validator("modules")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"`modules` must name each kind once, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _slope_of_lines(self) -> SpaceSection:
        if self.slope is not None and self.depth.shape != "lines":
            raise ValueError(
                f"`slope` belongs to `depth: lines`, got depth `{self.depth.shape}`; leave one out"
            )
        return self


class RacingSection(Section):
    """When a candidate that is losing is stopped."""

    first: int = Field(default=50, ge=2)
    """Items after which the first test comes; the next ones at twice as many."""
    alpha: float = Field(default=0.1, gt=0, lt=0.5)
    """One-sided level at which a candidate is shown to be worse than the best so far, per test."""


class SearchSection(Section):
    """How candidates are proposed, and how many."""

    trials: int | None = Field(default=None, ge=0)
    """Candidates proposed by the sampler; the baselines come on top. Default: 200, or without end
    where `items`, `hours` or `until` says when it is enough."""
    items: int | None = Field(default=None, ge=1)
    """Items that candidates may be scored on, all together."""
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Time for everything, confirmation included; that of earlier runs counts."""
    until: str | None = None
    """When everything shall be done: `"08:00"` (the next such hour when the study begins), or a
    moment as `2026-11-25T08:00`. 10 to 20 % of the time is kept for confirmation."""
    sampler: str = "CmaEsSampler"
    """Any sampler class of ``optuna.samplers``; NSGAIISampler where the objective is `pareto`."""
    sampler_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that class, without its seed: that comes from ``run_seed``."""
    run_seed: int = Field(default=0, ge=0, lt=2**63)
    warm_start: Path | None = None
    """Results folder of a former study with the same base and parents (relative to the working
    directory): its best recipes are the first candidates, scored anew, and the search starts at the
    best of them. None of its scores enters."""
    objective: Rule | None = None
    """How the tasks' scores become what the sampler sees: one number, or with `pareto` one per
    task. `weighted` is a mean by the tasks' weights. Default: `harmonic` where every task counts by
    a share of right answers, else `mean` (`weighted` where tasks have weights)."""
    normalize: bool = False
    """Whether each task counts from the worst parent's score (0) to the best parent's (1), on the
    search items."""
    finalists: int = Field(default=5, ge=1)
    """Best candidates that are scored on the confirm and guard items at the end."""
    racing: RacingSection | Literal[False] = RacingSection()
    """How candidates are stopped early; `false`: every candidate meets every item."""
    dissect: bool = True
    """Whether the winner is taken apart at the end: its genes reset one at a time, then as many
    together as can go without a loss."""
    rerolls: int = Field(default=3, ge=0)
    """Other masks under which the winner is scored where it is taken apart and draws masks."""

    @field_validator("until")
    @classmethod
    def _readable(cls, until: str | None) -> str | None:
        if until is not None:
            deadline_of(until, datetime.datetime.now())
        return until

    @model_validator(mode="before")
    @classmethod
    def _some_end(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or any(values.get(key) is not None for key in ENDS):
            return values
        return {**values, "trials": DEFAULT_TRIALS}

    @model_validator(mode="before")
    @classmethod
    def _sampler_of_several(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("objective") != "pareto":
            return values
        return {"sampler": PARETO_SAMPLER, **values}

    @field_validator("sampler_args")
    @classmethod
    def _no_seed(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if "seed" in arguments:
            raise ValueError("must not hold `seed`, every trial has its own; use `search.run_seed`")
        return arguments


Rate = Annotated[float, Field(ge=0, lt=1)]


class BaselinesSection(Section):
    """Null baselines: the merges that anyone would try first, scored before the search."""

    lambdas: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = (
        0.2,
        0.3,
        0.4,
        0.6,
        0.8,
        1.0,
    )
    """Of task arithmetic with weight 1 for every parent."""
    ties_drop_rates: tuple[Rate, ...] = (0.8, 0.5)
    """0.8 is the default of the TIES paper (the top 20 % are kept)."""
    dare_ties_drop_rates: tuple[Rate, ...] = (0.5, 0.9)
