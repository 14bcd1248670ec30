"""Stages of a search: from a coarse space to a finer one around what the coarse one has found.

Knows spaces and finished candidates. What a stage needs at its beginning (its middle, its bounds,
what its sampler is taught) follows from the record alone: a resumed search begins it alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from optuna.trial import FrozenTrial

from ...merge.recipe.recipe import Recipe
from ..config.config import Config, ConfigError
from ..config.space import shares
from ..format import score
from ..storage.candidate import Candidate
from .encode import encode, expressed
from .pace import SEQUENTIAL, Pace, pace_of
from .space import Params, Space, build_space

WARM_START = "warm start"
"""Name of the stage that tries recipes of a former study."""
KEY = "warm_start"
"""Of the manifest, and of `search` in a configuration."""
SEARCH = "search"
"""Name of the one stage after a warm start."""
NO_START = ("base", "parent")
"""Kinds of baselines that are no merge: no stage begins around one."""
ROUNDING = 1e-9
"""Of shares of a budget."""
NO_NEIGHBOURS = "mask_seed"
"""The gene whose neighbours have nothing in common: it is never narrowed."""


@dataclass(frozen=True)
class Stage:
    """One stage of a search, as it is planned.

    Attributes:
        space: Its space, whole.
        pace: What each of its proposals knows.
        name: As a person reads it; empty where a search has one stage.
        width: Share of each gene's interval that is searched around the best so far; None: all.
        until_asked: It ends when so many candidates are proposed, in all; None: not by that.
        until_used: It ends when this share of the budget is used, in all; None: not by that.
        given: Recipes to be tried in it, with whose they are; then no sampler proposes.
    """

    space: Space
    pace: Pace = SEQUENTIAL
    name: str = ""
    width: float | None = None
    until_asked: int | None = None
    until_used: float | None = None
    given: tuple[tuple[str, Recipe], ...] = ()

    @property
    def title(self) -> str:
        """What progress calls it."""
        return f"{SEARCH}, {self.name}" if self.name and self.name != SEARCH else SEARCH

    def is_over(self, asked: int, used: float) -> bool:
        """Whether it ends.

        Args:
            asked: Candidates proposed so far, in all.
            used: Share of the budget that is used.
        """
        if self.until_asked is not None and asked >= self.until_asked:
            return True
        return self.until_used is not None and used >= self.until_used - ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: what a resumed study must find unchanged."""
        values: dict[str, Any] = {
            "name": self.name,
            "space": self.space.to_dict(),
            "pace": asdict(self.pace),
            "width": self.width,
            "until_asked": self.until_asked,
            "until_used": self.until_used,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class StageStart:
    """A stage as it is begun.

    Attributes:
        space: Where it proposes: narrowed around its middle.
        width: Share of each interval that it holds; None: all.
        middle: The genotype around which it lies, and where CMA-ES starts; None: no other than
            the space's.
        around: Whose recipe that is.
        taught: Genotypes of earlier candidates that its space can express, with these.
        given: Genotypes that are tried first, with whose they are.
    """

    space: Space
    width: float | None = None
    middle: Params | None = None
    around: Candidate | None = None
    taught: tuple[tuple[Params, Candidate], ...] = ()
    given: tuple[tuple[str | None, Params], ...] = ()

    @property
    def line(self) -> str | None:
        """Say around whom it lies, if around anybody."""
        if self.around is None:
            return None
        where = "around" if self.width is None else f"{self.width:g} of each interval, around"
        again = ", which is tried first as near as this space can" if self.given else ""
        return (
            f"{len(self.space.middle)} genes ({self.space.phrase}), {where} {self.around.name} "
            f"({score(self.around.value)}){again}"
        )


def stage_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a study's stages, in order; none where it has one.

    Args:
        manifest: The study's, begun.
    """
    planned = [stage["name"] for stage in manifest["identity"].get("stages") or ()]
    return (WARM_START, *(planned or [SEARCH])) if KEY in manifest else tuple(planned)


def counts(stages: Sequence[Stage], total: int) -> list[int]:
    """How many of so many candidates each stage has, where all cost the same."""
    ends = [
        total if s.until_used is None else math.ceil(s.until_used * total - ROUNDING)
        for s in stages
    ]
    asked = [total if s.until_asked is None else min(s.until_asked, total) for s in stages]
    starts = [0, *map(min, ends, asked)]
    return [end - start for start, end in pairwise(starts)]


def first_stage(stage: Stage) -> StageStart:
    """Begin the first stage of a search: nothing is known."""
    given = tuple((name, encode(stage.space, recipe)) for name, recipe in stage.given)
    return StageStart(stage.space, given=given)


def next_stage(
    stage: Stage, first: Space, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
) -> StageStart:
    """Begin a stage around the best so far.

    Its sampler is taught all that its space can express, at the scores that they have; where the
    middle is none of these, it is tried first.

    Args:
        stage: The plan.
        first: Space of the first stage, where the baselines' genotypes lie.
        trials: All that are finished.
        candidates: The same.
    """
    known = list(_known(first, trials, candidates))
    best = best_of(known)
    if best is None:
        return StageStart(stage.space)
    recipe, around = best
    middle = encode(stage.space, recipe)
    space = narrowed(stage.space, middle, stage.width)
    taught = tuple((p, c) for r, c in known if (p := expressed(space, r)) is not None)
    is_known = any(c is around for _, c in taught)
    given = () if is_known else ((None, middle),)
    return StageStart(space, stage.width, middle, around, taught, given)


def best_of(known: Sequence[tuple[Recipe, Candidate]]) -> tuple[Recipe, Candidate] | None:
    """Around whom the next stage lies; None if nothing has a score.

    The best searched candidate, one that was stopped in the race only if all were; or the best
    baseline that is a merge, if that scores higher. Of several values the mean counts, as on the
    leaderboard.
    """
    searched = [each for each in known if each[1].is_searched]
    pool = [e for e in searched if not e[1].raced] or searched
    pool = [*pool, *(e for e in known if e[1].is_baseline and e[1].kind not in NO_START)]
    return max(pool, key=lambda e: (e[1].value or 0.0, -e[1].number), default=None)


def narrowed(space: Space, middle: Params, width: float | None) -> Space:
    """A space whose genes vary around a genotype, within their bounds.

    Args:
        space: Whole.
        middle: A genotype of it.
        width: Share of each interval; None: all of it.
    """
    if width is None:
        return space
    bounds = {}
    for gene, (low, high) in space.genes.items():
        half, x = width * (high - low) / 2, middle[gene]
        if gene != NO_NEIGHBOURS and not isinstance(x, str):
            bounds[gene] = (max(low, x - half), min(high, x + half))
    return replace(space, narrowed=bounds)


def _known(
    first: Space, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
) -> Iterator[tuple[Recipe, Candidate]]:
    """Scored candidates with their recipes, in words of the space where a baseline lies in it."""
    for trial, candidate in zip(trials, candidates, strict=True):
        if candidate.value is None or candidate.is_variant:
            continue
        if candidate.is_searched:
            yield candidate.recipe, candidate
        elif trial.params:
            yield first.decode(trial.params), candidate


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
