"""Exports: load in transformers, hold the resident model's bits, appear whole or not at all."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from heterosis.merge import export
from heterosis.merge.engine import MergeEngine
from heterosis.merge.export import ExportError, export_model, load_recipe
from heterosis.merge.parents import ParentSet
from heterosis.merge.recipe import Recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from .conftest import opened


def recipe(parents: ParentSet) -> Recipe:
    return Recipe.uniform("dare_ties", parents.names, parents.groups, 0.6, 0.3, mask_seed=9)


@pytest.fixture(scope="module")
def engine(parents: ParentSet) -> MergeEngine:
    engine = MergeEngine(parents, dtype="bfloat16")
    engine.load(recipe(parents))
    return engine


def save(engine: MergeEngine, out: Path, **kwargs) -> Path:
    made = recipe(engine.parents)
    return export_model(engine.model, made, engine.parents, out, card="# A card\n", **kwargs)


def assert_same_weights(path: Path, model: Any) -> Any:
    again = AutoModelForCausalLM.from_pretrained(path)
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
    assert len(list(out.glob("*.safetensors"))) == (1 if size == "5GB" else 4)
    assert not list((tmp_path / "new").glob(".*"))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, engine.model(tokens).logits)


def test_untied_float32_round_trip(untied, tmp_path):
    parents = opened(untied)
    engine = MergeEngine(parents, dtype="float32")
    engine.load(recipe(parents))
    again = assert_same_weights(save(engine, tmp_path / "out"), engine.model)
    assert again.get_input_embeddings().weight is not again.get_output_embeddings().weight
    assert load_recipe(tmp_path / "out") == recipe(parents)


def test_an_export_can_be_a_parent(engine, tmp_path):
    out = save(engine, tmp_path / "out")
    child = ParentSet.open(engine.parents.folders["base"], {"child": out})
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(child.parent_tensor("child", name), engine.model.state_dict()[name])


def test_tokenizer_chat_template_and_generation_settings_are_the_bases(engine, family, tmp_path):
    out = save(engine, tmp_path / "out")
    base = family["base"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert (out / "generation_config.json").read_bytes() == (
        base / "generation_config.json"
    ).read_bytes()
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(chat, tokenize=False) == "user: hello\n"
    assert ours("héllo").input_ids == theirs("héllo").input_ids
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.max_new_tokens == 17


def test_generation_settings_that_transformers_would_not_write_are_kept(family, tmp_path):
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    odd = '{"temperature": 0.7, "do_sample": false, "_from_model_config": false}'
    (base / "generation_config.json").write_text(odd)
    parents = ParentSet.open(base, {"a": family["a"]})
    engine = MergeEngine(parents, dtype="bfloat16")
    before = engine.model.generation_config
    out = save(engine, tmp_path / "out")
    assert (out / "generation_config.json").read_text() == odd
    assert engine.model.generation_config is before


def test_a_base_without_generation_settings_gives_none(family, tmp_path):
    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    (base / "generation_config.json").unlink()
    engine = MergeEngine(ParentSet.open(base, {"a": family["a"]}), dtype="bfloat16")
    assert not (save(engine, tmp_path / "out") / "generation_config.json").exists()


def test_records(engine, tmp_path):
    files = {"leaderboard.md": "| a |\n", "mergekit.yaml": "x: 1\n"}
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


def test_recipes_read_back(engine, tmp_path):
    out = save(engine, tmp_path / "out")
    bare = tmp_path / "bare.json"
    bare.write_text(recipe(engine.parents).to_json())
    for path in (out, out / "recipe.json", bare):
        assert load_recipe(path) == recipe(engine.parents)
    with pytest.raises(ExportError, match=r"no recipe in .*; give an exported directory or its"):
        load_recipe(tmp_path / "nothing")
    bare.write_text("{")
    with pytest.raises(ExportError, match=r"is not valid JSON .* export the model again"):
        load_recipe(bare)


def test_another_dtype_is_one_rounding(untied, tmp_path):
    parents = opened(untied)
    engine = MergeEngine(parents, dtype="float32")
    engine.load(recipe(parents))
    out = save(engine, tmp_path / "out", dtype="bfloat16")
    saved = load_file(out / "model.safetensors")
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(saved[name], tensor.bfloat16())
        assert tensor.dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_another_dtype_keeps_ties(engine, tmp_path):
    out = save(engine, tmp_path / "out", dtype=torch.float32)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_nothing_is_overwritten(engine, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    with pytest.raises(ExportError, match="exists and is not empty, nothing is overwritten; give"):
        save(engine, tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="is a file; give the name of a directory to make"):
        save(engine, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert (save(engine, tmp_path / "empty") / "model.safetensors").is_file()


@pytest.mark.parametrize("step", ["_save_weights", "_copy_from_base", "_record"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_midway_leaves_nothing(engine, tmp_path, monkeypatch, step, error):
    original = getattr(export, step)

    def fail(*args):
        original(*args)
        raise error

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(type(error)):
        save(engine, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/x", "sub/x", "", "config.json", "README.md", "x.safetensors"]
)
def test_extra_files_stay_inside_and_overwrite_nothing(engine, tmp_path, name):
    with pytest.raises(ExportError, match="an extra file needs a plain name of its own, got"):
        save(engine, tmp_path / "out", extra_files={name: "x"})
    assert not (tmp_path / "out").exists()
