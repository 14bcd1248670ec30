"""Recipes: validation messages, JSON round trip, digest."""

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st

GROUPS = ("embed", "layers.0.attn", "layers.0.mlp", "layers.0.other", "head")
EMBED = Coefficients((1.0,), (0.0,))
numbers = st.floats(-4, 4, allow_nan=False)
rates = st.floats(0, 1, exclude_max=True)


@st.composite
def coefficients(draw: st.DrawFn, n: int, own_method: str | None, method: str) -> Coefficients:
    row = METHODS[own_method or method]
    weights = draw(st.lists(numbers, min_size=n, max_size=n))
    for i in range(row.most_parents or n, n):
        weights[i] = 0.0
    drops = rates if row.uses_drop_rate else st.just(0.0)
    parameters = {}
    for p in draw(
        st.lists(st.sampled_from(row.parameters), unique=True) if row.parameters else st.just([])
    ):
        size = 1 if p.is_shared else n
        values = st.lists(st.floats(p.low, p.high), min_size=size, max_size=size)
        parameters[p.name] = tuple(draw(values))
    return Coefficients(
        tuple(weights),
        tuple(draw(st.lists(drops, min_size=n, max_size=n))),
        parameters,
        own_method,
        draw(st.one_of(st.none(), numbers)) if row.uses_lambda else None,
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    methods = st.sampled_from(sorted(METHODS))
    method = draw(methods)
    parents = draw(st.lists(st.text("abcxyz", min_size=1), min_size=1, max_size=4, unique=True))
    groups = {
        group: draw(coefficients(len(parents), draw(st.none() | methods), method))
        for group in GROUPS
    }
    has_lambda = any(METHODS[c.method or method].uses_lambda for c in groups.values())
    rules = draw(st.sampled_from([(), (("*.q_proj.*", "queries"), ("*", "rest"))]))
    seed = draw(st.integers(0, 2**64 - 1))
    lambda_ = draw(numbers) if has_lambda else 1.0
    return Recipe(method, tuple(parents), groups, lambda_, seed, rules)


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
    shuffled = replace(
        recipe,
        parents=tuple(recipe.parents[i] for i in order),
        coefficients={g: recipe.coefficients[g].permuted(order) for g in groups},
    )
    assert shuffled.digest == recipe.digest
    assert shuffled.canonical == recipe.canonical
    assert [shuffled.setting(g) for g in GROUPS] == [recipe.setting(g) for g in GROUPS]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (
            '{"method": "dare_ties", "parents": ["math", "code"], "coefficients": {"embed": '
            '{"weights": [0.5, -0.25], "drop_rates": [0.0, 0.9]}, "layers.3.attn": {"weights": '
            '[0.1, 1.0], "drop_rates": [0.5, 0.3]}}, "lambda": 0.7, "mask_seed": 42}',
            "6d5bda1efd67079a53fab6fae26e387e6c574fd866bb66f30be65f271030a98d",
        ),
        (
            '{"method": "linear", "parents": ["a", "b"], "coefficients": {"head": {"weights": '
            '[0.5, 0.5], "drop_rates": [0.0, 0.0]}}, "lambda": 1.0, "mask_seed": 0}',
            "e05bcac11b2bc929ccdbca4b86d56dd83316040b8ddc167bc01a8a45162f6da6",
        ),
    ],
)
def test_recipes_written_by_version_0_1_read_as_they_were(text, digest):
    recipe = Recipe.from_json(text)
    assert recipe.to_json() == text
    assert recipe.digest == digest


def test_digest_depends_on_every_part():
    kwargs = {"weight": 0.5, "drop_rate": 0.5, "lambda_": 0.9, "mask_seed": 3}
    changes = {"weight": 0.51, "drop_rate": 0.4, "lambda_": 1.0, "mask_seed": 4}
    digests = {Recipe.uniform("dare_linear", "ab", GROUPS, **kwargs).digest}
    for key, value in changes.items():
        digests.add(Recipe.uniform("dare_linear", "ab", GROUPS, **{**kwargs, key: value}).digest)
    digests.add(Recipe.uniform("dare_ties", "ab", GROUPS, **kwargs).digest)
    digests.add(Recipe.uniform("dare_linear", "ac", GROUPS, **kwargs).digest)
    plain = Recipe.uniform("dare_ties", "ab", GROUPS, **kwargs)
    own = {"parameters": {"normalize": (0.0,)}, "method": "ties", "lambda_": 0.3}
    for key, value in own.items():
        head = replace(plain.coefficients["head"], **{key: value})
        changed = replace(plain, coefficients={**plain.coefficients, "head": head})
        digests.add(changed.digest)
    digests.add(replace(plain, layer_groups=(("*", "head"),)).digest)
    assert len(digests) == 11


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


def test_a_setting_has_the_parents_that_take_part_and_every_default():
    recipe = Recipe(
        "breadcrumbs",
        ("z", "none", "tiny", "a"),
        {
            "embed": Coefficients((0.5, 0.0, 1e-300, -1.0), (0.1, 0.2, 0.3, 0.4)),
            "head": Coefficients(
                (0.5, 0.0, 0.0, -1.0), (0.0,) * 4, {"t": (0.1, 0.2, 0.3, 0.4)}, "nearswap"
            ),
            "router": Coefficients((1e-30, 1.0, 1.0, 1.0), (0.0,) * 4, lambda_=1e-20),
        },
        lambda_=0.5,
        mask_seed=7,
    )
    embed = recipe.setting("embed")
    assert embed is recipe.setting("embed")
    assert (embed.method, embed.parents, embed.weights) == ("breadcrumbs", ("a", "z"), (-1.0, 0.5))
    assert (embed.drop_rates, embed.lambda_, embed.mask_seed) == ((0.4, 0.1), 0.5, 7)
    assert embed.parameters == {"gamma": (0.01, 0.01)}
    head = recipe.setting("head")
    assert (head.method, head.lambda_, head.parameters["t"]) == ("nearswap", 1.0, (0.4, 0.1))
    router = recipe.setting("router")
    assert (router.parents, router.lambda_) == (("a", "none", "tiny"), 1e-20)
    assert [row.name for row in recipe.methods] == ["breadcrumbs", "nearswap"]
    assert hash(embed) == hash(replace(embed, parameters=dict(embed.parameters)))
    with pytest.raises(ValueError, match=r"needs coefficients for each .* got none for vision; it"):
        recipe.setting("vision")


def test_rules_decide_the_group_of_a_tensor():
    rule = ("*.layers.{layer}.*.q_proj.*", "layers.{layer}.q")
    recipe = Recipe.uniform("linear", "ab", ("layers.3.q",), 0.5, layer_groups=(rule,))
    assert recipe.grouping.group("model.layers.3.self_attn.q_proj.weight").name == "layers.3.q"
    assert json.loads(recipe.to_json())["layer_groups"] == [list(rule)]
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_uniform_takes_parameters_shared_or_per_parent():
    recipe = Recipe.uniform(
        "della", "ab", GROUPS, 0.5, 0.5, parameters={"normalize": 0, "epsilon": {"b": 0.1, "a": 1}}
    )
    assert recipe.coefficients["head"].parameters == {"epsilon": (1.0, 0.1), "normalize": (0.0,)}


def uniform(method="dare_ties", parents=("a", "b"), groups=GROUPS, weight=0.5, **kwargs) -> Recipe:
    return Recipe.uniform(method, parents, groups, weight, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "tise"}, "`method` must name a known merge method, got 'tise'; did you mean"),
        ({"method": "?"}, "got '[?]'; choose one of linear, "),
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
            {"method": "della", "parameters": {"epsilom": 0.1}},
            "method `della` has no parameter `epsilom`; did you mean `epsilon`",
        ),
        (
            {"method": "linear", "parameters": {"t": 0.1}},
            "method `linear` has no parameter `t`; it has none",
        ),
        (
            {"method": "della", "parameters": {"zzz": 0.1}},
            "no parameter `zzz`; it has epsilon, normalize",
        ),
        (
            {"method": "della", "parameters": {"epsilon": 1.5}},
            r"`epsilon` must be in \[0, 1\], got 1.5 in layer group embed; its default is 0.3",
        ),
        ({"parameters": {"normalize": float("nan")}}, "`normalize` must be a finite number, got"),
        (
            {"method": "della", "parameters": {"normalize": {"a": 0, "b": 0}}},
            "`normalize` needs a single number .1., got 2 in layer group embed",
        ),
        (
            {"layer_groups": (("*", "Head"),)},
            "a layer group is named `embed`, `head` or .* got 'Head'",
        ),
        (
            {"method": "slerp", "parents": "abc"},
            "method `slerp` merges at most 2 parents at a time, got 3 weights other than 0 in",
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
    short = Coefficients((1.0, 1.0), (0.0, 0.0), {"t": (0.1,)})
    with pytest.raises(ValueError, match=r"`t` needs one number per parent \(2\), got 1 in"):
        Recipe("nearswap", ("a", "b"), {"head": short})


def test_a_groups_own_method_and_lambda_are_checked():
    with pytest.raises(ValueError, match=r"`method` must name a known .* did you mean `ties`"):
        Coefficients((1.0,), (0.0,), method="tise")
    own = Coefficients((1.0,), (0.0,), method="slerp", lambda_=0.5)
    with pytest.raises(
        ValueError, match=r"method `slerp` has no lambda, .* got 0.5 in layer group"
    ):
        Recipe("ties", ("a",), {"head": own})
    # The recipe's lambda goes to the groups whose method has one.
    mixed = Recipe("ties", ("a",), {"head": replace(own, lambda_=None), "embed": EMBED}, 0.5)
    assert (mixed.setting("head").lambda_, mixed.setting("embed").lambda_) == (1.0, 0.5)


def head(data, **values):
    entry = data["coefficients"]["head"] | values
    return data | {"coefficients": data["coefficients"] | {"head": entry}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d | {"lamda": 1}, "recipe: unknown key `lamda`; did you mean `lambda`"),
        (lambda d: d | {"zzz": 1}, "recipe: unknown key `zzz`; known: method, parents"),
        (lambda d: {k: v for k, v in d.items() if k != "parents"}, "recipe: missing key `parents`"),
        (
            lambda d: d | {"coefficients": {"head": {"weights": [1]}}},
            "recipe: head: missing key `drop_rates`",
        ),
        (lambda d: [d], "recipe: must be a mapping with keys method, .*; got"),
        (lambda d: d | {"parents": "ab"}, "`parents` must be a list, got 'ab'; put it in"),
        (lambda d: d | {"coefficients": [1]}, "recipe: `coefficients` must be a mapping, got"),
        (lambda d: head(d, weights=1), "`weights` must be a list, got 1; put it in"),
        (lambda d: head(d, parameters=[]), "recipe: head: `parameters` must be a mapping, got"),
        (lambda d: head(d, parameters={"normalize": 0}), "`normalize` must be a list, got 0"),
        (lambda d: head(d, epsilon=1), "recipe: head: unknown key `epsilon`; known"),
        (lambda d: d | {"layer_groups": [["*"]]}, r"is a pair \[pattern, group name\], got"),
        (lambda d: d | {"layer_groups": ["*"]}, "`layer_groups` must be a list, got '[*]'"),
    ],
)
def test_bad_json_is_refused_by_key(edit, message):
    data = edit(uniform().to_dict())
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(json.dumps(data))


def test_broken_json_is_refused():
    with pytest.raises(ValueError, match="a recipe is a JSON object, got broken JSON"):
        Recipe.from_json("{")
