"""The section `stages`: coarse spaces first, finer ones around what they have found.

Like those of `sections`: each stage by itself, neither torch nor Optuna; what stages demand of each
other is checked in `check_stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from ..merge.hints import hint
from .sections import SearchSection, Section, SpaceSection

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
