"""Null baselines: the merges that anyone would try first, trials 0..k of every study.

Knows recipes and the space; nothing of Optuna. A candidate is called better than these only by a
paired test on items that the search has not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...merge.recipe.recipe import Recipe
from ..config.search import BaselinesSection
from .space import Params, Space

LINEAR = ("linear", "task_arithmetic")
"""Methods under which a constant weight per parent is a linear merge."""


@dataclass(frozen=True)
class Baseline:
    """A named recipe that needs no search.

    Attributes:
        name: Name on the leaderboard.
        kind: ``base``, ``parent``, ``uniform``, ``method`` or ``middle``.
        recipe: Its recipe.
        params: Its genotype, which samplers get too; None if it is outside the space.
    """

    name: str
    kind: str
    recipe: Recipe
    params: dict[str, float | str] | None = None


def null_baselines(space: Space, section: BaselinesSection) -> tuple[Baseline, ...]:
    """Return base, parents, uniform, the task-arithmetic grid, TIES and DARE-TIES.

    The middle of the space, where CMA-ES starts, comes last if it is none of these. With one parent
    there is no uniform merge.
    """
    baselines = tuple(_baselines(space, section))
    if not space.middle or any(_is_middle(space, baseline.params) for baseline in baselines):
        return baselines
    middle = Baseline("middle of the space", "middle", space.decode(space.middle), space.middle)
    return (*baselines, middle)


def _baselines(space: Space, section: BaselinesSection) -> Iterator[Baseline]:
    share = 1 / len(space.parents)
    yield _linear(space, "base", "base", dict.fromkeys(space.parents, 0.0))
    for parent in space.parents:
        weights = {name: float(name == parent) for name in space.parents}
        yield _linear(space, f"parent:{parent}", "parent", weights)
    if len(space.parents) > 1:
        yield _linear(space, "uniform", "uniform", dict.fromkeys(space.parents, share))
    for lambda_ in section.lambdas:
        if abs(lambda_ - share) > 1e-9:
            weights = dict.fromkeys(space.parents, lambda_)
            recipe = _recipe(space, "task_arithmetic", 1.0, lambda_=lambda_)
            params = _genes(space, weights)
            yield Baseline(f"task_arithmetic lambda={lambda_:g}", "method", recipe, params)
    yield from _dropped(space, "ties", section.ties_drop_rates)
    yield from _dropped(space, "dare_ties", section.dare_ties_drop_rates)


def _is_middle(space: Space, params: Params | None) -> bool:
    middle = space.middle
    return params is not None and all(_is_near(params[name], middle[name]) for name in middle)


def _is_near(a: float | str, b: float | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(a - b) < 1e-9


def _linear(space: Space, name: str, kind: str, weights: dict[str, float]) -> Baseline:
    recipe = _recipe(space, "linear", weights)
    return Baseline(name, kind, recipe, _genes(space, weights))


def _genes(space: Space, weights: dict[str, float]) -> dict[str, float | str] | None:
    """Return the genotype of a linear merge; None if the space has no method linear in weights."""
    method = next((name for name in space.methods if name in LINEAR), None)
    return None if method is None else space.constant(weights, method)


def _dropped(space: Space, method: str, rates: Sequence[float]) -> Iterator[Baseline]:
    for rate in rates:
        recipe = _recipe(space, method, 1.0, drop_rate=rate)
        yield Baseline(f"{method} drop_rate={rate:g}", "method", recipe)


def _recipe(
    space: Space,
    method: str,
    weight: float | dict[str, float],
    *,
    drop_rate: float = 0.0,
    lambda_: float = 1.0,
) -> Recipe:
    return Recipe.uniform(
        method,
        space.parents,
        space.groups,
        weight,
        drop_rate=drop_rate,
        lambda_=lambda_,
        mask_seed=space.mask_seed,
        layer_groups=space.layer_groups,
    )
