"""From a recipe to its genotype: recipes that a space can express are reproduced."""

import random
from typing import Any

import pytest
from heterosis.merge.recipe.groups import Grouping
from heterosis.search.propose.encode import encode, expressed, is_same_merge

from ..spaces import GROUPS, TENSORS, make_space

EVERY = {"drop_rate": [0.0, 0.9], "lambda": [0.5, 1.5]}


def drawn(space, seed: int = 0) -> dict[str, Any]:
    """A genotype at random."""
    chance = random.Random(seed)
    numbers = {name: chance.uniform(*bounds) for name, bounds in space.genes.items()}
    return numbers | {name: chance.choice(names) for name, names in space.choices.items()}


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_ties", "della"])
@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        ("constant", "lines"),
        ("constant", {"control_points": 1}),
        ("constant", {"control_points": 5}),
        ("constant", {"blocks": 3}),
        ("constant", "layers"),
        ({"control_points": 2}, {"control_points": 3}),
        ({"control_points": 3}, {"control_points": 5}),
        ({"control_points": 5}, "layers"),
        ({"control_points": 5}, {"control_points": 9}),
        ({"blocks": 2}, {"blocks": 4}),
        ({"blocks": 2}, "layers"),
        ({"blocks": 7}, "layers"),
        ("layers", {"control_points": 4}),
        ("layers", {"control_points": 11}),
        ("layers", {"blocks": 4}),
    ],
)
def test_a_finer_space_makes_a_coarser_ones_recipe(coarse, fine, method):
    ranges = {"drop_rate": [0.0, 0.9]} if method != "task_arithmetic" else {}
    parameters = {"parameters": {"epsilon": [0.0, 0.2]}} if method == "della" else {}
    same = {"modules": ["attn", "mlp"], "lambda": [0.5, 1.5], **ranges, **parameters}
    one, other = (make_space(method=method, depth=depth, **same) for depth in (coarse, fine))
    for seed in range(3):
        recipe = one.decode(drawn(one, seed))
        genotype = expressed(other, recipe)
        assert genotype is not None
        assert is_same_merge(other.decode(genotype), recipe)


def test_a_constant_becomes_equal_points_to_the_bit():
    coarse, fine = make_space(depth="constant"), make_space(depth={"control_points": 5})
    weights = drawn(coarse, 3)
    genotype = expressed(fine, coarse.decode(weights))
    for gene, value in genotype.items():
        assert value == weights[f"{gene.rpartition('.')[0]}.0"]
    assert fine.decode(genotype) == coarse.decode(weights)


def test_one_curve_becomes_one_for_each_kind_and_a_line_two_points():
    shared = make_space(depth={"control_points": 3}, modules=[])
    recipe = shared.decode(drawn(shared))
    assert expressed(make_space(depth={"control_points": 3}), recipe) is not None
    lines = make_space(depth="lines", slope=[-0.1, 0.1], weight=[0.2, 0.8])
    points = make_space(depth={"control_points": 2}, weight=[0.0, 1.0])
    genotype = drawn(lines)
    found = expressed(points, lines.decode(genotype))
    assert found["weight.a.attn.0"] == pytest.approx(genotype["alpha.a.attn"])
    last = genotype["alpha.a.attn"] + genotype["slope.a.attn"]
    assert found["weight.a.attn.1"] == pytest.approx(last)


def test_choices_seeds_switches_and_parents_left_out_come_along():
    ranges = {"parameters": {"normalize": [0, 1]}, "drop_rate": [0.0, 0.9], "mask_seed": [3, 900]}
    methods, parents = ["ties", "dare_ties", "linear"], ("a", "b", "c")
    spaces = [
        make_space(parents, methods, depth=depth, optional=True, **ranges)
        for depth in ("constant", {"control_points": 5})
    ]
    for seed in range(20):
        recipe = spaces[0].decode(drawn(spaces[0], seed))
        genotype = expressed(spaces[1], recipe)
        assert genotype is not None
        kept = {
            p: any(c.weights[i] for c in recipe.coefficients.values())
            for i, p in enumerate(parents)
        }
        assert {p: genotype[f"keep.{p}"] >= 0.5 for p in parents} == kept
        if any(method.is_random for method in recipe.methods):
            assert int(genotype["mask_seed"]) == recipe.mask_seed


def test_what_a_space_cannot_express_is_said_and_the_nearest_is_found():
    fine = make_space(depth="layers", modules=[])
    coarse = make_space(depth="constant", modules=[])
    recipe = fine.decode(drawn(fine))
    assert expressed(coarse, recipe) is None
    weights = [recipe.coefficients[group].weights[0] for group in GROUPS]
    assert encode(coarse, recipe)["weight.a.all.0"] == pytest.approx(sum(weights) / len(weights))
    narrow = make_space(depth="layers", modules=[], weight=[0.4, 0.6])
    assert expressed(narrow, recipe) is None
    assert set(encode(narrow, recipe).values()) <= {0.4, 0.6, *encode(fine, recipe).values()}


def test_other_parents_groups_or_methods_are_not_expressed():
    space = make_space()
    other = make_space(("a", "c"))
    assert expressed(space, other.decode(other.middle)) is None
    ties = make_space(method="ties")
    assert expressed(space, ties.decode(ties.middle)) is None
    groups = make_space(groups=[group for group in GROUPS if group != "embed"])
    assert expressed(space, groups.decode(groups.middle)) is None


def test_the_order_of_parents_is_no_matter():
    one, other = make_space(("a", "b")), make_space(("b", "a"))
    recipe = one.decode(drawn(one))
    assert is_same_merge(other.decode(expressed(other, recipe)), recipe)


def test_different_recipes_are_not_equal():
    space = make_space(method="dare_ties", mask_seed=[0, 9], **EVERY)
    genotype = drawn(space)
    recipe = space.decode(genotype)
    seed, lambda_ = genotype["mask_seed"], genotype["lambda"]
    for change in ({"mask_seed": (seed + 5) % 10}, {"lambda": lambda_ / 2 + 0.5}):
        assert not is_same_merge(space.decode(genotype | change), recipe)
    left_out = genotype | {name: 0.0 for name in genotype if name.startswith("weight.a.")}
    assert not is_same_merge(space.decode(left_out), recipe)


def test_a_recipe_is_refined_to_a_weight_for_each_tensor():
    groups = Grouping().names(TENSORS)
    coarse = make_space(groups=groups, depth="layers", modules=["attn", "mlp"])
    values = {gene: i / 20 for i, gene in enumerate(coarse.genes)}
    recipe = coarse.decode(coarse.middle | values)
    fine = make_space(depth="tensors", tensors=TENSORS)
    refined = fine.decode(encode(fine, recipe))
    for tensor in TENSORS:
        mine = refined.coefficients[refined.grouping.group(tensor).name]
        assert mine.weights == recipe.coefficients[recipe.grouping.group(tensor).name].weights
