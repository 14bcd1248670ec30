"""Stages of a search: from a coarse space to a finer one around the best candidate so far.

Knows spaces and finished candidates. The start of a stage (its middle, bounds and seed trials)
follows from the journal alone, so a resumed search begins it in the same way.
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
"""Name of the stage that tries recipes of another study."""
KEY = "warm_start"
"""Key in the manifest, and of `search` in a configuration."""
SEARCH = "search"
"""Name of the only stage after a warm start."""
NO_START = ("base", "parent")
"""Kinds of baselines that are no merges: no stage begins around one."""
ROUNDING = 1e-9
"""Rounding error of a share of the budget."""
NO_NEIGHBOURS = "mask_seed"
"""The gene whose neighbouring values have nothing in common: it is never narrowed."""


@dataclass(frozen=True)
class Stage:
    """A planned stage of a search.

    Attributes:
        space: Its space, before it is narrowed.
        pace: Number of candidates that each of its proposals knows.
        name: Name for users; empty if the search has one stage.
        width: Share of each gene's interval that is searched around the best so far; None: all.
        until_asked: Number of proposed candidates, over all stages, at which it ends, or None.
        until_used: Share of the budget, over all stages, at which it ends, or None.
        enqueued: (Name of the candidate, recipe) of recipes to be tried instead of proposals.
    """

    space: Space
    pace: Pace = SEQUENTIAL
    name: str = ""
    width: float | None = None
    until_asked: int | None = None
    until_used: float | None = None
    enqueued: tuple[tuple[str, Recipe], ...] = ()

    @property
    def title(self) -> str:
        """Title in the progress display."""
        return f"{SEARCH}, {self.name}" if self.name and self.name != SEARCH else SEARCH

    def is_over(self, asked: int, used: float) -> bool:
        """Return whether it is over.

        Args:
            asked: Number of candidates proposed so far, over all stages.
            used: Share of the budget that is used.
        """
        if self.until_asked is not None and asked >= self.until_asked:
            return True
        return self.until_used is not None and used >= self.until_used - ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, which must be the same in a resumed study."""
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
    """The start of a stage.

    Attributes:
        space: Its space, narrowed around its middle.
        width: Share of each interval that is left; None: all.
        middle: Genotype in its middle, where CMA-ES starts; None: the middle of the space.
        around: Candidate whose recipe that is.
        seed_trials: (Genotype, candidate) of earlier candidates that its space can express.
        enqueued: (Name of the candidate it is copied from, genotype) of genotypes tried first.
    """

    space: Space
    width: float | None = None
    middle: Params | None = None
    around: Candidate | None = None
    seed_trials: tuple[tuple[Params, Candidate], ...] = ()
    enqueued: tuple[tuple[str | None, Params], ...] = ()

    @property
    def line(self) -> str | None:
        """Line for the log about the candidate it begins around; None if there is none."""
        if self.around is None:
            return None
        where = "around" if self.width is None else f"{self.width:g} of each interval, around"
        first = ", which is tried first as near as this space can" if self.enqueued else ""
        return (
            f"{len(self.space.middle)} genes ({self.space.phrase}), {where} {self.around.name} "
            f"({score(self.around.value)}){first}"
        )


def stage_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a study's stages, in order; empty if it has only one.

    Args:
        manifest: Manifest of the study.
    """
    planned = [stage["name"] for stage in manifest["identity"].get("stages") or ()]
    return (WARM_START, *(planned or [SEARCH])) if KEY in manifest else tuple(planned)


def counts(stages: Sequence[Stage], total: int) -> list[int]:
    """Return the number of candidates of each stage, of ``total``, if all cost the same."""
    ends = [
        total if s.until_used is None else math.ceil(s.until_used * total - ROUNDING)
        for s in stages
    ]
    asked = [total if s.until_asked is None else min(s.until_asked, total) for s in stages]
    starts = [0, *map(min, ends, asked)]
    return [end - start for start, end in pairwise(starts)]


def first_stage(stage: Stage) -> StageStart:
    """Begin the first stage of a search."""
    enqueued = tuple((name, encode(stage.space, recipe)) for name, recipe in stage.enqueued)
    return StageStart(stage.space, enqueued=enqueued)


def next_stage(
    stage: Stage, first: Space, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
) -> StageStart:
    """Begin a stage around the best candidate so far.

    Its sampler starts with all candidates that its space can express, at their scores; if the
    middle is none of these, it is tried first.

    Args:
        stage: The plan.
        first: Space of the first stage, to which the baselines' genotypes belong.
        trials: All finished trials.
        candidates: Their candidates.
    """
    scored = list(_scored(first, trials, candidates))
    best = best_of(scored)
    if best is None:
        return StageStart(stage.space)
    recipe, around = best
    middle = encode(stage.space, recipe)
    space = narrowed(stage.space, middle, stage.width)
    seeds = tuple((p, c) for r, c in scored if (p := expressed(space, r)) is not None)
    enqueued = () if any(c is around for _, c in seeds) else ((None, middle),)
    return StageStart(space, stage.width, middle, around, seeds, enqueued)


def best_of(scored: Sequence[tuple[Recipe, Candidate]]) -> tuple[Recipe, Candidate] | None:
    """Return the candidate around which the next stage begins, and its recipe; None without scores.

    It is the best searched candidate, a raced one only if all were raced; or the best baseline that
    is a merge, if that scores higher. With several values their mean counts, as on the leaderboard.
    """
    searched = [each for each in scored if each[1].is_searched]
    pool = [e for e in searched if not e[1].raced] or searched
    pool = [*pool, *(e for e in scored if e[1].is_baseline and e[1].kind not in NO_START)]
    return max(pool, key=lambda e: (e[1].value or 0.0, -e[1].number), default=None)


def narrowed(space: Space, middle: Params, width: float | None) -> Space:
    """Return a space whose genes vary around a genotype, within their bounds.

    Args:
        space: The space.
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


def _scored(
    first: Space, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
) -> Iterator[tuple[Recipe, Candidate]]:
    """Yield (recipe, candidate) of scored candidates; of baselines those in the first space."""
    for trial, candidate in zip(trials, candidates, strict=True):
        if candidate.value is None or candidate.is_variant:
            continue
        if candidate.is_searched:
            yield candidate.recipe, candidate
        elif trial.params:
            yield first.decode(trial.params), candidate


def plan_stages(
    config: Config, groups: Sequence[str], tensors: Sequence[str] = ()
) -> tuple[Stage, ...]:
    """Return the stages of a search; one without a name if the configuration has none.

    Args:
        config: The configuration.
        groups: Names of the layer groups, in model order.
        tensors: Names of the tensors that are merged, for ``depth: tensors``.

    Raises:
        ConfigError: If no layer group of the model has a module kind that `space` names.
    """
    if not config.stages:
        return (_stage(config, build_space(config, groups, tensors)),)
    counts = list(accumulate(stage.trials or 0 for stage in config.stages[:-1]))
    parts = list(accumulate(shares(config.stages)))
    plan = []
    for number, section in enumerate(config.stages):
        is_last = number + 1 == len(config.stages)
        is_counted = config.stages[0].trials is not None
        plan.append(
            _stage(
                config,
                _space(config, number, groups, tensors),
                name=f"stage {number + 1} of {len(config.stages)}",
                width=section.width,
                until_asked=counts[number] if is_counted and not is_last else None,
                until_used=None if is_counted or is_last else parts[number],
            )
        )
    return tuple(plan)


def with_warm_start(
    stages: Sequence[Stage], recipes: Sequence[tuple[str, Recipe]]
) -> tuple[Stage, ...]:
    """Return stages with one before them that tries recipes of another study.

    Args:
        stages: The stages; the new one has the space of the last.
        recipes: (Name of the candidate, recipe) of each.
    """
    last, count = stages[-1], len(recipes)
    warm = Stage(last.space, last.pace, WARM_START, until_asked=count, enqueued=tuple(recipes))
    later = (
        replace(stage, name=stage.name or SEARCH, until_asked=_later(stage.until_asked, count))
        for stage in stages
    )
    return (warm, *later)


def _later(until_asked: int | None, by: int) -> int | None:
    return None if until_asked is None else until_asked + by


def _stage(config: Config, space: Space, **plan: Any) -> Stage:
    return Stage(space, pace_of(config.search, config.workers, len(space.genes)), **plan)


def _space(config: Config, number: int, groups: Sequence[str], tensors: Sequence[str]) -> Space:
    try:
        return build_space(config.of_stage(number), groups, tensors)
    except ConfigError as error:
        raise ConfigError(f"`stages.{number}`: {error}") from error
