"""From a recipe to the nearest genotype of a space.

The inverse of `Space.decode`, for recipes of another space: of a coarser stage or another study.
Pure; knows recipes and spaces. Legend: L layer groups, g genes of one curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...merge.recipe.methods import METHODS
from ...merge.recipe.plans import Setting
from ...merge.recipe.recipe import Coefficients, Recipe
from .space import Space

SAME = 1e-9
"""Largest difference of two equal numbers after rounding."""
ROUNDING = 1e-12
"""Largest error of a curve that is not fitted any closer."""
LEFT_OUT, TAKES_PART = 0.25, 0.75
"""Values of a gene `keep.PARENT`: the middles of its halves."""
Read = Callable[[Coefficients], float | None]
"""Reads a curve's number of a layer group; None if the group's method has none."""


def encode(space: Space, recipe: Recipe) -> dict[str, float | str]:
    """Return the genotype of a space whose recipe is nearest to a recipe.

    Curves are fitted by least squares over the layer groups, so recipes that the space can express
    are reproduced; numbers outside its bounds are clipped. Genes that the recipe does not determine
    are in the middle.

    Args:
        space: A space with the recipe's parents, and its layer groups or one for each tensor.
        recipe: Any recipe.
    """
    numbers: dict[str, float] = {}
    if recipe.layer_groups != space.layer_groups and space.tensors:
        recipe = _by_tensor(space, recipe)
    for head, read in _readers(space, recipe).items():
        targets = [read(recipe.coefficients[group]) for group in space.groups]
        factors = {gene: f for gene, f in space.curves.factors(head).items() if gene in space.genes}
        numbers |= _fitted(factors, targets, space.genes)
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


def _by_tensor(space: Space, recipe: Recipe) -> Recipe:
    """Return the same merge with a layer group for each tensor."""
    coefficients = {
        group: recipe.coefficients[recipe.grouping.group(tensor).name]
        for group, tensor in space.tensors.items()
    }
    return replace(recipe, coefficients=coefficients, layer_groups=space.layer_groups)


def expressed(space: Space, recipe: Recipe) -> dict[str, float | str] | None:
    """Return the genotype of a space whose recipe is equal to a recipe; None if there is none."""
    if not _fits(space, recipe):
        return None
    genotype = encode(space, recipe)
    return genotype if is_same_merge(space.decode(genotype), recipe) else None


def is_same_merge(a: Recipe, b: Recipe) -> bool:
    """Return whether two recipes are the same merge in every layer group, up to rounding."""
    if set(a.coefficients) != set(b.coefficients) or a.layer_groups != b.layer_groups:
        return False
    return all(_is_equal(a.setting(group), b.setting(group)) for group in a.coefficients)


def _fits(space: Space, recipe: Recipe) -> bool:
    """Return whether a recipe has the space's parents, layer groups and methods."""
    return (
        set(recipe.parents) == set(space.parents)
        and set(recipe.coefficients) == set(space.groups)
        and recipe.layer_groups == space.layer_groups
        and {method.name for method in recipe.methods} <= set(space.methods)
    )


def _readers(space: Space, recipe: Recipe) -> dict[str, Read]:
    """Return head of a curve -> reader of its numbers in a recipe's coefficients."""
    places = {parent: recipe.parents.index(parent) for parent in space.parents}
    coefficients, curves = recipe.coefficients.values(), dict[str, Read]()
    for parent, at in places.items():
        if parent not in space.optional or any(c.weights[at] for c in coefficients):
            curves[f"weight.{parent}"] = lambda c, at=at: c.weights[at]
        curves[f"drop_rate.{parent}"] = lambda c, at=at: (
            c.drop_rates[at] if METHODS[c.method or recipe.method].uses_drop_rate else None
        )
    for name in space.parameters:
        heads = (
            {name: 0} if space.is_shared(name) else {f"{name}.{p}": at for p, at in places.items()}
        )
        for head, at in heads.items():
            curves[head] = partial(_parameter, recipe.method, name, at)
    return curves


def _parameter(method: str, name: str, at: int, c: Coefficients) -> float | None:
    """Return a parameter of a group's method, or its default; None if the method has none."""
    rows = {row.name: row for row in METHODS[c.method or method].parameters}
    if name not in rows:
        return None
    return c.parameters[name][at] if name in c.parameters else rows[name].default


def _fitted(
    factors: Mapping[str, NDArray[np.float64]],
    targets: Sequence[float | None],
    bounds: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    """Return the genes of one curve, by least squares over the groups that have its number.

    Args:
        factors: Gene -> its factor in each layer group (L).
        targets: The curve's number in each group (L); None if the group's method has none.
        bounds: Gene -> (low, high).
    """
    rows = [index for index, number in enumerate(targets) if number is not None]
    if not rows or not factors:
        return {}
    v = np.array([targets[index] for index in rows], dtype=float)
    a = np.array(list(factors.values())).T[rows]
    low, high = np.array([bounds[gene] for gene in factors]).T
    genes = np.clip([_first_guess(gene, a[:, at], v) for at, gene in enumerate(factors)], low, high)
    off = v - a @ genes
    if np.abs(off).max() > ROUNDING:
        from scipy.optimize import lsq_linear

        genes = genes + lsq_linear(a, off, (low - genes, high - genes), method="bvls").x
    return dict(zip(factors, np.clip(genes, low, high).tolist(), strict=True))


def _first_guess(gene: str, factors: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """Return the number of the group in which a gene's factor is largest: exact for constants."""
    if gene.startswith("slope."):
        return 0.0
    return float(v[np.argmax(factors)] if factors.any() else v.mean())


def _choices(space: Space, recipe: Recipe) -> dict[str, str]:
    """Return each choice of a method: the method of most of its groups."""
    votes: dict[str, Counter[str]] = {name: Counter() for name in space.choices}
    for group in space.groups if space.choices else ():
        method = recipe.coefficients[group].method or recipe.method
        if method in space.methods:
            votes[space.curves.choice(group)][method] += 1
    return {name: count.most_common(1)[0][0] for name, count in votes.items() if count}


def _is_equal(a: Setting, b: Setting) -> bool:
    if a.parents != b.parents or (a.parents and a.method != b.method):
        return False
    if a.parents and METHODS[a.method].is_random and a.mask_seed != b.mask_seed:
        return False
    numbers = [
        [s.lambda_, *s.weights, *s.drop_rates, *(n for row in s.parameters.values() for n in row)]
        for s in (a, b)
    ]
    return bool(np.allclose(*numbers, rtol=0, atol=SAME))
