"""The space: genotype to recipe, and the baselines inside it."""

import math

import pytest
from heterosis.search.baselines import null_baselines
from heterosis.search.config import BaselinesSection, Config
from heterosis.search.space import build_space

N_LAYERS = 4
KINDS = ("attn", "mlp", "other")
GROUPS = ("embed", *(f"layers.{i}.{kind}" for i in range(N_LAYERS) for kind in KINDS), "head")


def make_space(parents=("a", "b"), method="task_arithmetic", **space):
    config = Config.model_validate(
        {
            "name": "tiny",
            "base": "base",
            "parents": {name: name for name in parents},
            "tasks": [{"task": "t"}],
            "merge": {"method": method},
            "space": space,
        }
    )
    return build_space(config, GROUPS, N_LAYERS)


@pytest.mark.parametrize("parents", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("depth", ["constant", "layers", {"control_points": 5}, {"blocks": 2}])
@pytest.mark.parametrize("modules", [[], ["attn", "mlp"], ["attn", "mlp", "other"]])
def test_the_middle_is_the_uniform_merge(parents, depth, modules):
    space = make_space(parents, depth=depth, modules=modules)
    recipe = space.decode(space.middle)
    assert set(recipe.coefficients) == set(GROUPS)
    for coefficients in recipe.coefficients.values():
        assert coefficients.weights == pytest.approx([1 / len(parents)] * len(parents))
        assert set(coefficients.drop_rates) == {0.0}


@pytest.mark.parametrize(
    ("depth", "genes"),
    [("constant", 4), ("layers", 16), ({"control_points": 5}, 20), ({"blocks": 2}, 8)],
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


def test_layers_leaves_every_layer_free():
    space = make_space(depth="layers", modules=[])
    values = {f"weight.a.all.{i}": i / 10 for i in range(N_LAYERS)}
    recipe = space.decode(space.middle | values)
    got = [recipe.coefficients[f"layers.{i}.mlp"].weights[0] for i in range(N_LAYERS)]
    assert got == pytest.approx([0.0, 0.1, 0.2, 0.3])


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
