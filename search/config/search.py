"""The sections `search`, `racing` and `baselines`. Knows no torch, no Optuna."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section

DAY = datetime.timedelta(days=1)


def deadline_of(until: str, now: datetime.datetime) -> datetime.datetime:
    """The moment that a person means: the next such hour, or a date and an hour.

    Without a zone it is what this machine's clock will show then: an hour to which it is put
    forward or back in the night, for summer time, counts.

    Args:
        until: ``08:00``, or ISO 8601 as ``2026-11-25T08:00``.
        now: As this machine's clock shows it, without a zone.

    Returns:
        With its zone.

    Raises:
        ValueError: If it is neither.
    """
    try:
        hour = datetime.time.fromisoformat(until)
    except ValueError:
        moment = _moment(until)
    else:
        here = now if hour.tzinfo is None else now.astimezone(hour.tzinfo)
        moment = datetime.datetime.combine(here.date(), hour)
        moment = moment if moment > here else moment + DAY
    return moment if moment.tzinfo else moment.astimezone()


def _moment(until: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(
            f"`until` must be an hour as `08:00`, or a moment as `2026-11-25T08:00`, got {until!r}"
        ) from None


ENDS = ("trials", "items", "hours", "until")
"""Keys of `search` that say when it is enough."""
DEFAULT_TRIALS = 200
PARETO_SAMPLER = "NSGAIISampler"
"""Default sampler where several values are told."""
Rule = Literal["mean", "weighted", "min", "harmonic", "pareto"]


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
