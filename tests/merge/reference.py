"""The merge methods once more, as float64 loops over single entries, straight from the papers."""

import math

import numpy as np
from heterosis.merge.masks import stream_keys
from heterosis.merge.recipe import Recipe


def uniform(index: int, mask_seed: int, tensor: str, parent: str) -> float:
    """The uniform number of one entry, in Python integers."""
    first, second = stream_keys(mask_seed, tensor, parent, index >> 32)
    x = (index ^ first) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x ^= second & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    x ^= x >> 16
    return ((x + 2**31) & 0xFFFFFFFF) / 2**32


def linear(base, parents, w, p, lam, u):
    return sum(wi * x for wi, x in zip(w, parents, strict=True)) + (1 - sum(w)) * base


def task_arithmetic(base, parents, w, p, lam, u):
    return base + lam * sum(wi * (x - base) for wi, x in zip(w, parents, strict=True))


def dropped(base, parents, p, u):
    return [
        np.array([d / (1 - rate) if u(i, k) >= rate else 0.0 for k, d in enumerate(x - base)])
        for i, (x, rate) in enumerate(zip(parents, p, strict=True))
    ]


def dare_linear(base, parents, w, p, lam, u):
    deltas = dropped(base, parents, p, u)
    return base + lam * sum(wi * d for wi, d in zip(w, deltas, strict=True))


def elect_and_average(base, deltas, w, lam):
    out = base.copy()
    for k in range(len(base)):
        votes = [wi * d[k] for wi, d in zip(w, deltas, strict=True)]
        elected = np.sign(math.fsum(votes))
        agree = [i for i, v in enumerate(votes) if elected != 0 and np.sign(v) == elected]
        if agree:
            out[k] += lam * sum(votes[i] for i in agree) / sum(abs(w[i]) for i in agree)
    return out


def dare_ties(base, parents, w, p, lam, u):
    return elect_and_average(base, dropped(base, parents, p, u), w, lam)


def ties(base, parents, w, p, lam, u):
    deltas = []
    for x, rate in zip(parents, p, strict=True):
        delta = x - base
        smallest = np.argsort(np.abs(delta), kind="stable")[: math.floor(rate * len(base) + 1e-9)]
        delta[smallest] = 0.0
        deltas.append(delta)
    return elect_and_average(base, deltas, w, lam)


REFERENCES = {f.__name__: f for f in (linear, task_arithmetic, ties, dare_linear, dare_ties)}


def merged(recipe: Recipe, tensor: str, group: str, base, parents):
    """Float64 merge of one flat tensor; ``parents`` maps names to flat arrays."""
    c = recipe.coefficients[group]
    names = recipe.parents

    def u(i: int, k: int) -> float:
        return uniform(k, recipe.mask_seed, tensor, names[i])

    arrays = [parents[n].astype(np.float64) for n in names]
    function = REFERENCES[recipe.method]
    base = base.astype(np.float64)
    return function(base, arrays, c.weights, c.drop_rates, recipe.lambda_, u)
