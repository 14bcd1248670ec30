"""Recipes and tensors for tests of methods."""

from collections.abc import Mapping

import torch
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Coefficients, Recipe

NAME, GROUP = "model.layers.0.mlp.up_proj.weight", "layers.0.mlp"
NAMES = ("a", "b", "c")
WEIGHTS, RATES = (0.7, -0.3, 0.5), (0.5, 0.0, 0.8)


def tensors(shape=(15, 20), seed: int = 0, dtype: torch.dtype = torch.float32, names=NAMES):
    """Base and parents, with zeros of both signs and unchanged entries among the first six."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    base.view(-1)[:4] = torch.tensor([0.0, -0.0, 0.0, -0.0])[: base.numel()]
    parents = {}
    for name in names:
        parent = base + 0.1 * torch.randn(shape, generator=generator)
        parent.view(-1)[:6:2] = base.view(-1)[:6:2]
        parent.view(-1)[1:2] = 0.0
        parents[name] = parent.to(dtype)
    return base.to(dtype), parents


def recipe(
    method: str,
    names=NAMES,
    weights=WEIGHTS,
    rates=RATES,
    lambda_=0.8,
    seed=5,
    parameters: Mapping[str, float] | None = None,
) -> Recipe:
    """A recipe of one group; what the method has not is left out, and so are surplus parents."""
    row = METHODS[method]
    weights, most = list(weights), row.most_parents or len(names)
    for i in [i for i, w in enumerate(weights) if w][most:]:
        weights[i] = 0.0
    parameters = parameters or {}
    filled = {
        p.name: ((parameters[p.name],) * (1 if p.is_shared else len(names)))
        for p in row.parameters
        if p.name in parameters
    }
    rates = rates if row.uses_drop_rate else (0.0,) * len(names)
    coefficients = {GROUP: Coefficients(tuple(weights), tuple(rates), filled)}
    return Recipe(method, names, coefficients, lambda_ if row.uses_lambda else 1.0, seed)
