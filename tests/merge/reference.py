"""The merge methods once more, in float64 and without Gram matrices, straight from the papers.

Nothing of methods.py, arithmetic.py or spherical.py is used here, only the streams of the masks.

Shapes: R rows of C entries; P parents that take part.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from heterosis.merge.kernels.masks import stream_keys
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe

Array = np.ndarray


@dataclass
class Case:
    """One tensor: base and parents float64 (R, C) or (C,), numbers per parent."""

    base: Array
    parents: list[Array]
    w: list[float]
    p: list[float]
    lam: float
    par: dict[str, list[float]]
    u: Callable[[int, int], float]  # (parent, flat index) -> uniform number

    @property
    def deltas(self) -> list[Array]:
        return [x - self.base for x in self.parents]


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ x >> 16


def uniform(index: int, mask_seed: int, tensor: str, parent: str) -> float:
    """The uniform number of one entry, in Python integers."""
    key, multiplier = stream_keys(mask_seed, tensor, parent, index >> 30)
    chunk, place = divmod(index % 2**30, 2**20)
    x = lowbias32(place) ^ (chunk * 0xBDF6A2C3 & 0xFFFFFFFF) ^ (key & 0xFFFFFFFF)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    x ^= x >> 16
    x = (x * multiplier) & 0xFFFFFFFF
    return ((x + 2**31) & 0xFFFFFFFF) / 2**32


# What is kept of a delta, and by what it is multiplied.


def thinned(c: Case, probability: Callable[[int], Array]) -> list[Array]:
    """Entries dropped at random with a probability (R, C) per parent, the rest divided by 1 - p."""
    out = []
    for i, d in enumerate(c.deltas):
        p = probability(i)
        u = np.array([c.u(i, k) for k in range(d.size)]).reshape(d.shape)
        out.append(np.where(u >= p, d / (1 - p), 0.0))
    return out


def dropped(c: Case) -> list[Array]:
    return thinned(c, lambda i: np.full(c.base.shape, c.p[i]))


def ranked(c: Case) -> list[Array]:
    def probability(i: int) -> Array:
        half = max(0.0, min(c.par["epsilon"][i] / 2, c.p[i], 0.999 - c.p[i]))
        rows = np.abs(c.deltas[i]).reshape(-1, c.base.shape[-1])
        ranks = [[256 * int(np.sum(row < size)) // len(row) for size in row] for row in rows]
        return np.reshape(falling(c.p[i] + half, 2 * half, np.array(ranks)), c.base.shape)

    return thinned(c, probability)


def falling(highest: float, width: float, rank: Array) -> Array:
    """Drop probability at a rank of 256, at the middle of its step; a whole number of 2**-24."""
    step = math.floor(width / 256 * 2**24)
    return (round((highest - width / 2) * 2**24) + 255 * step // 2 - step * rank) / 2**24


def banded(c: Case, top: list[float]) -> list[Array]:
    """Without the share `top` of the largest entries and the rest of p of the smallest.

    Of entries as large as the first one kept all are kept, of those as large as the first one cut
    at the top all are cut.
    """
    out = []
    for d, p, cut in zip(c.deltas, c.p, top, strict=True):
        sizes = np.abs(d)
        ordered = np.append(np.sort(sizes, axis=None), np.inf)
        n, rate, high = d.size, round(p * 1000), round(cut * 1000)
        first, end = (rate - high) * n // 1000, (1000 - high) * n // 1000
        out.append(np.where((sizes >= ordered[first]) & (sizes < ordered[end]), d, 0.0))
    return out


# How deltas become one.


def summed(c: Case, deltas: list[Array]) -> Array:
    return c.base + c.lam * sum(w * d for w, d in zip(c.w, deltas, strict=True))


def elected(c: Case, deltas: list[Array], gains: list[float] | None = None) -> Array:
    """TIES: the sign of the weighted sum is elected, those who agree are averaged."""
    out = c.base.copy()
    gains = gains or [1.0] * len(deltas)
    divides = c.par.get("normalize", [1.0])[0] == 1.0
    for k in range(out.size):
        votes = [w * d.flat[k] for w, d in zip(c.w, deltas, strict=True)]
        sign = np.sign(math.fsum(votes))
        agree = [i for i, v in enumerate(votes) if sign != 0 and np.sign(v) == sign]
        if agree:
            total = sum(gains[i] * votes[i] for i in agree)
            out.flat[k] += (
                c.lam * total / (sum(gains[i] * abs(c.w[i]) for i in agree) if divides else 1.0)
            )
    return out


# The methods.


def linear(c: Case) -> Array:
    return (1 - sum(c.w)) * c.base + sum(w * x for w, x in zip(c.w, c.parents, strict=True))


def task_arithmetic(c: Case) -> Array:
    return summed(c, c.deltas)


def dare_linear(c: Case) -> Array:
    return summed(c, dropped(c))


def dare_ties(c: Case) -> Array:
    return elected(c, dropped(c))


def della(c: Case) -> Array:
    return elected(c, ranked(c))


def della_linear(c: Case) -> Array:
    return summed(c, ranked(c))


def ties(c: Case) -> Array:
    return elected(c, banded(c, [0.0] * len(c.p)))


def tops(c: Case) -> list[float]:
    return [min(gamma, p) for gamma, p in zip(c.par["gamma"], c.p, strict=True)]


def breadcrumbs(c: Case) -> Array:
    return summed(c, banded(c, tops(c)))


def breadcrumbs_ties(c: Case) -> Array:
    return elected(c, banded(c, tops(c)))


def sce(c: Case) -> Array:
    if len(c.w) == 1:
        return c.base + c.lam * np.sign(c.w[0]) * c.deltas[0]
    share = c.par["select_topk"][0]
    step = min(round(1000 * (1 - share)), 999) if share else 1000
    variance = np.var(np.stack(c.deltas), axis=0).astype(np.float32)
    ordered = np.append(np.sort(variance[variance > 1e-14]), np.inf)  # the rest is rounding
    selected = variance >= (ordered[step * (len(ordered) - 1) // 1000] if step else 0.0)
    deltas = [d * selected for d in c.deltas]
    squares = [float(np.sum(d**2)) for d in deltas]
    total = sum(squares)
    return elected(c, deltas, [s / total for s in squares]) if total else c.base


def arcee_fusion(c: Case) -> Array:
    out = c.base.copy()
    for w, x in zip(c.w, c.parents, strict=True):
        p, q = softmax(x), softmax(c.base)
        importance = np.abs(x - c.base) * np.sum(p * np.log(p / q), axis=-1, keepdims=True)
        ordered = np.sort(importance, axis=None)
        first, median, third = (ordered[int(s * (ordered.size - 1))] for s in (0.25, 0.5, 0.75))
        out += w * (x - c.base) * (importance >= median + 1.5 * (third - first))
    return out


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def nearswap(c: Case) -> Array:
    out = c.base.copy()
    for w, t, d in zip(c.w, c.par["t"], c.deltas, strict=True):
        out += w * np.sign(d) * (np.abs(d) if t == 1.0 else np.minimum(np.abs(d), t))
    return out


def great_circle(x: Array, y: Array, t: float) -> Array:
    cosine = np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if angle < 1e-9:
        return (1 - t) * x + t * y
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def slerp(c: Case) -> Array:
    if len(c.w) == 1:
        return great_circle(c.base, c.parents[0], c.w[0])
    return great_circle(c.parents[0], c.parents[1], c.w[1] / sum(c.w))


def nuslerp(c: Case) -> Array:
    if not c.par["deltas"][0]:
        return slerp(c)
    if len(c.w) == 1:
        return c.base + c.w[0] * c.deltas[0]
    return c.base + great_circle(c.deltas[0], c.deltas[1], c.w[1] / sum(c.w))


def on_sphere(c: Case, mean: Callable[[list[Array], list[float]], Array]) -> Array:
    """A weighted mean of directions at the weighted mean length, of deltas or of full weights."""
    if len(c.w) == 1:
        return c.base + c.w[0] * c.deltas[0]
    use_deltas = c.par["deltas"][0] == 1.0
    points = c.deltas if use_deltas else c.parents
    alphas = [w / sum(c.w) for w in c.w]
    lengths = [float(np.linalg.norm(x)) for x in points]
    direction = mean([x / n for x, n in zip(points, lengths, strict=True)], alphas)
    size = sum(a * n for a, n in zip(alphas, lengths, strict=True))
    return (c.base if use_deltas else 0.0) + size * direction


def multislerp(c: Case) -> Array:
    def mean(units: list[Array], alphas: list[float]) -> Array:
        # As published, tangent space and all.
        middle = sum(a * u for a, u in zip(alphas, units, strict=True))
        middle = middle / np.linalg.norm(middle)
        tangents = [u - np.sum(u * middle) * middle for u in units]
        step = sum(a * t for a, t in zip(alphas, tangents, strict=True))
        length = float(np.linalg.norm(step))
        return np.cos(length) * middle + np.sinc(length / np.pi) * step

    return on_sphere(c, mean)


def karcher(c: Case) -> Array:
    def mean(units: list[Array], alphas: list[float]) -> Array:
        middle = np.sum([a * u for a, u in zip(alphas, units, strict=True)], axis=0)
        for _ in range(200):
            middle = middle / np.linalg.norm(middle)
            step = np.zeros_like(middle)
            for a, u in zip(alphas, units, strict=True):
                across = u - np.sum(u * middle) * middle
                length = float(np.linalg.norm(across))
                if length > 0:
                    step += a * np.arctan2(length, np.sum(u * middle)) * across / length
            size = float(np.linalg.norm(step))
            middle = np.cos(size) * middle + np.sinc(size / np.pi) * step
        return middle

    return on_sphere(c, mean)


def model_stock(c: Case) -> Array:
    n = len(c.w)
    if n == 1:
        return c.base + c.w[0] * c.deltas[0]
    units = [d / np.linalg.norm(d) for d in c.deltas]
    cosine = np.mean([np.sum(units[i] * units[j]) for i in range(n) for j in range(i)])
    t = n * cosine / (1 + (n - 1) * cosine)
    average = sum(w / sum(c.w) * d for w, d in zip(c.w, c.deltas, strict=True))
    return c.base + t * average


_METHODS = (
    linear, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs,
    breadcrumbs_ties, slerp, nuslerp, multislerp, karcher, model_stock, sce, arcee_fusion, nearswap,
)  # fmt: skip
REFERENCES = {f.__name__: f for f in _METHODS}


def merged(recipe: Recipe, tensor: str, group: str, base: Array, parents: Mapping[str, Array]):
    """Float64 merge of one tensor; ``parents`` maps names to arrays. Weights of 0 take no part."""
    c = recipe.coefficients[group]
    method = METHODS[c.method or recipe.method]
    taking_part = sorted((n, i) for i, n in enumerate(recipe.parents) if c.weights[i] != 0.0)
    names, indices = [n for n, _ in taking_part], [i for _, i in taking_part]
    par = {}
    for row in method.parameters:
        given = c.parameters.get(row.name) or (row.default,) * len(recipe.parents)
        par[row.name] = [given[0]] if row.is_shared else [given[i] for i in indices]
    case = Case(
        base.astype(np.float64),
        [parents[n].astype(np.float64) for n in names],
        [c.weights[i] for i in indices],
        [c.drop_rates[i] for i in indices],
        recipe.lambda_ if c.lambda_ is None else c.lambda_,
        par,
        lambda i, k: uniform(k, recipe.mask_seed, tensor, names[i]),
    )
    return REFERENCES[method.name](case) if names else case.base
