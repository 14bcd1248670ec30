"""The sections `space` and `stages`: genes and their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ...merge.hints import check_keys, near
from .search import SearchSection
from .section import Interval, MethodName, Section, is_pair

MOST_POINTS = 1000
"""Upper bound of K in `depth`: more than any model has layers."""
Shape = Literal["constant", "lines", "control_points", "blocks", "layers", "tensors"]


def _shape(values: Any) -> Any:
    """Return what is written for a shape: a name, or the only key."""
    return next(iter(values)) if isinstance(values, Mapping) and values else values


class Depth(Section):
    """How coefficients vary over the layers: the name of a shape, or ``{shape: K}``."""

    shape: Shape
    """constant: one value; lines: weight = alpha + slope * depth, all else constant (LiNeS, Wang
    et al., arXiv:2410.17146); control_points: linear between K points; blocks: K equal steps;
    layers: one value per layer; tensors: one value per tensor."""
    count: int = Field(default=1, ge=1, le=MOST_POINTS)
    """K of control_points and blocks; a model of fewer layers has one per layer."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if isinstance(values, Depth):
            return values
        if values in ("constant", "lines", "layers", "tensors"):
            return {"shape": values}
        if isinstance(values, Mapping) and set(values) == {"shape", "count"}:
            return values
        if isinstance(values, Mapping) and len(values) == 1:
            shape, count = next(iter(values.items()))
            is_count = isinstance(count, int) and 1 <= count <= MOST_POINTS
            if shape in ("control_points", "blocks") and is_count:
                return {"shape": shape, "count": count}
        meant = near(_shape(values), get_args(Shape))
        raise ValueError(
            "must be `constant`, `lines`, `layers`, `tensors`, `{control_points: K}` or "
            f"`{{blocks: K}}` with K in 1..{MOST_POINTS}, got {values!r}{meant}"
        )


Seed = Annotated[int, Field(ge=0, lt=2**53)]
"""Mask seed that is searched: a gene is a float64, which holds no larger whole numbers."""


def _check_seeds(value: Any) -> Any:
    if value is None or is_pair(value):
        return value
    raise ValueError(
        f"must be [first, last] with first < last, got {value!r}; one seed is `merge.mask_seed`"
    )


class SpaceSection(Section):
    """Parameters that the search varies, and their bounds."""

    method: tuple[MethodName, ...] = ()
    """Methods to choose from, per module kind and point of `depth`; the first is the middle of the
    space. Empty: `merge.method` everywhere."""
    depth: Depth = Depth(shape="control_points", count=5)
    """Curve of the coefficients over the layers: `constant`, `lines`, `layers`, `tensors`,
    `{control_points: K}` or `{blocks: K}`."""
    modules: tuple[str, ...] = ("attn", "mlp")
    """Module kinds with separate coefficients; the tensors of other kinds use the mean (and the
    first kind's method). Empty: all kinds share one curve."""
    weight: Interval | None = None
    """Bounds of every weight; default: 1/P -+ 0.5, so that the middle is the uniform merge."""
    slope: Interval | None = None
    """Bounds of the weights' increase from the first layer to the last, for ``depth: lines``;
    default: [0, 0.5]."""
    drop_rate: Interval = (0.0, 0.0)
    """Bounds of every drop rate, in [0, 1)."""
    lambda_: Interval = Field(default=(1.0, 1.0), alias="lambda")
    """Bounds of lambda, the factor of the merged delta."""
    optional: bool | tuple[str, ...] = False
    """Parents that a candidate may leave out, one gene each; true: all parents."""
    mask_seed: Annotated[tuple[Seed, Seed] | None, BeforeValidator(_check_seeds)] = None
    """[first, last] seed of random masks; default: `merge.mask_seed` for all candidates."""
    parameters: dict[str, Interval] = Field(default_factory=dict)
    """Parameter of the method(s) -> bounds or a number; default: the method table's."""

    @field_validator("method")
    @classmethod
    def _check_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if len(methods) == 1 or len(set(methods)) != len(methods):
            raise ValueError(
                f"must name two or more methods, each once, got {list(methods)}; a single one is "
                "`merge.method`"
            )
        return methods

    @field_validator("mask_seed")
    @classmethod
    def _check_mask_seed(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(
                f"must be [first, last] with first < last, got {list(value)}; one seed is "
                "`merge.mask_seed`"
            )
        return value

    @field_validator("drop_rate")
    @classmethod
    def _check_drop_rate(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 <= low <= high < 1:
            raise ValueError(f"`drop_rate` must be in [0, 1), got [{low}, {high}]")
        return value

    @field_validator("modules")
    @classmethod
    def _check_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"`modules` must name each kind once, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _check_modules_are_free(self) -> SpaceSection:
        if self.depth.shape == "tensors" and "modules" in self.model_fields_set:
            raise ValueError(
                f"`depth: tensors` gives each tensor its own coefficients, got `modules: "
                f"{list(self.modules)}`; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _check_slope(self) -> SpaceSection:
        if self.slope is not None and self.depth.shape != "lines":
            raise ValueError(
                f"`slope` belongs to `depth: lines`, got depth `{self.depth.shape}`; leave one out"
            )
        return self


class StageSection(Section):
    """One stage of the search: its changes to `space`, its part of the budget, its width.

    The last stage names no part: it takes the rest.
    """

    space: dict[str, Any] = Field(default_factory=dict)
    """Keys of `space` with this stage's values; in a file they are keys of the stage itself."""
    trials: int | None = Field(default=None, ge=1)
    """Candidates of this stage."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the budget (candidates, items or time); default: equal shares."""
    width: float | None = Field(default=None, gt=0, le=1)
    """Share of each gene's interval that is searched, around the best candidate so far and within
    the interval; default: all of it. Not in the first stage."""

    @model_validator(mode="after")
    def _check_part(self) -> Self:
        if self.trials is not None and self.share is not None:
            raise ValueError(
                f"`trials` and `share` exclude each other, got `trials: {self.trials}` and `share: "
                f"{self.share:g}`; leave one out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("space"), Mapping):
            return values  # as a study's manifest has it
        stage_keys = [key for key in cls.known_keys() if key != "space"]
        check_keys("", values, [*stage_keys, *SpaceSection.known_keys()])
        own = {key: value for key, value in values.items() if key in stage_keys}
        return own | {"space": {key: value for key, value in values.items() if key not in own}}

    def over(self, space: SpaceSection) -> SpaceSection:
        """Return the space with this stage's changes, without keys that its `depth` excludes."""
        plain = space.model_dump(by_alias=True)
        if "depth" in self.space and self.space["depth"] != "lines":
            plain.pop("slope")
        if "modules" not in space.model_fields_set or self.space.get("depth") == "tensors":
            plain.pop("modules")
        return SpaceSection.model_validate(plain | self.space)


def check_stages(stages: Sequence[StageSection], search: SearchSection) -> None:
    """Check stages against each other and the budget.

    Raises:
        ValueError: Naming the key, the value and the remedy.
    """
    if len(stages) == 1:
        raise ValueError(
            "`stages` must be two or more, got one; move its keys to `space`, or add a stage"
        )
    *before, last = stages
    if last.trials is not None or last.share is not None:
        raise ValueError(
            f"`stages`: the last stage takes the rest of the budget, got {_part(last)}; leave that "
            "out"
        )
    if stages[0].width is not None:
        raise ValueError(
            "`stages`: the first stage has no earlier candidate to center on, got `width: "
            f"{stages[0].width:g}`; leave it out, or narrow `weight`"
        )
    if any(stage.trials for stage in before) and not all(stage.trials for stage in before):
        raise ValueError(
            "`stages`: either all stages but the last have `trials`, or none has, got "
            f"{', '.join(map(_part, before))}; give `trials` to each, or `share`"
        )
    trials = sum(stage.trials or 0 for stage in before)
    if search.trials is not None and 0 < search.trials <= trials:
        raise ValueError(
            f"`stages` take {trials} trials before the last one, got `search.trials: "
            f"{search.trials}` in total; raise that, or give the stages fewer"
        )
    share = sum(shares(stages)[:-1])
    if share >= 1:
        raise ValueError(
            "`stages` must leave a share of the budget to the last one, got shares that sum to "
            f"{share:g}; lower them"
        )


def shares(stages: Sequence[StageSection]) -> list[float]:
    """Return each stage's share of the budget; by default equal, the last one the rest."""
    before = [1 / len(stages) if s.share is None else s.share for s in stages[:-1]]
    return [*before, 1 - sum(before)]


def _part(stage: StageSection) -> str:
    if stage.trials is not None:
        return f"`trials: {stage.trials}`"
    return "nothing" if stage.share is None else f"`share: {stage.share:g}`"
