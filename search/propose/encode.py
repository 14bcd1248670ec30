"""From a recipe to the genotype of a space that makes it, or comes nearest to it.

The inverse of `Space.decode`, for recipes of another space: a coarser stage's, or a former study's.
Pure; knows recipes and spaces. Legend: L layer groups, g genes of one curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...merge.recipe.methods import METHODS
from ...merge.recipe.plans import Setting
from ...merge.recipe.recipe import Coefficients, Recipe
from .space import Space

SAME = 1e-9
"""Largest difference of two numbers of one recipe: what rounding leaves of equal ones."""
ROUNDING = 1e-12
"""Distance from what is asked for below which a curve is not fitted any closer."""
LEFT_OUT, TAKES_PART = 0.25, 0.75
"""Values of a gene `keep.PARENT`: the middles of its halves."""
Read = Callable[[Coefficients], float | None]
"""Reads a curve's number of a layer group; None where the group's method has none."""


def encode(space: Space, recipe: Recipe) -> dict[str, float | str]:
    """Return the genotype of a space whose recipe is nearest to a given one.

    Curves are fitted by least squares over the layer groups, so that what the space can express
    comes out as it went in; what lies outside its bounds is put on them. Genes of which the recipe
    says nothing are in the middle.

    Args:
        space: Its parents and layer groups are the recipe's.
        recipe: Any.
    """
    numbers: dict[str, float] = {}
    for head, read in _curves(space, recipe).items():
        found = [read(recipe.coefficients[group]) for group in space.groups]
        factors = {gene: f for gene, f in space.curves.factors(head).items() if gene in space.genes}
        numbers |= _fitted(factors, found, space.genes)
    for parent in space.optional:
        weights = [c.weights[recipe.parents.index(parent)] for c in recipe.coefficients.values()]
        numbers[f"keep.{parent}"] = TAKES_PART if any(weights) else LEFT_OUT
    if any(method.uses_lambda for method in recipe.methods):
        numbers["lambda"] = recipe.lambda_
    numbers["mask_seed"] = float(recipe.mask_seed)
    genotype = space.middle
    for gene, (low, high) in space.genes.items():
        if gene in numbers:
            genotype[gene] = min(max(numbers[gene], low), high)
    return genotype | _choices(space, recipe)


def expressed(space: Space, recipe: Recipe) -> dict[str, float | str] | None:
    """Return the genotype of a space that makes exactly a given recipe; None if there is none."""
    if not _fits(space, recipe):
        return None
    genotype = encode(space, recipe)
    return genotype if is_same_merge(space.decode(genotype), recipe) else None


def is_same_merge(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes say the same of every layer group, but for rounding."""
    if set(a.coefficients) != set(b.coefficients) or a.layer_groups != b.layer_groups:
        return False
    return all(_is_alike(a.setting(group), b.setting(group)) for group in a.coefficients)


def _fits(space: Space, recipe: Recipe) -> bool:
    """Whether parents, layer groups and methods are the space's."""
    return (
        set(recipe.parents) == set(space.parents)
        and set(recipe.coefficients) == set(space.groups)
        and recipe.layer_groups == space.layer_groups
        and {method.name for method in recipe.methods} <= set(space.methods)
    )


def _curves(space: Space, recipe: Recipe) -> dict[str, Read]:
    """The curves of a space, each with what reads its numbers off a recipe's groups."""
    places = {parent: recipe.parents.index(parent) for parent in space.parents}
    coefficients, curves = recipe.coefficients.values(), dict[str, Read]()
    for parent, at in places.items():
        if parent not in space.optional or any(c.weights[at] for c in coefficients):
            curves[f"weight.{parent}"] = lambda c, at=at: c.weights[at]
        curves[f"drop_rate.{parent}"] = lambda c, at=at: (
            c.drop_rates[at] if METHODS[c.method or recipe.method].uses_drop_rate else None
        )
    for name in space.parameters:
        own = (
            {name: 0} if space.is_shared(name) else {f"{name}.{p}": at for p, at in places.items()}
        )
        for head, at in own.items():
            curves[head] = partial(_parameter, recipe.method, name, at)
    return curves


def _parameter(method: str, name: str, at: int, c: Coefficients) -> float | None:
    """A parameter of a group's method, as it is or as the method has it by default."""
    rows = {row.name: row for row in METHODS[c.method or method].parameters}
    if name not in rows:
        return None
    return c.parameters[name][at] if name in c.parameters else rows[name].default


def _fitted(
    factors: dict[str, list[float]],
    found: Sequence[float | None],
    bounds: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    """Genes of one curve, by least squares over the groups that say something of it.

    Args:
        factors: Gene -> its factor in each layer group (L).
        found: The curve's number in each group (L).
        bounds: Gene -> (low, high).
    """
    known = [index for index, number in enumerate(found) if number is not None]
    if not known or not factors:
        return {}
    v = np.array([found[index] for index in known], dtype=float)
    a = np.array(list(factors.values())).T[known]
    low, high = np.array([bounds[gene] for gene in factors]).T
    genes = np.clip([_first_guess(gene, a[:, at], v) for at, gene in enumerate(factors)], low, high)
    off = v - a @ genes
    if np.abs(off).max() > ROUNDING:
        from scipy.optimize import lsq_linear

        genes = genes + lsq_linear(a, off, (low - genes, high - genes), method="bvls").x
    return dict(zip(factors, np.clip(genes, low, high).tolist(), strict=True))


def _first_guess(gene: str, factors: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """The number (of L) of the group that a gene moves most: to the bit what a constant has."""
    if gene.startswith("slope."):
        return 0.0
    return float(v[np.argmax(factors)] if factors.any() else v.mean())


def _choices(space: Space, recipe: Recipe) -> dict[str, str]:
    """Each choice of a method as most of its groups have it."""
    votes: dict[str, Counter[str]] = {name: Counter() for name in space.choices}
    for group in space.groups if space.choices else ():
        method = recipe.coefficients[group].method or recipe.method
        if method in space.methods:
            votes[space.curves.choice(group)][method] += 1
    return {name: count.most_common(1)[0][0] for name, count in votes.items() if count}


def _is_alike(a: Setting, b: Setting) -> bool:
    if a.parents != b.parents or (a.parents and a.method != b.method):
        return False
    if a.parents and METHODS[a.method].is_random and a.mask_seed != b.mask_seed:
        return False
    numbers = [
        [s.lambda_, *s.weights, *s.drop_rates, *(n for row in s.parameters.values() for n in row)]
        for s in (a, b)
    ]
    return bool(np.allclose(*numbers, rtol=0, atol=SAME))
