"""The sections `search`, `racing` and `baselines`, and the deadline of a search."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from .rules import RULES, check_rule
from .section import Section

DAY = datetime.timedelta(days=1)
ENDS = ("trials", "items", "hours", "until")
"""Keys of `search` that end it."""
DEFAULT_TRIALS = 200
PARETO_SAMPLER = "NSGAIISampler"
"""Default sampler for the objective `pareto`."""
Rate = Annotated[float, Field(ge=0, lt=1)]


def deadline_of(until: str, now: datetime.datetime) -> datetime.datetime:
    """Return the moment that `until` means: the next such time of day, or a date and time.

    Without a zone it is local time on that day: a change to or from summer time before then counts.

    Args:
        until: ``08:00``, or ISO 8601 such as ``2026-11-25T08:00``.
        now: Local time, without a zone.

    Returns:
        The moment, with its zone.

    Raises:
        ValueError: If `until` is neither.
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
            "`until` must be a time of day such as `08:00`, or a date and time such as "
            f"`2026-11-25T08:00`, got {until!r}"
        ) from None


class RacingSection(Section):
    """When a losing candidate is stopped."""

    first: int = Field(default=50, ge=2)
    """Items before the first test; each later test comes after twice as many."""
    alpha: float = Field(default=0.1, gt=0, lt=0.5)
    """One-sided significance level of each test that a candidate is worse than the incumbent."""


def _check_racing(value: Any) -> Any:
    if value is False or isinstance(value, Mapping | RacingSection):
        return value
    keys = ", ".join(RacingSection.known_keys())
    raise ValueError(
        f"must be false or a mapping with keys {keys}, got {value!r}; leave it out for the defaults"
    )


class SearchSection(Section):
    """How candidates are proposed, and how many."""

    trials: int | None = Field(default=None, ge=0)
    """Candidates that the sampler proposes, beside the baselines; default: 200, or no limit if
    `items`, `hours` or `until` ends the search."""
    items: int | None = Field(default=None, ge=1)
    """Upper bound of items scored, over all candidates."""
    hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Time of the whole study, with confirmation and earlier runs."""
    until: str | None = None
    """Deadline of the whole study: `"08:00"` (the next one when the study begins), or a date and
    time such as `2026-11-25T08:00`. 10 to 20 % of the time is reserved for confirmation."""
    sampler: str = "CmaEsSampler"
    """Sampler class of ``optuna.samplers``; NSGAIISampler with the objective `pareto`."""
    sampler_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that class, without its seed: `run_seed` decides that."""
    run_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the samplers."""
    warm_start: Path | None = None
    """Results folder of an earlier study of the same base and parents (relative to the working
    directory): its best recipes are the first candidates, scored anew, and the search starts at the
    best of them. None of its scores is used."""
    objective: Annotated[str, AfterValidator(check_rule)] | None = None
    """How the tasks' scores become the sampler's value: one number, or with `pareto` one per task.
    `weighted` is their weighted mean. Default: `harmonic` if every task is scored by a share of
    right answers, else `mean` (`weighted` if tasks have weights)."""
    normalize: bool = False
    """Whether to scale each task from the worst parent's score (0) to the best parent's (1) on the
    search items."""
    finalists: int = Field(default=5, ge=1)
    """Best candidates that are scored on the confirm and guard items at the end."""
    racing: Annotated[RacingSection | Literal[False], BeforeValidator(_check_racing)] = (
        RacingSection()
    )
    """How candidates are stopped early; `false`: every candidate is scored on every item."""
    dissect: bool = True
    """Whether to ablate the winner at the end: reset its genes one at a time, then as many together
    as possible without a loss."""
    rerolls: int = Field(default=3, ge=0)
    """Other mask seeds under which an ablated winner with random masks is scored."""

    @field_validator("until")
    @classmethod
    def _check_until(cls, until: str | None) -> str | None:
        if until is not None:
            deadline_of(until, datetime.datetime.now())
        return until

    @model_validator(mode="before")
    @classmethod
    def _default_trials(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or any(values.get(key) is not None for key in ENDS):
            return values
        return {**values, "trials": DEFAULT_TRIALS}

    @model_validator(mode="before")
    @classmethod
    def _default_sampler(cls, values: Any) -> Any:
        rule = RULES.get(str(values.get("objective"))) if isinstance(values, Mapping) else None
        return {"sampler": PARETO_SAMPLER, **values} if rule and rule.has_several else values

    @field_validator("sampler_args")
    @classmethod
    def _check_sampler_args(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if "seed" in arguments:
            raise ValueError("must not hold `seed`, every trial has its own; use `search.run_seed`")
        return arguments


class BaselinesSection(Section):
    """Null baselines, scored before the search: the merges that anyone would try first."""

    lambdas: tuple[FiniteFloat, ...] = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    """Lambdas of task arithmetic with weight 1 for every parent."""
    ties_drop_rates: tuple[Rate, ...] = (0.8, 0.5)
    """Drop rates of TIES; 0.8 is the paper's default (the top 20 % are kept)."""
    dare_ties_drop_rates: tuple[Rate, ...] = (0.5, 0.9)
    """Drop rates of DARE-TIES."""
