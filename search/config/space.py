"""The sections `space` and `stages`: genes and their bounds. Knows no torch, no Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ...merge.hints import hint
from .search import SearchSection
from .section import Interval, Section, _check_interval, _known_method

MOST_POINTS = 1000
"""Upper bound of `depth`'s K: more than any model has layers."""


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


SPACE_KEYS = tuple(field.alias or name for name, field in SpaceSection.model_fields.items())


class StageSection(Section):
    """One stage: the keys of `space` in which it differs, its part of the budget, how far it goes.

    Only the last stage has no part of its own: it takes what is left.
    """

    space: dict[str, Any] = Field(default_factory=dict)
    """Keys of `space` with this stage's values; in a file they stand in the stage itself."""
    trials: int | None = Field(default=None, ge=1)
    """Candidates of this stage."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the budget, be it candidates, items or time; default: the same for all stages."""
    width: float | None = Field(default=None, gt=0, le=1)
    """Share of each gene's interval that is searched, around the best so far and within the
    interval; default: all of it. The first stage has nothing to lie around."""

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if self.trials is not None and self.share is not None:
            raise ValueError(
                f"`trials` and `share` exclude each other, got `trials: {self.trials}` and `share: "
                f"{self.share:g}`; leave one out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError(f"must be a mapping of keys, got {values!r}")
        if isinstance(values.get("space"), Mapping):  # as the record of a study has it
            return values
        own = [name for name in cls.model_fields if name != "space"]
        for key in values:
            if key not in own and key not in SPACE_KEYS:
                raise ValueError(f"unknown key `{key}`; {hint(str(key), [*own, *SPACE_KEYS])}")
        space = {key: value for key, value in values.items() if key in SPACE_KEYS}
        return {key: value for key, value in values.items() if key in own} | {"space": space}

    def over(self, space: SpaceSection) -> SpaceSection:
        """The space of this stage: the configured one with what it has otherwise.

        A `slope` that belongs to another depth than this stage's is left out.
        """
        plain = space.model_dump(by_alias=True)
        if "depth" in self.space and self.space["depth"] != "lines":
            plain.pop("slope")
        return SpaceSection.model_validate(plain | self.space)


def check_stages(stages: Sequence[StageSection], search: SearchSection) -> None:
    """Check what stages demand of each other, and of the budget.

    Raises:
        ValueError: Naming the key, the value and the remedy.
    """
    if len(stages) == 1:
        raise ValueError(
            "`stages` must be two or more, got one; write its keys in `space`, or add a stage"
        )
    *before, last = stages
    if last.trials is not None or last.share is not None:
        raise ValueError(
            "`stages`: the last stage takes what is left of the budget, got "
            f"{_part(last)}; leave that out"
        )
    if stages[0].width is not None:
        raise ValueError(
            "`stages`: the first stage has nothing to lie around, got `width: "
            f"{stages[0].width:g}`; leave it out, or narrow `weight`"
        )
    if any(stage.trials for stage in before) and not all(stage.trials for stage in before):
        raise ValueError(
            "`stages`: all stages but the last name `trials`, or none does, got "
            f"{', '.join(map(_part, before))}; give `trials` to each, or `share`"
        )
    trials = sum(stage.trials or 0 for stage in before)
    if search.trials is not None and 0 < search.trials <= trials:
        raise ValueError(
            f"`stages` take {trials} trials before the last one, got `search.trials: "
            f"{search.trials}` in all; raise that, or give the stages fewer"
        )
    share = sum(shares(stages)[:-1])
    if share >= 1:
        raise ValueError(
            f"`stages` must leave a share of the budget to the last one, got shares that sum to "
            f"{share:g}; lower them"
        )


def shares(stages: Sequence[StageSection]) -> list[float]:
    """Share of each stage in the budget where stages have shares; the last one's is what is left.

    Those that say nothing have as much as if all stages were alike.
    """
    before = [1 / len(stages) if s.share is None else s.share for s in stages[:-1]]
    return [*before, 1 - sum(before)]


def _part(stage: StageSection) -> str:
    if stage.trials is not None:
        return f"`trials: {stage.trials}`"
    return "nothing" if stage.share is None else f"`share: {stage.share:g}`"
