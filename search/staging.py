"""The plan of a search's stages, from its configuration. Knows configurations and spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from ..merge.recipe import Recipe
from .config import Config, ConfigError
from .generations import pace_of
from .space import Space, build_space
from .stage_sections import shares
from .stages import SEARCH, WARM_START, Stage


def plan_stages(config: Config, groups: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of a search; one without a name where the configuration has none.

    Args:
        config: Of the search.
        groups: Names of the layer groups, in model order.

    Raises:
        ConfigError: If a module kind is named that no layer group of the model has.
    """
    if not config.stages:
        return (_stage(config, build_space(config, groups)),)
    counts = list(accumulate(stage.trials or 0 for stage in config.stages[:-1]))
    parts = list(accumulate(shares(config.stages)))
    plan = []
    for number, section in enumerate(config.stages):
        is_last = number + 1 == len(config.stages)
        is_counted = config.stages[0].trials is not None
        plan.append(
            _stage(
                config,
                _space(config, number, groups),
                name=f"stage {number + 1} of {len(config.stages)}",
                width=section.width,
                until_asked=counts[number] if is_counted and not is_last else None,
                until_used=None if is_counted or is_last else parts[number],
            )
        )
    return tuple(plan)


def with_warm_start(
    stages: Sequence[Stage], given: Sequence[tuple[str, Recipe]]
) -> tuple[Stage, ...]:
    """Put before all stages one that tries recipes of a former study, in the space of the last.

    Args:
        stages: The plan without.
        given: Whose recipe, and the recipe.
    """
    last, count = stages[-1], len(given)
    warm = Stage(last.space, last.pace, WARM_START, until_asked=count, given=tuple(given))
    later = (
        replace(stage, name=stage.name or SEARCH, until_asked=_later(stage.until_asked, count))
        for stage in stages
    )
    return (warm, *later)


def _later(until_asked: int | None, by: int) -> int | None:
    return None if until_asked is None else until_asked + by


def _stage(config: Config, space: Space, **plan: Any) -> Stage:
    return Stage(space, pace_of(config.search, config.workers, len(space.genes)), **plan)


def _space(config: Config, number: int, groups: Sequence[str]) -> Space:
    try:
        return build_space(config.of_stage(number), groups)
    except ConfigError as error:
        raise ConfigError(f"`stages.{number}`: {error}") from error
