"""Merges from files to files: the engine's bits, mergekit's reading, whole or not at all."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from heterosis.merge.engine.engine import MergeEngine, MergeFailure
from heterosis.merge.files.export import export_model, read_record
from heterosis.merge.files.file_merge import FileMerge, merge_files, open_merge
from heterosis.merge.mergekit.parameters import MergekitError
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.families import tiny_family

from ..conftest import Family
from ..mergekit.files import drawn
from ..trained import add_tokens, train

NORM = "model.norm.weight"


def of(family: Family, *names: str) -> ParentSet:
    return ParentSet.open(family["base"], {name: family[name] for name in names})


def run(merge: FileMerge, out: Path, **kwargs) -> dict[str, torch.Tensor]:
    folder = merge_files(merge, out, card="# x\n", **kwargs)
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def write(folder: Path, family: Family, text: str) -> Path:
    """mergekit's YAML with <name> in place of the directory of a model."""
    for name, path in family.items():
        text = text.replace(f"<{name}>", str(path))
    (folder / "merge.yaml").write_text(text)
    return folder / "merge.yaml"


MEAN = """
merge_method: task_arithmetic
base_model: <base>
parameters: {weight: 0.5}
models: [{model: <a>}, {model: <b>}]
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_record_of_an_export_gives_its_bytes_again(method, family, parents, tmp_path):
    made = drawn(method, 1, parents.groups())
    names = dict(zip(made.parents, "abc", strict=False))
    made = Recipe.from_dict(made.to_dict() | {"parents": list(names.values()), "mask_seed": 3})
    some = of(family, *names.values())
    engine = MergeEngine(some, dtype="bfloat16")
    engine.load(made)
    first = export_model(engine.targets, made, some, tmp_path / "one", card="")
    merge = open_merge(first)
    assert merge.recipe == made
    run(merge, tmp_path / "two")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("arch", ["gpt2", "qwen3_moe", "llava"])
def test_other_architectures(arch, tmp_path):
    family = tiny_family(tmp_path / "family", arch=arch)
    merge = open_merge(write(tmp_path, family, MEAN))
    found = run(merge, tmp_path / "out", max_shard_size="20KB")
    assert found.keys() == merge.parents.tensors.keys()
    for name in found:
        a, b = (merge.parents.tensor(p, name).float() for p in "ab")
        assert torch.allclose(found[name].float(), (a + b) / 2, rtol=2**-8, atol=1e-3), name


def test_an_architecture_that_transformers_does_not_know(family, tmp_path):
    copies = {n: Path(shutil.copytree(family[n], tmp_path / n)) for n in ("base", "a", "b")}
    for folder in copies.values():
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"model_type": "unheard_of"}))
    found = run(open_merge(write(tmp_path, copies, MEAN)), tmp_path / "out")
    same = run(open_merge(write(tmp_path, family, MEAN)), tmp_path / "same")
    assert all(torch.equal(found[name], same[name]) for name in same)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", "bfloat16"),
        ("dtype: float16", "float16"),
        ("out_dtype: float32\ndtype: float16", "float32"),
    ],
)
def test_dtypes(family, tmp_path, given, written):
    merge = open_merge(write(tmp_path, family, MEAN + given))
    found = run(merge, tmp_path / "out")
    assert {str(t.dtype) for t in found.values()} == {f"torch.{written}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == written
    asked = open_merge(write(tmp_path, family, MEAN + given), dtype="float32")
    exact = run(asked, tmp_path / "exact")
    a, b = (asked.parents.tensor(p, NORM).float() for p in "ab")
    assert torch.allclose(exact[NORM], (a + b) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float16, got"):
        open_merge(tmp_path / "merge.yaml", dtype="int8")


def test_tensors_of_several_dtypes_keep_theirs(family, tmp_path):
    copies = {n: Path(shutil.copytree(family[n], tmp_path / n)) for n in ("base", "a", "b")}
    tensors = load_file(copies["base"] / "model.safetensors")
    tensors[NORM] = tensors[NORM].float()
    tensors["steps"] = torch.tensor([3, 4])
    save_file(tensors, copies["base"] / "model.safetensors", metadata={"format": "pt"})
    for name in "ab":
        tensors = load_file(copies[name] / "model.safetensors") | {"steps": torch.tensor([3, 4])}
        save_file(tensors, copies[name] / "model.safetensors", metadata={"format": "pt"})
    found = run(open_merge(write(tmp_path, copies, MEAN)), tmp_path / "out")
    assert (found[NORM].dtype, found["steps"].tolist()) == (torch.float32, [3, 4])
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16
    said = json.loads((tmp_path / "out" / "recipe.json").read_text())["mergekit"]
    assert said == "not expressible: tensors keep dtypes of their own, mergekit's YAML names one"


def with_head(folder: Path, scale: float = 1.0) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = (tensors["model.embed_tokens.weight"] * scale).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_head_that_files_repeat_is_written_once_as_the_engine_does(family, tmp_path):
    copies = {n: Path(shutil.copytree(family[n], tmp_path / n)) for n in ("base", "a", "b")}
    for folder in copies.values():
        with_head(folder)
    text = MEAN.replace("task_arithmetic", "dare_linear").replace("0.5", "0.5, density: 0.5")
    merge = open_merge(write(tmp_path, copies, text))
    found = run(merge, tmp_path / "out")
    engine = MergeEngine(merge.parents, dtype="bfloat16")
    engine.load(merge.recipe)
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], engine.model.lm_head.weight)
    with_head(copies["a"], 2.0)
    with pytest.raises(ParentError, match=r"parent a: tensors .* differ, in the base they are one"):
        run(open_merge(tmp_path / "merge.yaml"), tmp_path / "no")


def test_paths_are_those_beside_the_file_then_those_of_the_working_directory(
    family, tmp_path, monkeypatch
):
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "x").mkdir(parents=True)
    (tmp_path / "there" / "base").symlink_to(family["base"])
    (tmp_path / "there" / "a").symlink_to(family["a"])
    (tmp_path / "here" / "a").symlink_to(family["c"])
    (tmp_path / "here" / "b").symlink_to(family["b"])
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "there" / "merge.yaml"
    path.write_text(re.sub("[<>]", "", MEAN))
    merge = open_merge(path)
    assert merge.parents.folders["a"] == tmp_path / "there" / "a"
    assert merge.parents.folders["b"] == tmp_path / "here" / "b"
    assert merge.notes == (f"b is relative to the working directory, {tmp_path / 'here'}",)
    path.write_text(re.sub("[<>]", "", MEAN.replace("<b>", "b@main")))
    assert "b@main is a directory, its revision is ignored" in open_merge(path).notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MEAN.replace("<b>", "nowhere"),
            "b|nowhere: no directory nowhere in .* nor in .*; give the",
        ),
        (MEAN.replace("<b>", "/nowhere/x"), "x: no directory /nowhere/x; give the path of a model"),
        (MEAN.replace("<b>", "~no.body/x"), "x: no directory ~no.body/x; give the path of a mod"),
        (MEAN.replace("<b>", "no/such"), "the hub id no/such is not in the local cache"),
        (MEAN.replace("<b>", "<a>/nothing"), "no directory .*/a/nothing; give the path"),
        (MEAN + "dtype: float8", "`dtype` must be one of float32, bfloat16, float16, got 'float8'"),
        (MEAN + "chat_template: alpca", "`chat_template` must be auto, chatml or the text of a"),
        (MEAN + "seed: 3", r"merge.yaml: unknown key `seed`"),
        (MEAN.replace("0.5", ".nan"), r"merge.yaml: .*weight must be a finite number, got"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(family, tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as refused:
        open_merge(write(tmp_path, family, text))
    assert "\n" not in str(refused.value)


def test_files_that_ask_for_no_merge(tmp_path):
    with pytest.raises(
        MergekitError, match=r"no such file: .*; give mergekit's YAML or a recipe.js"
    ):
        open_merge(tmp_path / "no.yaml")
    with pytest.raises(MergekitError, match=r"no recipe.json nor mergekit_config.yml in"):
        open_merge(tmp_path)


def test_a_folder_with_mergekits_configuration(family, tmp_path):
    write(tmp_path, family, MEAN).rename(tmp_path / "mergekit_config.yml")
    assert open_merge(tmp_path).recipe.method == "task_arithmetic"


def test_a_record_whose_models_are_other_ones_is_refused(family, tmp_path):
    copy = Path(shutil.copytree(family["b"], tmp_path / "b"))
    run(open_merge(write(tmp_path, family | {"b": copy}, MEAN)), tmp_path / "out")
    tensors = load_file(copy / "model.safetensors")
    tensors[NORM][0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ParentError, match=r"b: the weights in .* are not those of .*recipe.json .SHA-256"
    ):
        open_merge(tmp_path / "out")
    shutil.rmtree(copy)
    with pytest.raises(ParentError, match=r"b: no directory .*/b; give the path of a model"):
        open_merge(tmp_path / "out")


def test_a_bare_recipe_names_no_models(parents, tmp_path):
    made = Recipe.uniform("linear", parents.names, parents.groups(), 0.3)
    (tmp_path / "bare.json").write_text(made.to_json())
    with pytest.raises(MergekitError, match="has only a recipe and names no models; give the"):
        open_merge(tmp_path / "bare.json")


def test_a_record_that_does_not_fit_its_models(family, tmp_path):
    run(open_merge(write(tmp_path, family, MEAN)), tmp_path / "out")
    path = tmp_path / "out" / "recipe.json"
    data = json.loads(path.read_text())
    del data["recipe"]["coefficients"]["head"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="a recipe must have coefficients for each of the"):
        open_merge(path)


def test_mask_seeds(family, tmp_path):
    text = MEAN.replace("task_arithmetic", "dare_linear").replace("0.5", "0.5, density: 0.5")
    path = write(tmp_path, family, text)
    first, again, other = (
        run(open_merge(path, mask_seed=seed), tmp_path / str(i))[NORM]
        for i, seed in enumerate((None, 0, 7))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    replayed = run(open_merge(tmp_path / "0", mask_seed=7), tmp_path / "replayed")
    assert torch.equal(replayed[NORM], other)


def test_the_first_model_stands_for_a_base_that_is_not_named(family, tmp_path):
    text = "merge_method: METHOD\nmodels: [{model: <a>}, {model: <b>}]\nparameters: {weight: 1}\n"
    merge = open_merge(write(tmp_path, family, text.replace("METHOD", "linear")))
    assert merge.parents.folders["base"] == family["a"]
    found = run(merge, tmp_path / "linear", max_shard_size="20KB")
    a, b = (of(family, "a", "b").tensor(p, NORM).float() for p in "ab")
    assert torch.allclose(found[NORM].float(), (a + b) / 2, atol=4e-3)
    for method in ("karcher", "multislerp", "nuslerp"):
        merge = open_merge(write(tmp_path, family, text.replace("METHOD", method)))
        assert merge.parents.names == ("a", "b")
        found = run(merge, tmp_path / method)[NORM].float()
        assert torch.allclose(found, (a + b) / 2, atol=5e-3)


def test_adapters_are_named_with_their_base(untied, tmp_path):
    merged = train(untied["base"], tmp_path / "lora", r=4, target_modules=["q_proj"])
    text = MEAN.replace("<b>", "<base>+" + str(tmp_path / "lora")).replace("0.5", "1.0")
    text = text.replace("{model: <a>}, ", "")
    found = run(open_merge(write(tmp_path, untied, text)), tmp_path / "out")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(found[name], merged[name], atol=1e-6)
    again = open_merge(tmp_path / "out" / "mergekit_config.yml")
    assert again.parents.folders["lora"] == tmp_path / "lora"


def test_a_vocabulary_that_grew_needs_a_policy(family, tmp_path):
    copies = family | {"b": Path(shutil.copytree(family["b"], tmp_path / "b"))}
    add_tokens(copies["b"], "<new>")
    path = write(tmp_path, copies, MEAN)
    with pytest.raises(ParentError, match="tokenizer: union"):
        open_merge(path)
    asked = open_merge(path, tokenizer="union")
    named = open_merge(write(tmp_path, copies, MEAN + "tokenizer_source: union\n"))
    size = json.loads((copies["b"] / "config.json").read_text())["vocab_size"]
    for i, merge in enumerate((asked, named)):
        found = run(merge, tmp_path / str(i))
        assert found["model.embed_tokens.weight"].shape[0] == size
        assert json.loads((tmp_path / str(i) / "config.json").read_text())["vocab_size"] == size
        assert "<new>" in AutoTokenizer.from_pretrained(tmp_path / str(i)).get_vocab()
        AutoModelForCausalLM.from_pretrained(tmp_path / str(i))
    assert read_record(tmp_path / "0").tokenizer == "union"
    again = run(open_merge(tmp_path / "0"), tmp_path / "again")
    assert torch.equal(again[NORM], found[NORM])
    with pytest.raises(ParentError, match="`tokenizer` must be base, union or left out, got 'all'"):
        open_merge(path, tokenizer="all")


CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("'{{ messages[0].content }}?'", "hi?"),
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n"),
        ("auto", "hi!"),
    ],
)
def test_chat_templates(family, tmp_path, asked, said):
    copies = {n: Path(shutil.copytree(family[n], tmp_path / n)) for n in ("base", "a", "b")}
    for name in "ab":
        (copies[name] / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    merge = open_merge(write(tmp_path, copies, MEAN + f"chat_template: {asked}"))
    run(merge, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == said
    assert open_merge(tmp_path / "out").template == merge.template


def test_templates_in_older_places_are_found(family, tmp_path):
    copies = {n: Path(shutil.copytree(family[n], tmp_path / n)) for n in ("base", "a", "b")}
    for name in "ab":
        (copies[name] / "chat_template.jinja").unlink()
        path = copies[name] / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        old = "x!" if name == "a" else [{"name": "tool"}, {"name": "default", "template": "x!"}]
        path.write_text(json.dumps(settings | {"chat_template": old}))
    assert open_merge(write(tmp_path, copies, MEAN + "chat_template: auto")).template == "x!"
    for name in "ab":
        (copies[name] / "tokenizer_config.json").write_text("{")
    assert open_merge(write(tmp_path, copies, MEAN + "chat_template: auto")).template is None


def test_nan_in_a_parent_is_refused_by_name(family, tmp_path):
    copy = Path(shutil.copytree(family["b"], tmp_path / "b"))
    tensors = load_file(copy / "model.safetensors")
    tensors[NORM][0] = torch.nan
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    merge = open_merge(write(tmp_path, family | {"b": copy}, MEAN))
    with pytest.raises(ParentError, match=f"parent b: tensor {NORM} holds NaN or infinity"):
        run(merge, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_that_overflows_is_refused_by_name(family, tmp_path):
    text = MEAN.replace("0.5", "1.0e7") + "dtype: float16\n"
    merge = open_merge(write(tmp_path, family, text))
    with pytest.raises(MergeFailure, match="holds NaN or infinity in float16; use smaller weights"):
        run(merge, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_goal_size_and_device_are_checked_first(family, tmp_path):
    merge = open_merge(write(tmp_path, family, MEAN))
    with pytest.raises(ValueError, match="exists and is not empty, nothing is overwritten"):
        run(merge, tmp_path)
    with pytest.raises(ValueError, match="`max_shard_size` must be a size such as"):
        run(merge, tmp_path / "out", max_shard_size="x")
    for device in ("cuda:7", "nonsense"):
        with pytest.raises(
            ValueError, match=r"`device` must be cpu or a device that torch supports here"
        ):
            run(merge, tmp_path / "out", device=device)


def test_progress_is_told(family, tmp_path):
    heard = []
    merge = open_merge(write(tmp_path, family, MEAN))
    run(merge, tmp_path / "out", on_tensor=lambda done, total: heard.append((done, total)))
    assert heard[0][0] == 0
    assert len(heard) == len(merge.parents.tensors)
    assert {total for _, total in heard} == {sum(i.n_bytes for i in merge.parents.tensors.values())}


def test_an_interrupted_merge_leaves_nothing(family, tmp_path):
    merge = open_merge(write(tmp_path, family, MEAN))

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        run(merge, tmp_path / "out", on_tensor=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml"]
