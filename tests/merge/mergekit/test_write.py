"""Recipes become mergekit's YAML, and what is written reads back as the same recipe."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from heterosis.merge.mergekit.file import parse_text
from heterosis.merge.mergekit.parameters import MergekitError
from heterosis.merge.mergekit.read import translate
from heterosis.merge.mergekit.rules import RULES, rule_of
from heterosis.merge.mergekit.text import conditions, text_of
from heterosis.merge.mergekit.write import InexpressibleError, write_mergekit
from heterosis.merge.recipe import arithmetic, methods
from heterosis.merge.recipe.coefficients import Coefficients
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.methods import Method
from heterosis.merge.recipe.plans import Combination
from heterosis.merge.recipe.recipe import Recipe, plan_tensor

from .files import EQUAL, TENSORS, drawn


class SomeStatistics:
    """Statistics made up from names, the same for the same tensor and parents."""

    def __init__(self, tensor: str, names: dict[str, str]) -> None:
        self.tensor, self.names = tensor, names

    def _number(self, *what: object) -> float:
        return random.Random(repr((self.tensor, *what))).uniform(0.5, 1.0)

    def gram(self, parents: Sequence[str]) -> list[list[float]]:
        points = [[self._number(n, k) for k in range(6)] for n in ("base", *self._ours(parents))]
        return [[sum(a * b for a, b in zip(p, q, strict=True)) for q in points] for p in points]

    def magnitude(self, parent: str, drop_rate: float) -> float:
        return round(drop_rate * 1000) and round(drop_rate * 1000) + self._number(
            self.names[parent]
        )

    def variance(
        self, parents: Sequence[str], select_topk: float
    ) -> tuple[float, tuple[float, ...]]:
        return select_topk, tuple(self._number(parent) for parent in self._ours(parents))

    def _ours(self, parents: Sequence[str]) -> list[str]:
        return [self.names[parent] for parent in parents]


def write(recipe: Recipe, **kwargs) -> str:
    models = {name: f"/models/{name}" for name in ("base", *recipe.parents)}
    return write_mergekit(recipe, TENSORS, models, out_dtype="bfloat16", **kwargs)


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_written_reads_back_as_the_same_plans(method, seed):
    ours = drawn(method, seed)
    again = translate(parse_text(write(ours)), TENSORS).recipe
    names = dict(zip(again.parents, ours.parents, strict=True))
    for tensor in TENSORS:
        first = plan_tensor(
            ours, tensor, SomeStatistics(tensor, dict(zip(*[ours.parents] * 2, strict=True)))
        )
        second = plan_tensor(again, tensor, SomeStatistics(tensor, names))
        if method in (*EQUAL, "nuslerp", "multislerp") and isinstance(first, Combination):
            assert isinstance(second, Combination)
            assert second.coefficients == pytest.approx(first.coefficients, rel=1e-12)
        elif method != "karcher":
            assert second == first


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear"])
def test_rules_for_layer_groups_are_written_as_filters(method):
    rules = (("*.layers.{layer}.*.q_proj.*", "layers.{layer}.q"), ("lm_head.*", "out"))
    groups = Grouping(rules).names(TENSORS)
    recipe = drawn(method, 0, groups)
    recipe = Recipe(method, recipe.parents, recipe.coefficients, layer_groups=rules)
    again = translate(parse_text(write(recipe)), TENSORS).recipe
    for tensor in TENSORS:
        ours = recipe.setting(recipe.grouping.group(tensor).name)
        theirs = again.setting(again.grouping.group(tensor).name)
        assert (ours.weights, ours.drop_rates) == (theirs.weights, theirs.drop_rates)


def uniform(method: str, weight: Any = 0.5, drop_rate=0.0, parents=("p", "q"), **kwargs) -> Recipe:
    return Recipe.uniform(method, parents, Grouping().names(TENSORS), weight, drop_rate, **kwargs)


def test_the_form_is_the_one_that_survives():
    text = write(uniform("dare_ties", 0.5, 0.3, mask_seed=7), tokenizer="union")
    data = yaml.safe_load(text)
    assert data == {
        "merge_method": "dare_ties",
        "base_model": "/models/base",
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "tokenizer_source": "union",
        "parameters": {"lambda": 1.0, "normalize": True, "rescale": True},
        "models": [
            {"model": "/models/p", "parameters": {"weight": 0.5, "density": 0.7}},
            {"model": "/models/q", "parameters": {"weight": 0.5, "density": 0.7}},
        ],
    }
    assert "# mergekit draws other random masks than mask_seed 7 did here." in text


def test_numbers_are_numbers_to_pyyaml():
    text = write(uniform("task_arithmetic", {"p": 1e-5, "q": 3.0}, lambda_=1e-20))
    data = yaml.safe_load(text)
    weights = [model["parameters"]["weight"] for model in data["models"]]
    assert weights == [1e-5, 3.0]
    assert all(isinstance(weight, float) for weight in weights)
    assert data["parameters"]["lambda"] == 1e-20


def test_filters_keep_their_dots_and_end_with_one_that_fits_all():
    values = {f"model.layers.{i}.mlp.weight": i for i in range(12)} | {"model.norm.weight": 3}
    found = conditions(values)
    assert found[-1].filter is None
    assert [c.filter for c in found[:2]] == ["layers.0.", "layers.1."]
    assert {c.value for c in found} == set(range(12))


@pytest.mark.parametrize(
    "names",
    [
        ("model.layers.1.w", "vision_model.layers.1.w", "x"),
        ("a.b", "z.a.b", "z.a.b.c", "a"),
        ("w", "ww", "www"),
        ("b.layers.1.w", "layers.1.w", "layers.1"),
    ],
)
def test_filters_that_are_parts_of_other_names_do_not_mislead(names):
    for values in ((1, 2, 3, 4), (1, 2, 1, 2), (2, 1, 1, 2), (1, 1, 2, 3)):
        wanted = dict(zip(names, values, strict=False))
        found = conditions(wanted)
        for name, value in wanted.items():
            assert next(c for c in found if c.applies(name)).value == value


@pytest.mark.parametrize(
    "text", ["/a/b", "yes", "12", "a b", "ü/x", "org/m@c1", "a: b", "null", "'"]
)
def test_text_is_read_back_as_it_is(text):
    assert yaml.safe_load(f"k: {text_of(text)}") == {"k": text}


def mixed() -> Recipe:
    recipe = uniform("ties")
    embed = Coefficients((0.5, 0.5), (0.0, 0.0), {}, "linear")
    return Recipe("ties", ("p", "q"), {**recipe.coefficients, "embed": embed})


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (mixed(), "mergekit has one method for all tensors, this recipe has linear, ties"),
        (uniform("ties", -0.5), "flips the sign of a negative weight .-0.5."),
        (uniform("della", 0.5, 0.1), "refuses drop probabilities that leave .0, 1.: drop rate 0.1"),
        (uniform("karcher", {"p": 1, "q": 2}), "`karcher` weighs all models equally, here weights"),
        (uniform("karcher", parameters={"deltas": 1}), "of full weights; set `deltas` to 0"),
        (uniform("sce", lambda_=0.5), "`sce` has no lambda, here it is 0.5"),
        (uniform("model_stock", parents=("p",)), "`model_stock` merges two models or more"),
        (
            uniform("nearswap"),
            "`nearswap` merges one model with weight 1, here weights are 0.5, 0.5",
        ),
        (uniform("arcee_fusion", 0.5, parents=("p",)), "merges one model with weight 1, here"),
        (uniform("nuslerp", parents=("p",)), "copies a single model, here its weight is 0.5"),
        (uniform("nuslerp", 1.0, parents=("p",)), "`nuslerp` merges exactly two models"),
        (uniform("multislerp", {"p": 1, "q": -1}), "has no ratio for weights that sum to 0"),
        (uniform("multislerp", 0.0), "has no ratio for weights that sum to 0"),
    ],
)
def test_what_mergekit_has_no_words_for(recipe, reason):
    with pytest.raises(InexpressibleError, match=reason) as refused:
        write(recipe)
    assert "\n" not in str(refused.value)


def test_a_method_of_ours_that_mergekit_lacks_is_not_expressible(monkeypatch):
    row = Method("halved", arithmetic.task_arithmetic, "none", "a method of a user")
    monkeypatch.setitem(methods._BY_NAME, "halved", row)
    with pytest.raises(InexpressibleError, match="mergekit has no method `halved`"):
        write(uniform("halved"))
    with pytest.raises(MergekitError, match="mergekit has no `halved`; give a recipe"):
        rule_of("halved")


def test_a_merge_of_full_weights_names_no_base():
    text = write(uniform("slerp", {"p": 1.0, "q": 3.0}))
    data = yaml.safe_load(text)
    assert (data["merge_method"], "base_model" in data) == ("nuslerp", False)
    assert "here they were /models/base's" in text
    with pytest.raises(InexpressibleError, match="without a base_model, whose tokenizer"):
        write(uniform("slerp"), tokenizer="union")


def test_the_base_has_what_linear_leaves():
    data = yaml.safe_load(write(uniform("linear", {"p": 0.3, "q": 0.1})))
    assert data["parameters"] == {"normalize": False}
    assert data["models"][0] == {"model": "/models/base", "parameters": {"weight": 0.6}}


def test_the_base_itself_can_be_written():
    for method in ("linear", "task_arithmetic", "ties", "dare_linear"):
        again = translate(parse_text(write(uniform(method, 0.0))), TENSORS).recipe
        assert again.setting("embed").parents == ()
