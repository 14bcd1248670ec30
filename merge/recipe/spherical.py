"""Methods on the sphere: linear combinations whose scalars follow from inner products.

Weights are ratios, not amounts: with two or more parents only alpha_i = w_i / sum_j w_j matters
(Model Stock too). A single parent is interpolated with the base, at w. If the geometry has no
solution (a vector of length 0, opposite vectors, directions that cancel), the linear interpolation
with the same alpha is used; weights that sum to 0 have no ratio and are used as amounts:
base + sum_i w_i * delta_i. Nothing here divides by 0.

Points x_i are the deltas or, where `deltas` is 0, the full weights. Knows no tensors.

Shapes: P parents; gram (P, P) are inner products of the points.
"""

import math
from collections.abc import Sequence

from .plans import BASE_ONLY, Combination, Plan, Setting, Statistics

Gram = Sequence[Sequence[float]]
_NO_RATIO = 1e-6  # |sum of weights| below this share of sum |weights| gives no ratio
_PARALLEL = 1e-6  # angle in radians below which slerp is the linear interpolation, to float32
_OPPOSITE = -0.9995  # cosine below which no great circle is singled out; peers' bound too
_CANCELLED = 1e-6  # length below which a mean of unit vectors has no direction
_CONVERGED = 1e-7  # radians; the angle of float64 inner products is known no better
_ITERATIONS = 100


def slerp(setting: Setting, statistics: Statistics) -> Plan:
    """Interpolate along the great circle: (sin((1-t) theta) x_0 + sin(t theta) x_1) / sin theta.

    theta is the angle between the flattened full weights (Shoemake, SIGGRAPH 1985, Sec. 3.3, on
    vectors that keep their lengths). Two parents: from the first by name to the second,
    t = w_1 / (w_0 + w_1). One: from the base to it, t = w. mergekit interpolates linearly if
    |cos| > 0.9995, which fine-tunes of one base always exceed; here the formula is always used.
    """
    if len(setting.parents) == 2:
        return _two(setting, _points(statistics.gram(setting.parents), use_deltas=False), False)
    (base, across), (_, delta) = statistics.gram(setting.parents)
    t = setting.weights[0]
    first, second = _slerp(base, base + 2.0 * across + delta, base + across, t)
    return Combination.weighted(setting.parents, (second,), first)


def nuslerp(setting: Setting, statistics: Statistics) -> Plan:
    """Interpolate the two deltas by slerp and add the result to the base (mergekit's NuSLERP with a
    base model).

    One parent: base + w * delta. `deltas` 0 is `slerp`. mergekit uses t = 0.5 if the weights
    sum to 0.
    """
    use_deltas = _is_on(setting, "deltas")
    if not use_deltas:
        return slerp(setting, statistics)
    if len(setting.parents) == 1:
        return Combination.affine(setting.parents, setting.weights)
    return _two(setting, _points(statistics.gram(setting.parents), use_deltas), use_deltas)


def multislerp(setting: Setting, statistics: Statistics) -> Plan:
    """Return the barycentre on the sphere: direction of sum_i alpha_i u_i, length sum_i alpha_i
    |x_i|.

    u_i = x_i / |x_i|. As published (C. Goddard, "Multi-SLERP", 2025) the points are also averaged
    in the tangent space at that mean; that average is 0 by construction (the alpha-weighted sum of
    the u_i has no part across its own direction), so this is the whole formula. mergekit fails
    if three or more directions cancel.
    """
    return _on_sphere(setting, statistics, steps=0)


def karcher(setting: Setting, statistics: Statistics) -> Plan:
    """Return the Karcher mean: the point of the sphere with the least sum of alpha_i *
    angle(u_i)^2.

    Fixed point of m <- exp_m(sum_i alpha_i log_m(u_i)) from the normalised mean, then scaled to
    the length sum_i alpha_i |x_i| (Wang et al., arXiv:2603.04972). mergekit has equal weights
    only and stops after 10 steps; a base model counts as one more point.
    """
    return _on_sphere(setting, statistics, steps=_ITERATIONS)


def model_stock(setting: Setting, statistics: Statistics) -> Plan:
    """Return base + t * sum_i alpha_i * delta_i, t = P cos / (1 + (P - 1) cos).

    cos is the mean cosine over pairs of deltas (Jang et al., arXiv:2403.19522: the ratio for two
    models and its form for P); equal weights are the paper's average. A delta of 0 has cosine 0
    with all. If 1 + (P - 1) cos is 0, the base is kept, as in mergekit, which also replaces
    products of lengths below 1e-6 by 1e-6.
    """
    count = len(setting.parents)
    alphas = _ratio(setting.weights)
    if count == 1 or alphas is None:
        return Combination.affine(setting.parents, setting.weights)
    _, cosines = _directions(_points(statistics.gram(setting.parents), use_deltas=True))
    pairs = [cosines[i][j] for i in range(count) for j in range(i)]
    cosine = math.fsum(pairs) / len(pairs)
    below = 1.0 + (count - 1) * cosine
    if below < _CANCELLED:
        return BASE_ONLY
    t = count * cosine / below
    return Combination.affine(setting.parents, [t * alpha for alpha in alphas])


def _is_on(setting: Setting, parameter: str) -> bool:
    return setting.parameters[parameter][0] >= 0.5


def _ratio(weights: Sequence[float]) -> list[float] | None:
    total = math.fsum(weights)
    if abs(total) <= _NO_RATIO * math.fsum(map(abs, weights)):
        return None
    return [weight / total for weight in weights]


def _points(gram: Gram, use_deltas: bool) -> list[list[float]]:
    # Inner products of the points, from those of [base, delta_1 .. delta_P].
    rest = range(1, len(gram))
    if use_deltas:
        return [[gram[i][j] for j in rest] for i in rest]
    return [
        [math.fsum((gram[0][0], gram[0][i], gram[0][j], gram[i][j])) for j in rest] for i in rest
    ]


def _directions(gram: Gram) -> tuple[list[float], list[list[float]]]:
    # Lengths (P,) and cosines (P, P); a point of length 0 has cosine 0 with all, itself too.
    lengths = [math.sqrt(max(gram[i][i], 0.0)) for i in range(len(gram))]
    cosines = [
        [_cosine(gram[i][j], lengths[i], lengths[j]) for j in range(len(gram))]
        for i in range(len(gram))
    ]
    return lengths, cosines


def _cosine(product: float, first: float, second: float) -> float:
    if first == 0.0 or second == 0.0:
        return 0.0
    return min(max(product / first / second, -1.0), 1.0)


def _slerp(first: float, second: float, across: float, t: float) -> tuple[float, float]:
    # Factors of two vectors, from their squared lengths and their inner product.
    lengths = math.sqrt(max(first, 0.0)), math.sqrt(max(second, 0.0))
    cosine = _cosine(across, *lengths)
    angle = math.acos(cosine)
    if 0.0 in lengths or angle < _PARALLEL or cosine < _OPPOSITE:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _two(setting: Setting, gram: Gram, use_deltas: bool) -> Plan:
    alphas = _ratio(setting.weights)
    if alphas is None:
        return Combination.affine(setting.parents, setting.weights)
    factors = _slerp(gram[0][0], gram[1][1], gram[0][1], alphas[1])
    return _combination(setting, factors, use_deltas)


def _combination(setting: Setting, factors: Sequence[float], use_deltas: bool) -> Plan:
    if use_deltas:
        return Combination.affine(setting.parents, factors)
    return Combination.weighted(setting.parents, factors, 0.0)


def _inner(first: Sequence[float], second: Sequence[float], cosines: Gram) -> float:
    # Inner product of sum_i first_i u_i and sum_j second_j u_j.
    return math.fsum(
        a * b * cosine
        for a, row in zip(first, cosines, strict=True)
        for b, cosine in zip(second, row, strict=True)
    )


def _unit(factors: Sequence[float], cosines: Gram, scale: float) -> list[float] | None:
    length = math.sqrt(max(_inner(factors, factors, cosines), 0.0))
    if length < _CANCELLED * scale:
        return None
    return [factor / length for factor in factors]


def _on_sphere(setting: Setting, statistics: Statistics, steps: int) -> Plan:
    # The weighted mean direction, after some steps toward the Karcher mean, at the mean length.
    alphas = _ratio(setting.weights)
    if len(setting.parents) == 1 or alphas is None:
        return Combination.affine(setting.parents, setting.weights)
    use_deltas = _is_on(setting, "deltas")
    lengths, cosines = _directions(_points(statistics.gram(setting.parents), use_deltas))
    mean = _mean(alphas, lengths, cosines)
    if mean is None:
        return _combination(setting, alphas, use_deltas)
    for _ in range(steps):
        moved = _karcher_step(mean, alphas, lengths, cosines)
        if moved is None:
            break
        mean = moved
    size = math.fsum(alpha * length for alpha, length in zip(alphas, lengths, strict=True))
    factors = [
        size * m / length if length > 0.0 else 0.0 for m, length in zip(mean, lengths, strict=True)
    ]
    return _combination(setting, factors, use_deltas)


def _mean(alphas: list[float], lengths: list[float], cosines: Gram) -> list[float] | None:
    # Factors on the u_i of the normalised mean; None where directions cancel.
    factors = [
        alpha if length > 0.0 else 0.0 for alpha, length in zip(alphas, lengths, strict=True)
    ]
    scale = math.fsum(map(abs, factors))
    return _unit(factors, cosines, scale) if scale > 0.0 else None


def _karcher_step(
    mean: list[float], alphas: list[float], lengths: list[float], cosines: Gram
) -> list[float] | None:
    # One step along the weighted mean of logarithms; None once it is too short to matter.
    pulls, forward = [], 0.0
    for i, (alpha, length) in enumerate(zip(alphas, lengths, strict=True)):
        cosine = math.fsum(m * c for m, c in zip(mean, cosines[i], strict=True))
        cosine = min(max(cosine, -1.0), 1.0)
        angle = math.acos(cosine)
        if length == 0.0 or cosine < _OPPOSITE:
            pulls.append(0.0)  # an opposite point pulls to no side
        else:
            pulls.append(alpha * (angle / math.sin(angle) if angle > _PARALLEL else 1.0))
        forward += pulls[-1] * cosine
    tangent = [pull - forward * m for pull, m in zip(pulls, mean, strict=True)]
    size = math.sqrt(max(_inner(tangent, tangent, cosines), 0.0))
    if size < _CONVERGED:
        return None
    moved = [
        math.cos(size) * m + math.sin(size) * pull / size
        for m, pull in zip(mean, tangent, strict=True)
    ]
    return _unit(moved, cosines, 1.0)
