"""Exports: load in transformers, hold the resident model's bits, say how they were made."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.files.export import ExportError, export_model, read_record
from heterosis.merge.mergekit.file import parse
from heterosis.merge.mergekit.read import translate
from heterosis.merge.parents.parent_set import ParentSet
from heterosis.merge.recipe.recipe import Recipe
from transformers import AutoModelForCausalLM

from tests.families import tiny_family

from ..conftest import opened


def recipe(parents: ParentSet) -> Recipe:
    return Recipe.uniform("dare_ties", parents.names, parents.groups(), 0.6, 0.3, mask_seed=9)


def engine_of(parents: ParentSet, dtype: str) -> MergeEngine:
    engine = MergeEngine(parents, dtype=dtype)
    engine.load(recipe(parents))
    return engine


@pytest.fixture(scope="module")
def engine(parents: ParentSet) -> MergeEngine:
    return engine_of(parents, "bfloat16")


def save(engine: MergeEngine, out: Path, **kwargs) -> Path:
    made = recipe(engine.parents)
    return export_model(engine.targets, made, engine.parents, out, card="# A card\n", **kwargs)


def assert_same_weights(path: Path, model: Any) -> Any:
    again = type(model).from_pretrained(path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    return again


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_round_trip_keeps_every_bit(engine, tmp_path, size):
    out = save(engine, tmp_path / "new" / "model", max_shard_size=size)
    again = assert_same_weights(out, engine.model)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert (len(list(out.glob("*.safetensors"))) > 1) == (size == "20KB")
    assert not list((tmp_path / "new").glob(".*"))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, engine.model(tokens).logits)


def test_untied_float32_round_trip(untied, tmp_path):
    engine = engine_of(opened(untied), "float32")
    again = assert_same_weights(save(engine, tmp_path / "out"), engine.model)
    assert again.get_input_embeddings().weight is not again.get_output_embeddings().weight
    assert read_record(tmp_path / "out").recipe == recipe(engine.parents)


@pytest.mark.parametrize("arch", ["gpt2", "qwen3_moe", "llava"])
def test_other_architectures_have_the_bases_tensor_names(tmp_path, arch):
    parents = opened(tiny_family(tmp_path / "family", arch=arch))
    engine = engine_of(parents, "bfloat16")
    out = save(engine, tmp_path / "out")
    assert_same_weights(out, engine.model)
    assert ParentSet.open(out, {"a": parents.folders["a"]}).tensors.keys() == parents.tensors.keys()


def test_the_saved_dtype_is_the_resident_models(parents, tmp_path):
    out = save(engine_of(parents, "float32"), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32
    assert read_record(out).dtype == "float32"


def test_an_export_can_be_a_parent(engine, tmp_path):
    out = save(engine, tmp_path / "out")
    child = ParentSet.open(engine.parents.folders["base"], {"child": out})
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(child.tensor("child", name), engine.model.state_dict()[name])


def test_records(engine, tmp_path):
    files = {"leaderboard.md": "| a |\n", "notes.yaml": "x: 1\n"}
    out = save(engine, tmp_path / "out", extra_files=files, provenance={"command": "search"})
    assert (out / "README.md").read_text() == "# A card\n"
    assert {name: (out / name).read_text() for name in files} == files
    record = json.loads((out / "recipe.json").read_text())
    made = recipe(engine.parents)
    digests = engine.parents.digests()
    assert record["recipe_digest"] == made.digest
    assert record["base"]["sha256"] == digests["base"]
    assert record["parents"]["b"] == {
        "path": str(engine.parents.folders["b"]),
        "sha256": digests["b"],
    }
    assert record["versions"]["torch"] == version("torch")
    assert record["provenance"] == {"command": "search"}
    assert record["mergekit"] == "mergekit_config.yml"


def test_mergekits_configuration_says_the_same(engine, tmp_path):
    out = save(engine, tmp_path / "out", tokenizer="base")
    file = parse(out / "mergekit_config.yml")
    assert (file.out_dtype, file.tokenizer) == ("bfloat16", "base")
    assert str(file.base) == str(engine.parents.folders["base"])
    made = recipe(engine.parents)
    again = translate(file, engine.parents.tensors, mask_seed=9).recipe
    assert again.setting("embed") == made.setting("embed")


def test_what_mergekit_cannot_say_is_told_in_the_record(engine, tmp_path):
    parents = engine.parents
    made = Recipe.uniform("ties", parents.names, parents.groups(), -0.5)
    out = export_model(engine.targets, made, parents, tmp_path / "out", card="")
    assert not (out / "mergekit_config.yml").exists()
    said = json.loads((out / "recipe.json").read_text())["mergekit"]
    assert said.startswith("not expressible: layer group embed: mergekit divides by the signed sum")


def test_a_place_that_mergekit_would_misread_is_told(engine, family, tmp_path):
    odd = tmp_path / "a+b"
    odd.symlink_to(family["a"])
    parents = ParentSet.open(family["base"], dict.fromkeys(("a", "b", "c"), odd))
    out = export_model(engine.targets, recipe(parents), parents, tmp_path / "out", card="")
    assert "reads `@` and `+` in" in json.loads((out / "recipe.json").read_text())["mergekit"]


def test_records_read_back(engine, tmp_path):
    out = save(engine, tmp_path / "out", tokenizer="union")
    bare = tmp_path / "bare.json"
    bare.write_text(recipe(engine.parents).to_json())
    for path in (out, out / "recipe.json", bare):
        assert read_record(path).recipe == recipe(engine.parents)
    record = read_record(out)
    assert (record.dtype, record.tokenizer, record.template) == ("bfloat16", "union", None)
    assert record.models["base"] == (
        str(engine.parents.folders["base"]),
        engine.parents.digests()["base"],
    )
    assert read_record(bare).models == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is not valid JSON .* export the model again"),
        ("[]", "must hold a JSON object; export the model again"),
        ('{"recipe": 3}', "recipe: must be a mapping with keys method, .*; got 3"),
        (
            '{"recipe": RECIPE, "base": {}, "parents": {}}',
            "has no valid paths of base and parents",
        ),
        ('{"recipe": RECIPE, "base": 3}', "has no valid paths of base and parents"),
    ],
)
def test_broken_records(engine, tmp_path, text, message):
    path = tmp_path / "recipe.json"
    path.write_text(text.replace("RECIPE", recipe(engine.parents).to_json()))
    with pytest.raises(ValueError, match=message):
        read_record(path)
    with pytest.raises(ExportError, match=r"no recipe in .*; give an exported directory or its"):
        read_record(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["../x", "config.json", "README.md", "recipe.json", "mergekit_config.yml"]
)
def test_extra_files_stay_inside_and_overwrite_nothing(engine, tmp_path, name):
    with pytest.raises(ExportError, match="an extra file needs a plain name of its own, got"):
        save(engine, tmp_path / "out", extra_files={name: "x"})
    assert not (tmp_path / "out").exists()
