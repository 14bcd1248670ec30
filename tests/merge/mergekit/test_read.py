"""mergekit's YAML becomes a recipe: values, precedence, methods, refusals and notes."""

import contextlib
import copy
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from heterosis.merge.mergekit.file import ModelRef, parse, parse_text
from heterosis.merge.mergekit.groups import group_tensors
from heterosis.merge.mergekit.parameters import MergekitError
from heterosis.merge.mergekit.read import Translation, models_of, translate
from heterosis.merge.mergekit.rules import RULES
from heterosis.merge.recipe.coefficients import Coefficients
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.methods import METHODS

from .files import TENSORS

Q0, Q1, Q3 = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1, 3))
K0, UP2 = "model.layers.0.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight"


def read(text: str, tensors=TENSORS, **kwargs) -> Translation:
    return translate(parse_text(text), tensors, **kwargs)


def at(translation: Translation, tensor: str) -> Coefficients:
    recipe = translation.recipe
    return recipe.coefficients[recipe.grouping.group(tensor).name]


def weights(text: str, *tensors: str) -> list[float]:
    """Weights of the first model at some tensors."""
    translation = read(text)
    return [at(translation, tensor).weights[0] for tensor in tensors]


def arithmetic(weight: str, extra: str = "") -> str:
    """task_arithmetic of one model with a weight, as YAML."""
    return (
        "{merge_method: task_arithmetic, base_model: b, models: [{model: a, parameters: "
        f"{{weight: {weight}}}}}]{extra}}}"
    )


def two(method: str, parameters: str = "", first: str = "weight: 1", second: str = "weight: 1"):
    """A merge of two models beside a base, as YAML."""
    return (
        f"merge_method: {method}\nbase_model: b\nparameters: {{{parameters}}}\nmodels:\n"
        f"- {{model: m/x, parameters: {{{first}}}}}\n- {{model: m/y, parameters: {{{second}}}}}\n"
    )


@pytest.mark.parametrize(
    ("value", "number"),
    [("0.5", 0.5), ("1e-05", 1e-5), ("'0.25'", 0.25), ("1", 1.0), ("true", 1.0), ("-.5", -0.5)],
)
def test_numbers_are_read_as_mergekit_reads_them(value, number):
    assert weights(arithmetic(value), Q0) == [number]


@pytest.mark.parametrize("value", [".nan", ".inf", "abc", "1e400", "null", "[0.1, .nan]"])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(MergekitError, match=r"weight(\[1\])? must be a finite number, got"):
        read(arithmetic(value))


def test_a_flag_that_is_none_is_refused():
    with pytest.raises(MergekitError, match=r"parameters.normalize must be `true` or `false`, got"):
        read(two("ties", "normalize: maybe"))


def test_gradients_are_linear_in_layers_and_the_ends_take_the_first_value():
    found = weights(arithmetic("[0, 0.3]"), TENSORS[0], Q0, Q1, UP2, Q3, *TENSORS[-2:])
    assert found == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3, 0.0, 0.0])
    assert weights(arithmetic("[0, 1, 0.5]"), Q1, UP2, Q3) == pytest.approx([2 / 3, 5 / 6, 0.5])


def test_a_gradient_over_one_layer_takes_the_last_value():
    text = arithmetic("[0.2, 0.8]")
    found = read(text, [Q0, "model.norm.weight"])
    assert at(found, Q0).weights == (0.8,)
    assert at(found, "model.norm.weight").weights == (0.2,)


def test_a_tower_has_a_gradient_over_its_own_layers():
    tower = [f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in range(3)]
    found = read(arithmetic("[0, 1]"), (*TENSORS, *tower))
    assert [at(found, tensor).weights[0] for tensor in tower] == [0.0, 0.5, 1.0]
    assert at(found, Q1).weights[0] == pytest.approx(1 / 3)


def test_filters_are_parts_of_names_and_the_first_that_hits_decides():
    text = arithmetic(
        "[{filter: self_attn, value: 0.1}, {filter: layers.0., value: [0.2, 0.3]}, {value: 0.4}]"
    )
    assert weights(text, Q0, "model.layers.0.mlp.up_proj.weight", UP2) == [0.1, 0.2, 0.4]
    everywhere = arithmetic("[{filter: '*', value: 0.6}, {filter: q_proj, value: 9}]")
    assert weights(everywhere, Q0, UP2) == [0.6, 0.6]


def test_filters_that_miss_leave_the_tensor_to_the_next_level():
    text = """
    merge_method: task_arithmetic
    base_model: b
    parameters: {weight: 0.7}
    models: [{model: a, parameters: {weight: [{filter: q_proj, value: 0.1}]}}]
    """
    assert weights(text, Q0, UP2) == [0.1, 0.7]


SLICES = """
merge_method: task_arithmetic
base_model: b
parameters: {weight: 0.4}
slices:
- sources:
  - {model: b, layer_range: [0, 2]}
  - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 0.1}]}}
  parameters: {weight: [{filter: q_proj, value: 0.2}, {filter: embed, value: 0.3}]}
- sources:
  - {model: b, layer_range: [2, 4]}
  - {model: a, layer_range: [2, 4], parameters: {weight: [0.5, 0.6]}}
"""


def test_precedence_is_source_then_slice_then_top():
    assert weights(SLICES, "model.layers.1.mlp.up_proj.weight", Q1, K0) == [0.1, 0.2, 0.4]


def test_embeddings_take_the_first_slice_norm_and_head_the_last():
    assert weights(SLICES, TENSORS[0], *TENSORS[-2:]) == [0.3, 0.5, 0.5]
    assert weights(SLICES, UP2, Q3) == [0.5, 0.6]


def test_a_model_that_a_slice_leaves_out_has_weight_0_there():
    text = SLICES.replace("- {model: a, layer_range: [2, 4]", "- {model: c, layer_range: [2, 4]")
    found = read(text)
    assert found.recipe.parents == ("a", "c")
    assert at(found, Q3).weights == (0.0, 0.6)
    assert at(found, K0).weights == (0.4, 0.0)


def test_methods_of_two_may_have_another_partner_in_each_slice():
    text = SLICES.replace("- {model: a, layer_range: [2, 4]", "- {model: c, layer_range: [2, 4]")
    text = text.replace("weight: 0.4}", "weight: 0.4, t: 0.5}")
    slerp = read(text.replace("task_arithmetic", "slerp"))
    assert (at(slerp, Q0).weights, at(slerp, Q3).weights) == ((0.5, 0.0), (0.0, 0.5))
    near = read(text.replace("task_arithmetic", "nearswap"))
    assert (at(near, Q0).weights, at(near, Q3).weights) == ((1.0, 0.0), (0.0, 1.0))
    assert at(near, Q3).parameters == {"t": (0.5, 0.5)}


def test_a_module_stands_between_slice_and_top():
    text = """
    merge_method: task_arithmetic
    base_model: b
    parameters: {weight: 0.4, lambda: 2}
    modules:
      default:
        parameters: {weight: [{filter: q_proj, value: 0.3}]}
        models: [{model: a, parameters: {weight: [{filter: layers.3., value: 0.1}]}}]
    """
    assert weights(text, Q3, Q0, K0) == [0.1, 0.3, 0.4]
    assert read(text).recipe.lambda_ == 2.0


def test_density_is_one_minus_drop_rate_to_the_digit():
    found = read(two("ties", first="weight: 0.5, density: 0.7", second="weight: 1, density: 0.1"))
    assert at(found, Q0).drop_rates == (0.3, 0.9)


def test_a_parent_without_density_drops_nothing_and_density_0_drops_all():
    found = read(two("dare_linear", first="weight: 0.5, density: 0", second="weight: 1"))
    assert at(found, Q0).weights == (0.0, 1.0)
    assert at(found, Q0).drop_rates == (0.0, 0.0)


NORMALIZES = {"ties": 1.0, "della": 1.0, "dare_ties": 0.0, "breadcrumbs_ties": 0.0}


@pytest.mark.parametrize("method", NORMALIZES)
def test_normalize_has_the_default_of_each_method(method):
    assert at(read(two(method)), Q0).parameters["normalize"] == (NORMALIZES[method],)
    asked = at(read(two(method, "normalize: true")), Q0)
    assert asked.parameters["normalize"] == (1.0,)
    assert asked.weights == (1.0, 1.0)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"]
)
def test_normalize_without_election_divides_the_weights(method):
    kept, divided = (
        read(two(method, second="weight: 3")),
        read(two(method, "normalize: 1", second="weight: 3")),
    )
    assert at(kept, Q0).weights == (1.0, 3.0)
    assert at(divided, Q0).weights == (0.25, 0.75)


def test_weights_that_cancel_are_refused_under_normalize():
    text = two("task_arithmetic", "normalize: true", "weight: 0.5", "weight: -0.499")
    with pytest.raises(MergekitError, match=r"weights 0.5, -0.499 nearly cancel at tensor .*; set"):
        read(text)
    assert at(read(text.replace("true", "false")), Q0).weights == (0.5, -0.499)


def test_negative_weights_are_refused_where_the_elected_mean_is_taken():
    text = two("ties", "", "weight: 0.5", "weight: -0.499")
    with pytest.raises(MergekitError, match=r"`ties` with normalize: true and a negative weight"):
        read(text)
    found = read(two("ties", "normalize: false", "weight: 0.5", "weight: -0.499"))
    assert at(found, Q0).weights == (0.5, -0.499)


def test_lambda_may_differ_between_tensors():
    found = read(two("ties", "lambda: [{filter: q_proj, value: 0.5}, {value: 2}]"))
    assert (at(found, Q0).lambda_, at(found, UP2).lambda_) == (0.5, 2.0)
    assert read(two("ties", "lambda: 0.5")).recipe.lambda_ == 0.5


def test_without_rescale_dare_keeps_what_survives_as_it_is():
    density = "weight: 1, density: 0.25"
    plain = read(two("dare_linear", "rescale: false", density, "weight: 0.5"))
    assert at(plain, Q0).weights == (0.25, 0.5)
    mean = read(two("dare_ties", "rescale: false, normalize: true", density, density))
    assert at(mean, Q0).weights == (1.0, 1.0)
    assert mean.recipe.lambda_ == 0.25
    with pytest.raises(MergekitError, match="densities that differ between models is not"):
        read(two("dare_ties", "rescale: false, normalize: true", density, "weight: 1"))


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_rescale_of_a_trim_is_refused(method):
    with pytest.raises(MergekitError, match=f"`{method}` with rescale: true, which .* set rescale"):
        read(two(method, "rescale: true", "weight: 1, density: 0.5"))
    read(two(method, "rescale: true"))  # without effect: nothing is dropped


def test_della_without_rescale_is_refused():
    density = "weight: 1, density: 0.5"
    with pytest.raises(MergekitError, match="`della` with rescale: false is not supported: here"):
        read(two("della", "rescale: false", density))
    even = "weight: 1, density: 0.5, epsilon: 0"
    assert at(read(two("della_linear", "rescale: false", even)), Q0).weights == (0.5, 1.0)


def test_della_has_half_the_window_and_keeps_it_inside_0_and_1():
    found = read(two("della", "epsilon: 0.2", "weight: 1, density: 0.5"))
    assert at(found, Q0).parameters["epsilon"] == (0.4, 0.4)
    for density in ("0.85", "0.15"):
        with pytest.raises(
            MergekitError, match=r"`density` -\+ `epsilon` must stay inside \(0, 1\)"
        ):
            read(two("della", "", f"weight: 1, density: {density}"))
    with pytest.raises(MergekitError, match="use an epsilon of at least 0"):
        read(two("della", "epsilon: -0.1", "weight: 1, density: 0.5"))


def test_breadcrumbs_has_gamma():
    found = read(two("breadcrumbs", "gamma: 0.02", "weight: 1, density: 0.9"))
    assert at(found, Q0).parameters["gamma"] == (0.02, 0.02)
    assert at(read(two("breadcrumbs")), Q0).parameters["gamma"] == (0.01, 0.01)
    with pytest.raises(MergekitError, match=r"`gamma` must be in \[0, 1\], got -1; use 0"):
        read(two("breadcrumbs", "gamma: -1"))


def test_linear_averages_all_that_is_named_and_the_first_stands_for_the_base():
    models = "[{model: x}, {model: y, parameters: {weight: 3}}]"
    text = f"{{merge_method: linear, parameters: {{weight: 1}}, models: {models}}}"
    assert models_of(parse_text(text)).base == ModelRef("x")
    found = read(text)
    assert (found.recipe.parents, at(found, Q0).weights) == (("y",), (0.75,))


def test_linear_counts_a_base_model_that_is_named():
    text = two("linear", "weight: 1", "", "weight: 2")
    assert at(read(text), Q0).weights == (0.25, 0.5)
    with pytest.raises(MergekitError, match=r"the parameter `weight` of b has no value for tensor"):
        read(two("linear"))


def test_linear_without_normalize_must_sum_to_1():
    listed = "merge_method: linear\nparameters: {normalize: false}\nmodels:\n"
    sources = [
        f"- {{model: {n}, parameters: {{weight: {w}}}}}\n" for n, w in (("x", 0.3), ("y", 0.7))
    ]
    assert at(read(listed + "".join(sources)), Q0).weights == (0.7,)
    text = listed + "".join(sources).replace("0.7", "1.7")
    with pytest.raises(
        MergekitError, match=r"weights that sum to 1, got 2.0 at tensor .* use normal"
    ):
        read(text)
    with pytest.raises(MergekitError, match="weights 1, -1 nearly cancel"):
        read(text.replace("false", "true").replace("0.3", "1").replace("1.7", "-1"))


def test_slerp_goes_from_the_base_to_the_other():
    models = "[{model: b}, {model: x}]"
    text = f"{{merge_method: slerp, base_model: b, models: {models}, parameters: {{t: [0, 1]}}}}"
    found = read(text)
    assert found.recipe.parents == ("x",)
    assert [at(found, tensor).weights[0] for tensor in (Q0, Q3, TENSORS[-1])] == [0.0, 1.0, 0.0]
    with pytest.raises(MergekitError, match="merges exactly 1 model beside the base_model, got 2"):
        read(two("slerp", "t: 0.5"))
    with pytest.raises(
        MergekitError, match=r"the parameter `t` has no value for tensor .*top `par"
    ):
        read(text.replace("t: [0, 1]", ""))


def test_nuslerp_is_between_deltas_with_a_base_and_between_models_without():
    found = read(two("nuslerp", first="weight: 0.3", second="weight: 0.6"))
    assert at(found, Q0) == Coefficients((0.3, 0.6), (0.0, 0.0), {"deltas": (1.0,)})
    bare = read(two("nuslerp").replace("base_model: b\n", ""))
    assert at(bare, Q0).parameters == {"deltas": (0.0,)}
    assert bare.recipe.parents == ("x", "y")
    cancelled = read(two("nuslerp", first="weight: 1", second="weight: -1"))
    assert at(cancelled, Q0).weights == (0.5, 0.5)
    alone = read(two("nuslerp", first="weight: 0.3", second="weight: 0"))
    assert at(alone, Q0).weights == (1.0, 0.0)
    with pytest.raises(MergekitError, match=r"`nuslerp_flatten: false` .row by row. is not suppor"):
        read(two("nuslerp", "nuslerp_flatten: false"))


def test_multislerp_counts_ratios():
    assert at(read(two("multislerp", first="weight: 2")), Q0).weights == (2.0, 1.0)
    with pytest.raises(MergekitError, match="normalize_weights: false must have weights that sum"):
        read(two("multislerp", "normalize_weights: false"))
    with pytest.raises(MergekitError, match="nearly cancel"):
        read(two("multislerp", first="weight: -1"))


def test_karcher_counts_a_base_model_as_one_more():
    found = read(two("karcher", first="", second=""))
    assert found.recipe.parents == ("x", "y", "b")
    assert at(found, Q0).weights == (1 / 3,) * 3
    bare = read(two("karcher", first="", second="").replace("base_model: b\n", ""))
    assert (bare.recipe.parents, at(bare, Q0).weights) == (("x", "y"), (0.5, 0.5))


def test_methods_that_weigh_all_models_alike():
    assert at(read(two("model_stock", first="", second="")), Q0).weights == (0.5, 0.5)
    found = read(two("sce", "select_topk: 0.4", "", ""))
    assert at(found, Q0).parameters == {"select_topk": (0.4,)}
    with pytest.raises(MergekitError, match="merges 2 or more models beside the base_model, got 1"):
        read("{merge_method: model_stock, base_model: b, models: [{model: x}]}")
    with pytest.raises(MergekitError, match=r"`filter_wise: true` .row by row. is not supported"):
        read(two("model_stock", "filter_wise: true"))


def test_methods_of_one_model():
    one = "{merge_method: METHOD, base_model: b, models: [{model: x}], parameters: {t: 0.01}}"
    near = at(read(one.replace("METHOD", "nearswap")), Q0)
    assert (near.weights, near.parameters) == ((1.0,), {"t": (0.01,)})
    assert at(read(one.replace("METHOD", "arcee_fusion")), Q0).weights == (1.0,)


def test_every_row_reads_and_writes_a_method_of_ours():
    assert set(RULES) <= set(METHODS)
    assert all(row.beyond is None or row.beyond in RULES for row in RULES.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping with the keys of a merge"),
        ("a: [", "not readable as YAML"),
        ("{models: [], merge_method: ties}", "exactly one of models, slices, modules; got none"),
        ("{models: [{model: x}]}", "the key `merge_method` is missing"),
        ("{merge_methd: ties}", "unknown key `merge_methd`; did you mean `merge_method`"),
        ("{merge_method: tis, base_model: b, models: [{model: x}]}", "did you mean `ties`"),
        ("{merge_method: ties, models: [{model: x}]}", "`ties` needs the key `base_model`"),
        ("{merge_method: passthrough, models: [{model: x}]}", "`passthrough` copies or stacks"),
        ("{merge_method: ram, base_model: b, models: [{model: x}]}", "`ram` is in mergekit alone"),
        ("{merge_method: zzzz, models: [{model: x}]}", "`zzzz` is unknown; known: linear"),
        ("{merge_method: 3, models: [{model: x}]}", "the key `merge_method` is missing"),
        ("{genome: {}, tasks: []}", "mergekit-evolve; write a search.yaml"),
        ("{experts: [], base_model: x}", "mergekit-moe"),
        (
            "{name: x, base: b, parents: {}, tasks: []}",
            "a configuration of `heterosis search`, not",
        ),
        (arithmetic("1", ", densty: 1"), "unknown key `densty`"),
        (arithmetic("1").replace("weight", "weigth"), "models.0..parameters: unknown key `weigth`"),
        (arithmetic("[{filter: 3, value: 1}]"), "filter must be part of a tensor's name, got 3"),
        (arithmetic("[{filter: a}]"), "the key `value` is missing"),
        (arithmetic("[{fliter: a, value: 1}]"), "unknown key `fliter`; did you mean `filter`"),
        (
            arithmetic("[1, {value: 1}]"),
            r"weight\[0\]: must be a mapping with keys filter, value; got 1",
        ),
        ("{a: 1, a: 2}", "duplicate key `a`"),
        (arithmetic("1").replace("model: a", "modl: a"), "unknown key `modl`"),
        (arithmetic("1").replace("model: a, ", ""), "the key `model` is missing"),
        (arithmetic("1").replace("model: a", "model: a@1@2"), "must be `path` or `path@revision`"),
        (arithmetic("1").replace("model: a", "model: a+b+c"), "one adapter per model, got 'a.b.c'"),
        (
            arithmetic("1").replace("model: a", "model: b"),
            "merges 1 or more models beside .* got 0",
        ),
        (
            arithmetic("1").replace("model: a", "model: c+l"),
            "its adapter lies over c, the base is b",
        ),
        (
            arithmetic("1").replace("base_model: b", "base_model: b+l"),
            "adapter over a model; merge",
        ),
        (arithmetic("1", ", tokenizer_source: union, tokenizer: {}"), "exclude each other"),
        (
            arithmetic("1", ", tokenizer_source: other/model"),
            "must be `base` or `union`, got other",
        ),
        (
            arithmetic("1", ", tokenizer: {tokens: {x: {}}}"),
            "`tokenizer.tokens` is not supported",
        ),
        (arithmetic("1", ", tokenizer: {pad_to_multiple_of: 8}"), "pad_to_multiple_of` is not sup"),
        (arithmetic("1", ", dtype: 3"), "`dtype` must be text, got 3"),
        (two("ties").replace("m/y", "m/x"), "the model m/x is listed twice"),
        (
            "{merge_method: ties, base_model: b, models: 3}",
            "must be a list of models or slices, got 3",
        ),
        (
            SLICES.replace("a, layer_range: [0, 2]", "a, layer_range: [1, 3]"),
            "layers of different dep",
        ),
        (
            SLICES.replace("[2, 4]", "[1, 4]"),
            r"slices.1. begins with layer 1 where layer 2 must follow",
        ),
        (SLICES.replace("[2, 4]", "[2, 3]"), "ends with layer 3, the model has 4"),
        (
            SLICES.replace("[2, 4]", "2"),
            r"layer_range must be \[first, end\) of the model's layers",
        ),
        (SLICES.replace("[2, 4]", "[4, 2]"), r"layer_range must be \[first, end\)"),
        (SLICES + "  base_model: c\n", "base_model is c, the file's base_model is b"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(text, message):
    with pytest.raises(MergekitError, match=message) as refused:
        read(text)
    assert "\n" not in str(refused.value)


def test_slices_of_a_model_with_two_towers_are_refused():
    with pytest.raises(
        MergekitError, match=r"layers in 2 places .* is not supported; use `models`"
    ):
        read(SLICES, (*TENSORS, "vision.layers.0.mlp.weight"))


def test_several_modules_are_refused():
    text = "{merge_method: linear, modules: {a: {models: []}, b: {models: []}}}"
    with pytest.raises(MergekitError, match="`modules` with several parts of a model is not"):
        read(text)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("{merge_method: ties}")
    with pytest.raises(MergekitError, match=f"{path}: there must be exactly one of"):
        parse(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MergekitError, match=r"not readable as YAML: .* save it as UTF-8"):
        parse(path)


def notes(text: str) -> str:
    return "\n".join(read(text).notes)


def test_what_is_not_quite_the_same_is_told():
    dropped = two("dare_ties", "", "weight: 1, density: 0.5")
    assert "masks come from a hash of mask_seed 0, not from the global" in notes(dropped)
    assert "realised ratio of L1 norms: equal in expectation" in notes(dropped)
    assert "mask_seed" not in notes(two("dare_ties"))
    della = notes(two("della", "", "weight: 1, density: 0.5"))
    assert "small entries are smaller" in della
    assert "dtype: bfloat16: mergekit rounds weights and deltas" in notes(
        "dtype: bfloat16\n" + two("ties")
    )
    assert "densities are rounded to 0.001: 0.3333 becomes 0.333" in notes(
        two("ties", "", "weight: 1, density: 0.3333")
    )
    assert "no sign is elected" in notes(two("ties"))
    assert read(arithmetic("1")).notes == ()


def test_parameters_without_effect_are_told():
    assert "`t` is no parameter of `ties` and does nothing" in notes(two("ties", "t: 0.5"))
    found = notes(two("linear", "t: 0.5, gamma: 1, weight: 1", second="weight: 1, density: 1"))
    assert "`density`, `gamma`, `t` are no parameters of `linear` and do nothing" in found
    found = notes(two("ties", "", "weight: 1, normalize: false"))
    assert "models[0].parameters.normalize does nothing, as in mergekit; it belongs under" in found


def test_names_of_parents_are_told_apart():
    text = two("ties").replace("m/x", "m/base").replace("m/y", "n/base")
    assert read(text).recipe.parents == ("base_2", "base_3")
    text = two("ties").replace("m/x", "org/My Model.v2@main").replace("m/y", "b+ad/lora")
    models = models_of(parse_text(text))
    assert dict(models.parents) == {
        "My-Model-v2": ModelRef("org/My Model.v2", "main"),
        "lora": ModelRef("b", None, ModelRef("ad/lora")),
    }


def test_models_may_be_written_out():
    text = (
        two("ties")
        .replace("model: m/x", "model: {model: {path: m/x, revision: r}, lora: {path: l}}")
        .replace("base_model: b", "base_model: {model: {path: m/x, revision: r}}")
    )
    models = models_of(parse_text(text))
    assert (str(models.base), str(models.parents["l"])) == ("m/x@r", "m/x@r+l")
    bad = two("ties").replace("model: m/x", "model: {model: m/x, override_architecture: X}")
    with pytest.raises(MergekitError, match="override_architecture is not supported"):
        models_of(parse_text(bad))


def test_tokenizers():
    assert parse_text(arithmetic("1", ", tokenizer_source: union")).tokenizer == "union"
    assert parse_text(arithmetic("1", ", tokenizer: {source: base}")).tokenizer == "base"
    assert parse_text(arithmetic("1", ", tokenizer_source: b")).tokenizer == "base"
    assert parse_text(arithmetic("1")).tokenizer is None


def test_groups_are_made_finer_only_where_a_filter_goes_through_one():
    recipe = read(arithmetic("[{filter: q_proj, value: 1}, {value: 0.5}]")).recipe
    assert recipe.layer_groups == (
        ("model.layers.{layer}.self_attn.k_proj.weight", "layers.{layer}.attn_k_proj"),
    )
    assert set(Grouping().names(TENSORS)) < set(recipe.coefficients)
    assert read(arithmetic("[{filter: mlp, value: 1}, {value: 0.5}]")).recipe.layer_groups == ()


def test_groups_outside_the_layers_are_made_finer_by_whole_names():
    recipe = read(arithmetic("[{filter: lm_head, value: 1}, {value: 0.5}]")).recipe
    assert recipe.layer_groups == (("lm_head.weight", "head_lm_head"),)
    assert recipe.coefficients["head_lm_head"].weights == (1.0,)


def test_layers_that_lack_a_tensor_do_not_disturb_groups():
    rows = {
        tensor: Coefficients((float(number),), (0.0,))
        for number, tensor in enumerate(
            ("h.0.attn.a.weight", "h.0.attn.b.weight", "h.1.attn.b.weight", "h.2.attn.c.1.bias")
        )
    }
    rules, coefficients = group_tensors(rows)
    grouping = Grouping(rules)
    assert {t: coefficients[grouping.group(t).name] for t in rows} == rows


def test_reading_imports_no_torch():
    modules = "heterosis.merge.mergekit.read, heterosis.merge.mergekit.write"
    code = f"import sys, {modules}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(run.stdout.split())


def test_an_example_of_mergekits_readme(tmp_path):
    path = Path(tmp_path / "slerp.yml")
    path.write_text(
        """
slices:
  - sources:
      - {model: psmathur/orca_mini_v3_13b, layer_range: [0, 4]}
      - {model: garage-bAInd/Platypus2-13B, layer_range: [0, 4]}
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""
    )
    file = parse(path)
    assert file.dtype == "float16"
    recipe = translate(file, TENSORS).recipe
    found = {name: c.weights[0] for name, c in recipe.coefficients.items()}
    assert found["layers.0.attn"] == 0.0
    assert found["layers.3.attn"] == 1.0
    assert found["layers.3.mlp"] == 0.0
    assert found["layers.1.other"] == found["embed"] == found["head"] == 0.5


ODD = (
    *(None, True, 0, -1, 1e300, 1e-300, float("nan"), "x", "", "1e-05", [], [0.1, 0.9], [[1]], {}),
    *({"filter": "mlp", "value": 0.3}, [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]),
    *([{"value": None}], "a@b", "a+b", "*", [1, {"value": 1}], 0.999999, -0.0, "base", 3),
)
PLAIN: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "parameters": {"normalize": False, "lambda": 1.0, "t": 0.5, "epsilon": 0.1, "gamma": 0.01},
    "models": [
        {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "b", "parameters": {"weight": [{"filter": "q", "value": [0, 1]}, {"value": 1}]}},
    ],
}


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    keys = range(len(value)) if isinstance(value, list) else value
    for key in keys if isinstance(value, dict | list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("method", RULES)
def test_odd_values_in_odd_places_are_read_or_refused(method):
    draw = random.Random(method)
    for _ in range(60):
        data: Any = copy.deepcopy(PLAIN) | {"merge_method": method}
        if METHODS[method].most_parents == 1 or method in ("slerp", "nearswap", "arcee_fusion"):
            del data["models"][1]
        for _ in range(draw.randint(1, 2)):
            *path, last = draw.choice(list(places(data)))
            place: Any = data
            for key in path:
                place = place[key]
            place[last] = copy.deepcopy(draw.choice(ODD))
        with contextlib.suppress(MergekitError):
            read(yaml.safe_dump(data))
