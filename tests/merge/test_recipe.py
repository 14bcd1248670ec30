"""Recipes: validation messages, JSON round trip, digest."""

import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from heterosis.merge.methods import METHODS
from heterosis.merge.recipe import Coefficients, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st

GROUPS = ("embed", "layers.0.attn", "layers.0.mlp", "layers.0.other", "head")
numbers = st.floats(-4, 4, allow_nan=False)
rates = st.floats(0, 1, exclude_max=True)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    parents = draw(st.lists(st.text("abcxyz", min_size=1), min_size=1, max_size=4, unique=True))
    n = len(parents)
    drops = rates if method.uses_drop_rate else st.just(0.0)
    coefficients = {
        group: Coefficients(
            tuple(draw(st.lists(numbers, min_size=n, max_size=n))),
            tuple(draw(st.lists(drops, min_size=n, max_size=n))),
        )
        for group in GROUPS
    }
    lambda_ = draw(numbers) if method.uses_lambda else 1.0
    seed = draw(st.integers(0, 2**64 - 1))
    return Recipe(method.name, tuple(parents), coefficients, lambda_, seed)


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_json_round_trip_keeps_every_bit(recipe: Recipe):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()
    assert again.digest == recipe.digest
    assert hash(again) == hash(recipe)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@settings(max_examples=50, deadline=None)
@given(recipes(), st.randoms())
def test_digest_ignores_the_order_of_parents_and_groups(recipe: Recipe, random):
    order = list(range(len(recipe.parents)))
    random.shuffle(order)
    groups = list(recipe.coefficients)
    random.shuffle(groups)
    shuffled = Recipe(
        recipe.method,
        tuple(recipe.parents[i] for i in order),
        {
            g: Coefficients(
                tuple(recipe.coefficients[g].weights[i] for i in order),
                tuple(recipe.coefficients[g].drop_rates[i] for i in order),
            )
            for g in groups
        },
        recipe.lambda_,
        recipe.mask_seed,
    )
    assert shuffled.digest == recipe.digest
    assert shuffled.canonical == recipe.canonical


def test_digest_depends_on_every_part():
    kwargs = {"weight": 0.5, "drop_rate": 0.5, "lambda_": 0.9, "mask_seed": 3}
    changes = {"weight": 0.51, "drop_rate": 0.4, "lambda_": 1.0, "mask_seed": 4}
    digests = {Recipe.uniform("dare_linear", "ab", GROUPS, **kwargs).digest}
    for key, value in changes.items():
        digests.add(Recipe.uniform("dare_linear", "ab", GROUPS, **{**kwargs, key: value}).digest)
    digests.add(Recipe.uniform("dare_ties", "ab", GROUPS, **kwargs).digest)
    digests.add(Recipe.uniform("dare_linear", "ac", GROUPS, **kwargs).digest)
    assert len(digests) == 7


def test_lambda_is_called_lambda_in_json():
    recipe = Recipe.uniform("ties", "ab", GROUPS, 0.5, 0.2, lambda_=0.7)
    assert json.loads(recipe.to_json())["lambda"] == 0.7


def test_uniform_takes_a_number_per_parent():
    recipe = Recipe.uniform(
        "dare_ties", ("x", "y"), GROUPS, {"y": 0.2, "x": 0.1}, {"x": 0, "y": 0.5}
    )
    assert recipe.coefficients["head"] == Coefficients((0.1, 0.2), (0.0, 0.5))
    assert set(recipe.coefficients) == set(GROUPS)


def test_a_recipe_is_frozen():
    recipe = Recipe.uniform("linear", "ab", GROUPS, 0.5)
    with pytest.raises(FrozenInstanceError):
        recipe.method = "ties"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        recipe.coefficients["head"] = recipe.coefficients["embed"]  # pyright: ignore


def uniform(method="dare_ties", parents=("a", "b"), groups=GROUPS, weight=0.5, **kwargs) -> Recipe:
    return Recipe.uniform(method, parents, groups, weight, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "tise"}, "`method` must name a known merge method, got 'tise'; did you mean"),
        ({"method": "?"}, "got '[?]'; choose one of linear, task_arithmetic, ties"),
        ({"drop_rate": 1.0}, r"`drop_rate` must be in \[0, 1\), got 1.0; use 0 to drop nothing"),
        ({"drop_rate": -0.1}, r"`drop_rate` must be in \[0, 1\), got -0.1"),
        ({"weight": float("nan")}, "`weight` must be a finite number, got nan"),
        ({"weight": True}, "`weight` must be a finite number, got True"),
        ({"lambda_": float("inf")}, "`lambda` must be a finite number, got inf"),
        ({"mask_seed": -1}, r"`mask_seed` must be an integer in \[0, 2\*\*64\), got -1"),
        ({"mask_seed": 2**64}, r"`mask_seed` must be an integer in \[0, 2\*\*64\)"),
        ({"parents": ()}, "a recipe needs at least one parent, got none; name the fine-tunes"),
        ({"parents": ("a", "a")}, "parents must have distinct names, got 'a' twice; rename one"),
        ({"parents": ("a", "")}, "a parent's name must be a non-empty string, got ''"),
        ({"groups": ("layer.1",)}, "a layer group is named `embed`, `head` or .* got 'layer.1'"),
        ({"weight": {"a": 1.0}}, "`weight` must name each parent once, got a for parents a, b"),
        (
            {"method": "linear", "lambda_": 0.5},
            "method `linear` has no lambda, it must be 1, got 0.5; scale the weights instead",
        ),
        (
            {"method": "task_arithmetic", "drop_rate": 0.5},
            "method `task_arithmetic` has no drop_rate, it must be 0, got 0.5 in layer group embed",
        ),
    ],
)
def test_bad_recipes_are_refused_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        uniform(**kwargs)
    assert "\n" not in str(caught.value)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="got 2 weights and 1 drop_rates"):
        Coefficients((0.1, 0.2), (0.0,))
    with pytest.raises(ValueError, match="layer group head needs one weight per parent, got 1"):
        Recipe("linear", ("a", "b"), {"head": Coefficients((1.0,), (0.0,))})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d | {"lamda": 1}, "unknown key `lamda` in the recipe; did you mean `lambda`"),
        (lambda d: d | {"zzz": 1}, "unknown key `zzz` in the recipe; allowed: method, parents"),
        (lambda d: {k: v for k, v in d.items() if k != "parents"}, "missing key `parents` in the"),
        (lambda d: d | {"coefficients": {"head": {"weights": [1]}}}, "missing key `drop_rates` in"),
        (lambda d: [d], "a recipe must be an object, got list"),
    ],
)
def test_bad_json_is_refused_by_key(edit, message):
    data = edit(uniform().to_dict())
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(json.dumps(data))


def test_broken_json_is_refused():
    with pytest.raises(ValueError, match="a recipe is a JSON object, got broken JSON"):
        Recipe.from_json("{")


def test_recipes_and_the_table_need_no_torch():
    code = (
        "import sys; import heterosis.merge.recipe, heterosis.merge.groups;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
