"""Scalars of the methods on the sphere: known angles, degenerate geometry, no NaN anywhere."""

import itertools
import math
from collections.abc import Mapping

import pytest
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.plans import BASE_ONLY, Combination
from heterosis.merge.recipe.recipe import Recipe, plan_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES: tuple[str, ...] = ("a", "b", "c")
SPHERICAL = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")
MANY = ("multislerp", "karcher", "model_stock")
every_method = pytest.mark.parametrize("method", SPHERICAL)


class Vectors:
    """Statistics about vectors given as lists of numbers."""

    def __init__(self, base: list[float], deltas: dict[str, list[float]]) -> None:
        self.base, self.deltas = base, deltas

    def gram(self, parents):
        vectors = [self.base, *(self.deltas[name] for name in parents)]
        return [
            [math.fsum(map(math.prod, zip(x, y, strict=True))) for y in vectors] for x in vectors
        ]

    def magnitude(self, parent, drop_rate):
        raise AssertionError("asked of no method on the sphere")

    def variance(self, parents, select_topk):
        raise AssertionError("asked of no method on the sphere")

    def merged(self, plan) -> list[float]:
        out = [plan.base_share * x for x in self.base]
        for name, factor in zip(plan.parents, plan.coefficients, strict=True):
            parent = zip(self.base, self.deltas[name], strict=True)
            out = [total + factor * (b + d) for total, (b, d) in zip(out, parent, strict=True)]
        return out


def plan(method: str, vectors: Vectors, weights: Mapping[str, float], **parameters: float):
    row = METHODS[method]
    known = {p.name for p in row.parameters}
    set_ = {name: value for name, value in parameters.items() if name in known}
    made = Recipe.uniform(method, tuple(weights), ("head",), weights, parameters=set_)
    made = plan_tensor(made, "lm_head.weight", vectors)
    assert isinstance(made, Combination)
    numbers = (made.base_share, *made.coefficients)
    assert all(math.isfinite(number) for number in numbers), made
    return made


def merge(method: str, vectors: Vectors, weights: Mapping[str, float], **parameters: float):
    return vectors.merged(plan(method, vectors, weights, **parameters))


def close(got, wanted, tolerance=1e-9) -> bool:
    return len(got) == len(wanted) and all(
        math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance)
        for x, y in zip(got, wanted, strict=True)
    )


RIGHT_ANGLE = Vectors([5.0, 0.0, 0.0], {"a": [0.0, 2.0, 0.0], "b": [0.0, 0.0, 2.0]})


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_halfway_between_equal_lengths_keeps_the_length(method):
    out = merge(method, RIGHT_ANGLE, {"a": 0.3, "b": 0.3}, deltas=1.0)
    assert close(out, [5.0, math.sqrt(2.0), math.sqrt(2.0)])


def test_slerp_of_one_parent_starts_at_the_base():
    vectors = Vectors([1.0, 0.0], {"a": [-1.0, 1.0]})
    third = merge("slerp", vectors, {"a": 1.0 / 3.0})
    assert close(third, [math.cos(math.pi / 6), math.sin(math.pi / 6)])
    assert plan("slerp", vectors, {"a": 1.0}) == Combination(("a",), (1.0,), 0.0)


def test_slerp_of_two_parents_takes_no_base():
    vectors = Vectors([1.0, 0.0], {"a": [1.0, 0.0], "b": [-1.0, 3.0]})  # parents (2, 0), (0, 3)
    out = plan("slerp", vectors, {"b": 1.0, "a": 2.0})
    assert out.base_share == 0.0
    assert close(vectors.merged(out), [2 * math.sin(math.pi / 3), 3 * math.sin(math.pi / 6)])
    assert plan("nuslerp", vectors, {"b": 1.0, "a": 2.0}, deltas=0.0) == out


def test_slerp_holds_where_peers_fall_back_to_a_line():
    # Fine-tunes: an angle of 1e-3. The arc bulges over the chord by angle^2 / 8 in the middle.
    vectors = Vectors([1.0, 0.0], {"a": [math.cos(1e-3) - 1.0, math.sin(1e-3)]})
    half = plan("slerp", vectors, {"a": 0.5})
    assert close(vectors.merged(half), [math.cos(5e-4), math.sin(5e-4)], 1e-12)
    assert half.base_share + half.coefficients[0] - 1.0 == pytest.approx(1e-6 / 8, rel=1e-3)


def test_a_third_parent_is_refused_where_two_are_merged():
    message = "method `slerp` merges at most 2 parents at a time, got 3 weights other than 0"
    with pytest.raises(ValueError, match=message):
        Recipe.uniform("slerp", NAMES, ("head",), 0.5)
    Recipe.uniform("slerp", NAMES, ("head",), {"a": 0.5, "b": 0.0, "c": 0.5})


def test_the_karcher_mean_of_three_is_where_the_pulls_cancel():
    vectors = Vectors([0.0] * 3, {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.6, 0.0, 0.8]})
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    mean = merge("karcher", vectors, weights)
    assert math.isclose(math.hypot(*mean), 1.0, rel_tol=1e-9)
    pull = [0.0] * 3
    for name, weight in weights.items():
        point = vectors.deltas[name]
        cosine = math.fsum(m * x for m, x in zip(mean, point, strict=True))
        pull = [
            p + weight * math.acos(cosine) / math.sin(math.acos(cosine)) * (x - cosine * m)
            for p, x, m in zip(pull, point, mean, strict=True)
        ]
    assert math.hypot(*pull) < 1e-6
    assert not close(mean, merge("multislerp", vectors, weights), 1e-3)


@pytest.mark.parametrize(
    ("second", "t"),
    [([0.0, 2.0, 0.0], 1.0), ([0.0, 0.0, 2.0], 0.0), ([0.0, 2.0, 2.0 * math.sqrt(3)], 2 / 3)],
)
def test_model_stock_trusts_deltas_as_far_as_they_agree(second, t):
    # t = 2 cos / (1 + cos): the same direction 1, a right angle 0, 60 degrees 2/3.
    vectors = Vectors([5.0, 0.0, 0.0], {"a": [0.0, 2.0, 0.0], "b": second})
    average = [t * (x + y) / 2 for x, y in zip(*vectors.deltas.values(), strict=True)]
    wanted = [x + y for x, y in zip(vectors.base, average, strict=True)]
    assert close(merge("model_stock", vectors, {"a": 1.0, "b": 1.0}), wanted)


def test_model_stock_of_opposite_deltas_is_the_base():
    vectors = Vectors([5.0, 0.0], {"a": [0.0, 2.0], "b": [0.0, -1.0]})
    assert plan("model_stock", vectors, {"a": 1.0, "b": 1.0}) == BASE_ONLY


@every_method
def test_only_the_ratio_of_two_weights_counts(method):
    one = plan(method, RIGHT_ANGLE, {"a": 1.0, "b": 3.0})
    assert plan(method, RIGHT_ANGLE, {"a": 0.25, "b": 0.75}) == one
    assert plan(method, RIGHT_ANGLE, {"a": -0.5, "b": -1.5}) == one


@pytest.mark.parametrize("method", [m for m in SPHERICAL if m != "slerp"])
def test_one_parent_is_interpolated_with_the_base(method):
    for weight in (1.0, 0.3, -0.7, 2.0):
        made = plan(method, RIGHT_ANGLE, {"a": weight, "b": 0.0})
        assert made == Combination.affine(("a",), (weight,))


@every_method
def test_weights_that_sum_to_0_are_amounts(method):
    made = plan(method, RIGHT_ANGLE, {"a": 0.5, "b": -0.5})
    assert made == Combination.affine(("a", "b"), (0.5, -0.5))


@every_method
def test_deltas_of_0_give_the_base(method):
    vectors = Vectors([5.0, 1.0], {"a": [0.0, 0.0], "b": [0.0, 0.0]})
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 2.0, "b": -0.5}, {"a": 0.5, "b": 0.0}):
        assert close(merge(method, vectors, weights), vectors.base)


@pytest.mark.parametrize("method", ["slerp", *MANY])
def test_a_base_of_0_does_no_harm(method):
    vectors = Vectors([0.0, 0.0], {"a": [1.0, 2.0], "b": [0.0, 0.0]})
    assert close(merge(method, vectors, {"a": 1.0, "b": 0.0}), [1.0, 2.0])
    plan(method, vectors, {"a": 1.0, "b": 1.0}, deltas=0.0)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_parallel_and_opposite_deltas_are_interpolated_linearly(method):
    for factor in (1.0, 3.0, -1.0, -2.0):
        vectors = Vectors([5.0, 0.0], {"a": [0.0, 1.0], "b": [0.0, factor]})
        out = merge(method, vectors, {"a": 0.5, "b": 0.5}, deltas=1.0)
        assert close(out, [5.0, 0.5 + factor / 2]), factor


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_three_directions_that_cancel_are_interpolated_linearly(method):
    turns = {name: 2 * math.pi * i / 3 for i, name in enumerate(NAMES)}
    vectors = Vectors([0.0, 0.0], {n: [math.cos(x), 2 * math.sin(x)] for n, x in turns.items()})
    vectors.deltas = {n: [x, y / 2] for n, (x, y) in vectors.deltas.items()}
    assert close(merge(method, vectors, dict.fromkeys(NAMES, 1.0), deltas=1.0), [0.0, 0.0])


@pytest.mark.parametrize("method", MANY)
def test_a_parent_equal_to_the_base_is_no_trouble_among_others(method):
    vectors = Vectors([5.0, 0.0], {"a": [0.0, 1.0], "b": [0.0, 0.0], "c": [1.0, 1.0]})
    made = plan(method, vectors, dict.fromkeys(NAMES, 1.0), deltas=1.0)
    assert set(made.parents) <= set(NAMES)


numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-2, 2))
points = st.lists(numbers, min_size=3, max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(SPHERICAL),
    base=points,
    deltas=st.lists(points, min_size=3, max_size=3),
    weights=st.lists(numbers, min_size=3, max_size=3),
    use_deltas=st.booleans(),
    order=st.sampled_from(list(itertools.permutations(range(3)))),
)
def test_no_geometry_gives_nan_or_depends_on_the_order(
    method, base, deltas, weights, use_deltas, order
):
    if METHODS[method].most_parents == 2:
        weights[2] = 0.0
    vectors = Vectors(base, dict(zip(NAMES, deltas, strict=True)))
    named = dict(zip(NAMES, weights, strict=True))
    made = plan(method, vectors, named, deltas=float(use_deltas))
    shuffled = {NAMES[i]: weights[i] for i in order}
    assert plan(method, vectors, shuffled, deltas=float(use_deltas)) == made
    if not any(abs(w) >= 2.0**-126 for w in weights):
        assert made == BASE_ONLY
