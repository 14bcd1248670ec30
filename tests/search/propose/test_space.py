"""The space: genotype to recipe, and the baselines inside it."""

import math
from typing import get_args

import numpy as np
import pytest
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.recipe_gradient import RecipeGradient
from heterosis.search.config.config import ConfigError
from heterosis.search.config.search import BaselinesSection
from heterosis.search.config.space import Depth
from heterosis.search.format import recipe_line
from heterosis.search.propose.baselines import null_baselines
from heterosis.search.propose.curves import SHAPES

from ..spaces import GROUPS, N_LAYERS, TENSORS, make_space


@pytest.mark.parametrize("parents", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("depth", ["constant", "layers", {"control_points": 5}, {"blocks": 2}])
@pytest.mark.parametrize("modules", [[], ["attn", "mlp"], ["embed", "mlp", "other"]])
def test_the_middle_is_the_uniform_merge(parents, depth, modules):
    space = make_space(parents, depth=depth, modules=modules)
    recipe = space.decode(space.middle)
    assert set(recipe.coefficients) == set(GROUPS)
    for coefficients in recipe.coefficients.values():
        assert coefficients.weights == pytest.approx([1 / len(parents)] * len(parents))
        assert set(coefficients.drop_rates) == {0.0}


@pytest.mark.parametrize(
    ("depth", "genes"),
    [
        ("constant", 4),
        ("lines", 8),
        ("layers", 16),
        ({"control_points": 3}, 12),
        ({"blocks": 2}, 8),
        ({"control_points": 5}, 16),  # of four layers: none more than there are layers
        ({"blocks": 5}, 16),
    ],
)
def test_the_number_of_genes_is_points_times_kinds_times_parents(depth, genes):
    assert len(make_space(depth=depth).genes) == genes


def test_control_points_are_linear_between_and_exact_at_the_ends():
    space = make_space(depth={"control_points": 2}, modules=[])
    ends = {"weight.a.all.0": 0.0, "weight.a.all.1": 0.9}
    recipe = space.decode(space.middle | ends)

    def weight(group):
        return recipe.coefficients[group].weights[0]

    assert (weight("embed"), weight("head")) == (0.0, 0.9)
    got = [weight(f"layers.{i}.attn") for i in range(N_LAYERS)]
    assert got == pytest.approx([0.0, 0.3, 0.6, 0.9])


def test_blocks_are_steps():
    space = make_space(depth={"blocks": 2}, modules=[])
    recipe = space.decode(space.middle | {"weight.a.all.0": 0.1, "weight.a.all.1": 0.8})
    got = [recipe.coefficients[f"layers.{i}.mlp"].weights[0] for i in range(N_LAYERS)]
    assert got == [0.1, 0.1, 0.8, 0.8]
    assert recipe.coefficients["embed"].weights[0] == 0.1
    assert recipe.coefficients["head"].weights[0] == 0.8


def test_every_depth_of_the_configuration_has_its_curves():
    assert set(SHAPES) == set(get_args(Depth.model_fields["shape"].annotation))
    for shape, curves in SHAPES.items():
        depth = {shape: 2} if curves.is_counted else shape
        assert Depth.model_validate(depth).shape == shape
        with pytest.raises(ValueError, match="must be `constant`"):
            Depth.model_validate(shape if curves.is_counted else {shape: 2})


def test_layers_leaves_every_layer_free():
    space = make_space(depth="layers", modules=[])
    values = {f"weight.a.all.{i}": i / 10 for i in range(N_LAYERS)}
    recipe = space.decode(space.middle | values)
    got = [recipe.coefficients[f"layers.{i}.mlp"].weights[0] for i in range(N_LAYERS)]
    assert got == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_every_tensor_may_have_its_own_weight():
    space = make_space(depth="tensors", tensors=TENSORS)
    assert len(space.genes) == 2 * len(TENSORS)
    assert space.phrase == "tensors, weights in [0, 1]"
    values = {"weight.a.self_attn_q_proj.2": 0.1, "weight.b.embed_tokens.0": 0.2}
    recipe = space.decode(space.middle | values)
    assert recipe.grouping.group(TENSORS[0]).name == "embed_tokens"
    for tensor in TENSORS:
        weights = recipe.coefficients[recipe.grouping.group(tensor).name].weights
        expected = {TENSORS[0]: (0.5, 0.2), "model.layers.2.self_attn.q_proj.weight": (0.1, 0.5)}
        assert weights == expected.get(tensor, (0.5, 0.5))
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_methods_may_be_chosen_by_tensor():
    space = make_space(method=["linear", "ties"], depth="tensors", tensors=TENSORS)
    assert len(space.choices) == len(TENSORS)
    recipe = space.decode(space.middle | {"method.mlp_up_proj.3": "ties"})
    methods = {g: c.method for g, c in recipe.coefficients.items() if c.method}
    assert methods == {"layers.3.mlp_up_proj": "ties"}


def test_a_tensor_of_a_rule_keeps_its_group():
    rules = {"*.layers.{layer}.mlp.*": "layers.{layer}.mlp"}
    space = make_space(depth="tensors", tensors=TENSORS, rules=rules)
    assert "weight.a.mlp.3" in space.genes and "weight.a.self_attn_q_proj.3" in space.genes


def test_tensors_and_modules_exclude_each_other():
    with pytest.raises(ValueError, match=r"each tensor its own coefficients, got `modules: .*attn"):
        make_space(depth="tensors", modules=["attn"], tensors=TENSORS)


SMOOTH = [
    {"depth": "constant", "modules": []},
    {"depth": "lines"},
    {"depth": {"control_points": 3}, "modules": ["attn", "mlp"]},
    {"depth": {"blocks": 2}, "modules": ["attn", "other"], "optional": True},
    {"depth": "layers", "lambda": [0.5, 1.5]},
]


@pytest.mark.parametrize("space", [*SMOOTH, {"depth": "tensors", "tensors": TENSORS}])
def test_derivatives_by_genes_are_the_chain_rule(space):
    made = make_space(**space)
    rng = np.random.default_rng(3)
    slopes = {g: rng.normal(size=2).tolist() for g in made.groups}
    lambdas = {g: float(rng.normal()) for g in made.groups}

    def loss(genotype):
        recipe = made.decode(genotype)
        by_weight = sum(np.dot(slopes[g], c.weights) for g, c in recipe.coefficients.items())
        return by_weight + sum(lambdas.values()) * recipe.lambda_

    at = made.middle | {f"keep.{p}": k for p, k in zip(made.optional, (0.2, 0.9), strict=False)}
    found = made.gradient(at, RecipeGradient({g: tuple(s) for g, s in slopes.items()}, lambdas, {}))
    assert set(found) == {gene for gene in made.genes if not gene.startswith("keep.")}
    for gene, slope in found.items():
        ends = [loss(at | {gene: at[gene] + by}) for by in (1e-4, -1e-4)]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=1e-6)


def test_smooth_parameters_have_derivatives_too():
    space = make_space(method="nearswap", depth="layers", parameters={"t": [0.0, 0.1]})
    by_group = {g: {"t": (1.0, 2.0)} for g in space.groups}
    zeros = dict.fromkeys(space.groups, (0.0, 0.0))
    recipe_gradient = RecipeGradient(zeros, dict.fromkeys(space.groups, 0.0), by_group)
    found = space.gradient(space.middle, recipe_gradient)
    # The first point of attn: its own layer's attn, and half of what follows both kinds there.
    assert found["t.b.attn.1"] == pytest.approx(2.0 * 1.5)
    assert found["t.a.attn.0"] == pytest.approx(1.0 * 2.0), "the embeddings too"


def test_tensors_of_no_named_kind_take_the_mean_of_the_kinds():
    space = make_space(depth="constant", modules=["attn", "mlp"])
    recipe = space.decode(space.middle | {"weight.a.attn.0": 0.2, "weight.a.mlp.0": 0.8})
    assert recipe.coefficients["layers.1.attn"].weights[0] == 0.2
    assert recipe.coefficients["layers.1.mlp"].weights[0] == 0.8
    assert recipe.coefficients["layers.1.other"].weights[0] == pytest.approx(0.5)
    assert recipe.coefficients["embed"].weights[0] == pytest.approx(0.5)


def test_drop_rates_and_lambda_are_genes_where_they_have_an_interval():
    space = make_space(
        method="dare_linear", depth="constant", drop_rate=[0.1, 0.9], **{"lambda": [0.5, 1.5]}
    )
    recipe = space.decode(space.middle | {"drop_rate.b.mlp.0": 0.7, "lambda": 1.25})
    assert recipe.coefficients["layers.0.mlp"].drop_rates == (0.5, 0.7)
    assert recipe.lambda_ == 1.25
    assert recipe.method == "dare_linear"


def test_weights_on_lines_and_constant_drop_rates():
    space = make_space(method="dare_ties", depth="lines", modules=[], drop_rate=[0.0, 0.8])
    assert space.genes["alpha.a.all"] == (0.0, 1.0)
    assert space.genes["slope.a.all"] == (0.0, 0.5)
    recipe = space.decode(space.middle | {"alpha.a.all": 0.2, "slope.a.all": 0.3})
    got = [recipe.coefficients[f"layers.{i}.mlp"].weights[0] for i in range(N_LAYERS)]
    assert got == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert recipe.coefficients["embed"].weights[0] == pytest.approx(0.2)
    assert recipe.coefficients["head"].weights[0] == pytest.approx(0.5)
    assert {c.drop_rates for c in recipe.coefficients.values()} == {(0.4, 0.4)}


def test_bounds_of_slopes_may_be_given():
    space = make_space(depth="lines", slope=[-0.25, 1.0], weight=[0.0, 0.8])
    assert set(space.genes.values()) == {(0.0, 0.8), (-0.25, 1.0)}
    by_name = {b.name: b for b in null_baselines(space, BaselinesSection())}
    assert {by_name["uniform"].params[f"slope.{p}.attn"] for p in "ab"} == {0.0}


def test_a_kind_outside_the_layers_has_one_gene_and_leaves_the_mean_alone():
    space = make_space(depth="layers", modules=["attn", "embed"])
    assert [name for name in space.genes if "embed" in name] == [
        "weight.a.embed.0",
        "weight.b.embed.0",
    ]
    recipe = space.decode(space.middle | {"weight.a.embed.0": 0.9, "weight.a.attn.3": 0.1})
    assert recipe.coefficients["embed"].weights[0] == 0.9
    assert recipe.coefficients["head"].weights[0] == pytest.approx(0.1)
    lines = make_space(depth="lines", modules=["attn", "embed"])
    assert [name for name in lines.genes if "embed" in name] == ["alpha.a.embed", "alpha.b.embed"]


def test_kinds_defined_by_rules():
    groups = tuple(name.replace("attn", "q") for name in GROUPS)
    rules = {"*.layers.{layer}.self_attn.*": "layers.{layer}.q"}
    space = make_space(groups=groups, rules=rules, modules=["q", "mlp"], depth="constant")
    recipe = space.decode(space.middle | {"weight.a.q.0": 0.25})
    assert recipe.coefficients["layers.2.q"].weights[0] == 0.25
    assert recipe.layer_groups == tuple(rules.items())
    assert space.to_dict()["layer_groups"] == [list(rule) for rule in rules.items()]
    assert all(b.recipe.layer_groups for b in null_baselines(space, BaselinesSection()))
    with pytest.raises(ConfigError, match="names `attn`, but this model has no layer gr"):
        make_space(groups=groups, rules=rules)


def test_the_search_chooses_methods_and_unused_genes_are_left_out():
    space = make_space(
        method=["dare_ties", "linear", "ties"],
        depth="layers",
        drop_rate=[0.0, 0.8],
        **{"lambda": [0.5, 1.0]},
    )
    assert space.choices["method.mlp.3"] == ("dare_ties", "linear", "ties")
    assert len(space.choices) == 2 * N_LAYERS
    chosen = {f"method.attn.{i}": "linear" for i in range(N_LAYERS)} | {"method.mlp.3": "ties"}
    recipe = space.decode(space.middle | chosen)
    assert (recipe.method, recipe.lambda_) == ("dare_ties", 0.75)
    names = {g: recipe.setting(g).method for g in GROUPS}
    assert names["layers.2.attn"] == "linear"
    assert names["layers.3.mlp"] == "ties"
    assert names["layers.2.mlp"] == "dare_ties"
    assert names["head"] == "linear"  # of no named kind: the first kind's
    assert recipe.coefficients["layers.2.attn"].drop_rates == (0.0, 0.0)
    assert recipe.coefficients["layers.3.mlp"].drop_rates == (0.4, 0.4)
    assert recipe.setting("layers.2.attn").lambda_ == 1.0
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_where_one_method_is_chosen_everywhere_the_recipe_is_that_methods():
    space = make_space(method=["ties", "linear"], depth="constant", **{"lambda": [0.5, 1.5]})
    recipe = space.decode(space.middle | dict.fromkeys(space.choices, "linear"))
    assert (recipe.method, recipe.lambda_) == ("linear", 1.0)
    assert {c.method for c in recipe.coefficients.values()} == {None}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [({"control_points": 2}, [0, 0, 1, 1]), ({"control_points": 3}, [0, 1, 1, 2])],
)
def test_the_nearest_control_point_decides_the_method(depth, expected):
    names = ["ties", "linear", "slerp"]
    space = make_space(method=names, depth=depth, modules=[])
    points = {name: names[i] for i, name in enumerate(space.choices)}
    recipe = space.decode(space.middle | points)
    got = [recipe.setting(f"layers.{i}.mlp").method for i in range(N_LAYERS)]
    assert got == [names[i] for i in expected]


def test_parameters_per_parent_and_shared():
    space = make_space(
        method="della",
        depth="constant",
        modules=["mlp"],
        drop_rate=0.5,
        parameters={"epsilon": [0.0, 0.2], "normalize": [0, 1]},
    )
    assert [name for name in space.genes if "weight" not in name] == [
        "epsilon.a.mlp.0",
        "epsilon.b.mlp.0",
        "normalize.mlp.0",
    ]
    genes = {"epsilon.a.mlp.0": 0.05, "normalize.mlp.0": 0.4}
    recipe = space.decode(space.middle | genes)
    assert dict(recipe.coefficients["embed"].parameters) == {
        "epsilon": (0.05, 0.1),
        "normalize": (0.0,),  # a switch: on from 0.5
    }


def test_a_parameter_goes_to_the_methods_that_have_it():
    space = make_space(
        method=["ties", "sce"],
        depth="constant",
        modules=["mlp"],
        parameters={"select_topk": [0.1, 1.0]},
    )
    assert "select_topk.mlp.0" in space.genes
    ties, sce = (
        space.decode(space.middle | {"method.mlp.0": name}).coefficients["embed"].parameters
        for name in ("ties", "sce")
    )
    assert (dict(ties), dict(sce)) == ({}, {"select_topk": (0.55,)})


def test_a_parameters_name_means_the_same_in_every_row_of_the_table():
    shared = {}
    for row in METHODS.values():
        for parameter in row.parameters:
            assert shared.setdefault(parameter.name, parameter.is_shared) == parameter.is_shared


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_can_be_searched(method):
    row = METHODS[method]
    parents = ("a", "b", "c")[: row.most_parents or 3]
    drop_rate = [0.1, 0.9] if row.uses_drop_rate else 0.0
    bounds = {p.name: [p.low, min(p.high, p.low + 1)] for p in row.parameters}
    for depth in ("lines", {"control_points": 3}):
        space = make_space(parents, method, depth=depth, drop_rate=drop_rate, parameters=bounds)
        recipe = space.decode(space.middle)
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_identity_of_a_space_is_unchanged():
    written = make_space(drop_rate=0.0, depth={"control_points": 2}).to_dict()
    assert written == {
        "parents": ["a", "b"],
        "groups": list(GROUPS),
        "method": "task_arithmetic",
        "depth": ["control_points", 2],
        "kinds": ["attn", "mlp"],
        "weight": [0.0, 1.0],
        "drop_rate": [0.0, 0.0],
        "lambda": [1.0, 1.0],
        "mask_seed": 0,
    }


def test_a_genotype_of_another_space_is_refused():
    space = make_space()
    with pytest.raises(ValueError, match="exactly the genes of its space"):
        space.decode({"weight.c.attn.0": 1.0})


def test_linear_baselines_are_genotypes_and_decode_to_themselves():
    space = make_space()
    by_name = {b.name: b for b in null_baselines(space, BaselinesSection())}
    for name in ("base", "parent:a", "parent:b", "uniform", "task_arithmetic lambda=0.8"):
        baseline = by_name[name]
        decoded = space.decode(baseline.params)
        lambda_ = baseline.recipe.lambda_
        for group, coefficients in baseline.recipe.coefficients.items():
            expected = [lambda_ * weight for weight in coefficients.weights]
            assert decoded.coefficients[group].weights == pytest.approx(expected)
    assert by_name["ties drop_rate=0.8"].params is None
    assert by_name["uniform"].params == space.middle


def test_baselines_outside_the_space_are_scored_but_are_no_genotypes():
    by_name = {b.name: b for b in null_baselines(make_space(weight=[0.3, 0.7]), BaselinesSection())}
    assert by_name["parent:a"].params is None
    assert by_name["uniform"].params is not None


def test_linear_baselines_are_genotypes_where_a_linear_method_can_be_chosen():
    space = make_space(method=["ties", "linear"], depth="constant", drop_rate=[0.2, 0.8])
    by_name = {b.name: b for b in null_baselines(space, BaselinesSection())}
    uniform = by_name["uniform"]
    assert space.decode(uniform.params).digest == uniform.recipe.digest
    assert by_name["middle of the space"].params == space.middle
    without = null_baselines(make_space(method=["ties", "slerp"]), BaselinesSection())
    assert [b.name for b in without if b.params] == ["middle of the space"]


def test_a_lambda_that_repeats_the_uniform_merge_is_left_out():
    section = BaselinesSection(lambdas=(0.5, 1.0))
    names = [b.name for b in null_baselines(make_space(), section)]
    assert "task_arithmetic lambda=0.5" not in names
    assert "task_arithmetic lambda=1" in names


def test_the_middle_of_a_space_that_holds_no_uniform_merge_is_a_baseline():
    space = make_space(method="dare_ties", depth="constant", drop_rate=[0.0, 0.9])
    last = null_baselines(space, BaselinesSection())[-1]
    assert (last.kind, last.params) == ("middle", space.middle)
    assert math.isclose(last.recipe.coefficients["embed"].drop_rates[0], 0.45)


def test_parents_may_be_left_out():
    space = make_space(("a", "b", "c"), optional=["b", "c"])
    assert [name for name in space.genes if name.startswith("keep")] == ["keep.b", "keep.c"]
    without = space.decode(space.middle | {"keep.b": 0.49})
    for coefficients in without.coefficients.values():
        assert coefficients.weights == pytest.approx((1 / 3, 0.0, 1 / 3))
    assert "without b" in recipe_line(without)
    assert space.decode(space.middle) == make_space(("a", "b", "c")).decode(
        make_space(("a", "b", "c")).middle
    )
    every = make_space(("a", "b"), optional=True)
    assert every.optional == ("a", "b")
    assert every.constant({"a": 1.0, "b": 0.0}, "task_arithmetic")["keep.b"] == 1.0


def test_the_seed_of_the_masks_may_be_searched():
    space = make_space(method="dare_ties", drop_rate=[0.1, 0.9], mask_seed=[3, 5])
    assert space.genes["mask_seed"] == (3, 6)
    seeds = [space.decode(space.middle | {"mask_seed": x}).mask_seed for x in (3.0, 4.99, 5.5, 6.0)]
    assert seeds == [3, 4, 5, 5]
    assert space.mask_seed == 3  # that of the baselines


def test_what_is_not_asked_for_does_not_change_a_studys_identity():
    assert not {"optional", "last_seed"} & make_space().to_dict().keys()
    assert make_space(optional=True).to_dict()["optional"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optional": ["c"]}, "`space.optional` must be true or name parents, got `c`"),
        ({"parents": ("a",), "optional": True}, "chooses among several parents, got 1"),
        ({"mask_seed": [0, 9]}, "`space.mask_seed` is not used by `task_arithmetic`"),
        ({"method": "dare_ties", "mask_seed": [9, 9]}, "first < last, got"),
    ],
)
def test_what_cannot_be_left_out_or_seeded(change, message):
    with pytest.raises(ValueError, match=message):
        make_space(**change)


def test_kinds_by_name_patterns_have_genes_of_their_own():
    groups = (*GROUPS, *(f"layers.{i}.q" for i in range(N_LAYERS)))
    rules = {"*.layers.{layer}.*.q_proj.*": "layers.{layer}.q"}
    space = make_space(groups=groups, rules=rules, modules=["attn", "mlp", "q"], depth="constant")
    assert sorted(space.genes) == sorted(
        f"weight.{p}.{k}.0" for p in "ab" for k in ("attn", "mlp", "q")
    )
    found = space.decode(space.middle | {"weight.a.q.0": 0.9}).coefficients
    assert found["layers.1.q"].weights[0] == 0.9
    assert found["layers.1.attn"].weights[0] == 0.5
