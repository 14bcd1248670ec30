"""LoRA adapters as parents: peft merges them to the same; the rest is refused by name."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from safetensors.torch import load_file, save_file

from tests.families import tiny_family

from ..conftest import Family
from ..trained import train

ADAPTER, CONFIG, WEIGHTS = "adapter_model.safetensors", "adapter_config.json", "model.safetensors"
Q, DOWN = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"
REMEDY = "merge it into its base with peft (merge_and_unload) and give the saved model"


def lora(base: Path, out: Path) -> ParentSet:
    return ParentSet.open(base, {"lora": out})


def refusal(base: Path, out: Path) -> str:
    with pytest.raises(ParentError) as caught:
        lora(base, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(out: Path, **settings: Any) -> None:
    data = json.loads((out / CONFIG).read_text())
    (out / CONFIG).write_text(json.dumps({**data, **settings}))


def rename(out: Path, old: str, new: str) -> None:
    state = load_file(out / ADAPTER)
    save_file({key.replace(old, new): value for key, value in state.items()}, out / ADAPTER)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    return tiny_family(folder, arch="gpt2", n_parents=0, dtype="float32")["base"]


@pytest.fixture(scope="module")
def trained(untied: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "out"
    train(untied["base"], out, r=4, target_modules=["q_proj", "down_proj"])
    return out


@pytest.fixture
def pair(untied: Family, trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter that a test may spoil."""
    return untied["base"], Path(shutil.copytree(trained, tmp_path / "lora"))


LLAMA = [
    {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    {
        "r": 4,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 6},
        "alpha_pattern": {r"^model\.layers\.[01]\.mlp\.up_proj": 3, "k_proj": 5},
        "use_rslora": True,
    },
    {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    {"r": 2, "target_modules": ["o_proj", "embed_tokens", "lm_head"]},
    {"r": 2, "target_modules": ["v_proj"], "init_lora_weights": "gaussian"},
]


@pytest.mark.parametrize("settings", LLAMA)
def test_peft_merges_llama_alike(untied, tmp_path, settings):
    merged = train(untied["base"], tmp_path, **settings)
    parents = lora(untied["base"], tmp_path)
    assert merged.keys() == parents.tensors.keys()
    for name, expected in merged.items():
        tensor = parents.tensor("lora", name)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
        is_base = torch.equal(tensor, parents.tensor("base", name))
        assert is_base == parents.is_base("lora", name)
    assert sum(parents.is_base("lora", name) for name in merged) < len(merged)


GPT2 = [
    {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True},
    {"target_modules": ["c_proj"], "bias": "all"},
    {"target_modules": ["c_attn", "wpe"]},
]


@pytest.mark.parametrize("settings", GPT2)
def test_peft_merges_gpt2_alike(gpt2, tmp_path, settings):
    merged = train(gpt2, tmp_path, r=4, lora_alpha=12, **settings)
    parents = lora(gpt2, tmp_path)
    assert not parents.is_base("lora", "transformer.h.0.attn.c_proj.weight") or "wpe" in str(
        settings
    )
    for name in parents.tensors:
        torch.testing.assert_close(parents.tensor("lora", name), merged[name], rtol=1e-6, atol=1e-7)


def test_square_weights_follow_the_others_where_the_flag_is_lost(gpt2, tmp_path):
    merged = train(gpt2, tmp_path, r=4, target_modules=["c_proj"])
    edit(tmp_path, fan_in_fan_out=False)
    name = "transformer.h.1.attn.c_proj.weight"
    tensor = lora(gpt2, tmp_path).tensor("lora", name)
    torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-7)


def test_a_base_whose_names_lack_the_first_part(gpt2, tmp_path):
    merged = train(gpt2, tmp_path / "lora", r=4, target_modules=["c_fc"])
    base = Path(shutil.copytree(gpt2, tmp_path / "base"))
    state = load_file(base / WEIGHTS)
    save_file({n.removeprefix("transformer."): t for n, t in state.items()}, base / WEIGHTS)
    edit(tmp_path / "lora", base_model_name_or_path="somewhere/base")
    tensor = lora(base, tmp_path / "lora").tensor("lora", "h.0.mlp.c_fc.weight")
    torch.testing.assert_close(tensor, merged["transformer.h.0.mlp.c_fc.weight"])


def test_half_precision_bases_are_added_to_in_float32(family, tmp_path):
    train(family["base"], tmp_path, r=4, lora_alpha=6, target_modules=["q_proj"])
    parents = lora(family["base"], tmp_path)
    state = load_file(tmp_path / ADAPTER)
    a, b = (state[f"base_model.model.{Q[:-7]}.lora_{x}.weight"].double() for x in "AB")
    expected = parents.tensor("base", Q).double() + 1.5 * b @ a
    tensor = parents.tensor("lora", Q)
    assert parents.infos("lora")[Q].dtype == "F32"
    assert parents.infos("lora")[DOWN].dtype == "BF16"
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    assert parents.tensor("lora", DOWN).dtype == torch.bfloat16


def test_only_the_factors_are_held(pair):
    parents = lora(*pair)
    factors = parents.low_rank("lora", Q)
    assert factors is not None
    assert (factors.a.shape, factors.b.shape, factors.scale) == ((4, 32), (32, 4), 2.0)
    base = parents.tensor("base", Q)
    before = base.clone()
    assert torch.equal(factors.to("cpu").added_to(base), parents.tensor("lora", Q))
    assert torch.equal(base, before)
    assert parents.low_rank("lora", "model.norm.weight") is None
    assert parents.bytes_of("lora", Q) == factors.a.nbytes + factors.b.nbytes
    assert parents.bytes_of("lora", "model.norm.weight") == 0
    sizes = [tensor.nbytes for tensor in load_file(pair[1] / ADAPTER).values()]
    assert parents.bytes_of("lora") == sum(sizes)


def test_digests_follow_weights_and_settings(pair):
    base, out = pair
    lines = "".join(
        f"{name} {hashlib.sha256((out / name).read_bytes()).hexdigest()}\n"
        for name in (CONFIG, ADAPTER)
    )
    before = lora(base, out).digests()
    assert before["lora"] == hashlib.sha256(lines.encode()).hexdigest()
    edit(out, lora_alpha=9)
    after = lora(base, out).digests()
    assert (before["base"], before["lora"] != after["lora"]) == (after["base"], True)


def test_parents_may_be_models_and_adapters(untied, trained):
    parents = ParentSet.open(untied["base"], {"a": untied["a"], "lora": trained})
    assert parents.names == ("a", "lora")
    assert torch.equal(parents.tensor("a", Q), load_file(untied["a"] / WEIGHTS)[Q])


def test_the_base_cannot_be_an_adapter(untied, trained):
    with pytest.raises(ParentError, match=r"base: .* holds an adapter, not a model; give the"):
        ParentSet.open(trained, {"a": untied["a"]})


def test_an_adapter_beside_a_model_is_ambiguous(pair):
    base, out = pair
    shutil.copy(base / WEIGHTS, out)
    assert f"holds both an adapter ({CONFIG}) and a model ({WEIGHTS}); move one of them to a " in (
        refusal(base, out)
    )


# ---- the base -----------------------------------------------------------------------------------


def test_a_base_elsewhere_with_the_same_weights_is_the_same(pair, tmp_path):
    base, out = pair
    copy = shutil.copytree(base, tmp_path / "under another name")
    assert lora(Path(copy), out).names == ("lora",)


def test_another_base_on_this_machine_is_refused_by_its_weights(untied, trained):
    base = untied["base"]
    digests = [
        hashlib.sha256((untied[n] / WEIGHTS).read_bytes()).hexdigest() for n in ("base", "a")
    ]
    assert refusal(untied["a"], trained) == (
        f"parent lora: its adapter was made on {base}, not on the base {untied['a']} (SHA-256 "
        f"{digests[0][:12]} against {digests[1][:12]}); give that base, or, if they are in fact "
        f"the same, write 'a' as base_model_name_or_path in {trained / CONFIG}"
    )


@pytest.mark.parametrize(
    "stated",
    [
        *("org/base", "org/Base", "base@main", "/gone/base", "C:\\models\\base\\"),
        "/home/x/.cache/huggingface/hub/models--org--base/snapshots/0123abcd",
    ],
)
def test_a_base_that_is_not_here_is_known_by_name(pair, stated):
    base, out = pair
    edit(out, base_model_name_or_path=stated)
    assert lora(base, out).names == ("lora",)


def test_a_base_is_also_known_by_the_name_in_its_config(pair, tmp_path):
    base, out = pair
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": "org/Tiny-1B"}))
    edit(out, base_model_name_or_path="other/tiny-1b")
    assert lora(copy, out).names == ("lora",)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("org/Other-7B", "its adapter was made on org/Other-7B, not on the base"),
        (None, "its adapter was made on an unnamed base, not on the base"),
        (7, "its adapter was made on an unnamed base, not on the base"),
    ],
)
def test_another_base_is_refused_by_name(pair, stated, said):
    base, out = pair
    edit(out, base_model_name_or_path=stated)
    message = refusal(base, out)
    assert said in message
    assert "if they are in fact the same, write 'base' as base_model_name_or_path in" in message


# ---- tied embeddings ----------------------------------------------------------------------------


@pytest.mark.parametrize(("adapted", "saved"), [("embed_tokens", None), ("q_proj", "embed_tokens")])
def test_tied_embeddings_cannot_be_changed_alone(family, tmp_path, adapted, saved):
    whole = [saved] if saved else None
    train(family["base"], tmp_path, r=2, target_modules=[adapted], modules_to_save=whole)
    said = "the adapter changes model.embed_tokens.weight alone, in the base it is tied to the head"
    assert f"{said}; {REMEDY}" in refusal(family["base"], tmp_path)


def test_a_head_apart_from_tied_embeddings_is_refused(family, tmp_path):
    train(family["base"], tmp_path, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    message = refusal(family["base"], tmp_path)
    assert "adapter tensor base_model.model.lm_head.weight matches no tensor of the base" in message
    assert "whose embeddings are tied to its head" in message


def test_tied_embeddings_changed_together_with_their_head(family, tmp_path):
    train(family["base"], tmp_path, r=2, target_modules=["q_proj"])
    state = load_file(tmp_path / ADAPTER)
    new = torch.randn(259, 32, generator=torch.Generator().manual_seed(1))
    for name in ("model.embed_tokens", "lm_head"):
        state[f"base_model.model.{name}.weight"] = new.clone()
    save_file(state, tmp_path / ADAPTER)
    parents = lora(family["base"], tmp_path)
    assert torch.equal(parents.tensor("lora", "model.embed_tokens.weight"), new)
    assert parents.bytes_of("lora", "model.embed_tokens.weight") == new.nbytes


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"use_dora": True}, "has use_dora = True (DoRA), which cannot be computed as base + "),
        ({"lora_bias": True}, "has lora_bias = True (a bias beside B)"),
        ({"layer_replication": [[0, 2]]}, "has layer_replication = [[0, 2]] (replicated layers)"),
        ({"trainable_token_indices": [1]}, "(trainable tokens)"),
        ({"target_parameters": ["experts"]}, "(LoRA on bare parameters)"),
        ({"alora_invocation_tokens": [1]}, "(activated LoRA)"),
        ({"use_qalora": True}, "(QALoRA)"),
        ({"megatron_config": {"x": 1}}, "(Megatron layers)"),
        ({"novel_trick": 1}, "has novel_trick = 1 (an unknown variant of LoRA)"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights = 'pissa', which changes the base"),
        ({"peft_type": "LOHA"}, "its adapter is of type 'LOHA', only LORA is supported"),
        ({"peft_type": None}, "its adapter is of type None, only LORA is supported"),
        ({"rank_pattern": {"(a+)+": 4}}, "must be a regular expression without repeated groups"),
        ({"rank_pattern": {"(": 4}}, "must be a regular expression without repeated groups"),
    ],
)
def test_variants_are_refused_by_name(pair, setting, said):
    base, out = pair
    edit(out, **setting)
    message = refusal(base, out)
    assert message.startswith("parent lora: ")
    assert said in message
    assert message.endswith(REMEDY)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"r": 0}, "a rank must be a whole number from 1, got r = 0 in adapter_config.json"),
        ({"r": "8"}, "a rank must be a whole number from 1, got r = '8'"),
        ({"r": 8}, "lora_A.weight has rank 4, adapter_config.json says 8; fetch it again"),
        ({"lora_alpha": None}, "an alpha must be a number below 1e+06, got lora_alpha = None"),
        ({"alpha_pattern": {"q_proj": 1e9}}, "got q_proj = 1000000000.0 in adapter_config.json"),
        ({"alpha_pattern": [1]}, "rank_pattern and alpha_pattern must be mappings in"),
        ({"lora_alpha": float("nan")}, "is not valid JSON (NaN is not a JSON value)"),
    ],
)
def test_settings_that_make_no_sense(pair, setting, said):
    base, out = pair
    edit(out, **setting)
    message = refusal(base, out)
    assert said in message
    assert "fetch " in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("q_proj", "z_proj", "z_proj.lora_A.weight matches no tensor of the base; give the base"),
        (
            "lora_A.weight",
            "lora_A.default.weight",
            "belongs to an unknown variant of LoRA",
        ),
        ("lora_B.weight", "lora_magnitude_vector.weight", "belongs to an unknown variant of LoRA"),
        (
            "lora_A.weight",
            "token_adapter.trainable_tokens_delta",
            "belongs to an unknown variant of LoRA",
        ),
        ("down_proj.lora_A.weight", "down_proj.lora_A", "the adapter"),
    ],
)
def test_tensors_that_fit_nothing_are_refused_by_name(pair, old, new, said):
    base, out = pair
    rename(out, old, new)
    if said == "the adapter":  # peft writes both forms
        assert lora(base, out).names == ("lora",)
        return
    message = refusal(base, out)
    assert "adapter tensor base_model.model." in message
    assert said in message
    assert REMEDY in message


def change(out: Path, key: str, tensor: torch.Tensor | None) -> None:
    state = load_file(out / ADAPTER)
    key = f"base_model.model.{Q[:-7]}.{key}"
    state.pop(key, None)
    save_file({**state, key: tensor} if tensor is not None else state, out / ADAPTER)


def test_whole_tensors_that_fit_nothing_are_refused_by_name(pair):
    base, out = pair
    change(out, "more.weight", torch.zeros(3))
    message = refusal(base, out)
    assert f"{Q[:-7]}.more.weight matches no tensor of the base; give the base that" in message


def test_factors_that_do_not_fit_are_refused_by_name(pair):
    base, out = pair
    change(out, "lora_A.weight", torch.zeros(4, 31))
    assert f"factors B (32, 4) and A (4, 31) do not fit {Q} of shape (32, 32)" in refusal(base, out)
    change(out, "lora_A.weight", torch.zeros(4, 32, 1, 1))
    assert "has shape (4, 32, 1, 1) F32, only floating tensors and factors" in refusal(base, out)
    change(out, "lora_A.weight", torch.zeros(4, 32, dtype=torch.int8))
    assert "has shape (4, 32) I8, only floating tensors and factors" in refusal(base, out)
    change(out, "lora_A.weight", None)
    assert "lora_B.weight but not the other of A and B for" in refusal(base, out)
    change(out, "lora_A.weight", torch.zeros(4, 32))
    change(out, "lora_A", torch.zeros(4, 32))
    assert f"lora_A.weight both belong to {Q}; fetch it again" in refusal(base, out)


def test_whole_tensors_of_another_shape_are_refused(pair):
    base, out = pair
    change(out, "lora_A.weight", None)
    change(out, "lora_B.weight", None)
    change(out, "weight", torch.zeros(31, 32))
    assert f"parent lora: tensor {Q} has shape 31x32, the base has 32x32" in refusal(base, out)


def test_pickled_and_missing_weights(pair):
    base, out = pair
    (out / ADAPTER).rename(out / "adapter_model.bin")
    message = refusal(base, out)
    assert "has only a pickled adapter (adapter_model.bin), which is never read since it" in message
    assert message.endswith(f"save it again with peft's save_pretrained, which writes {ADAPTER}")
    (out / "adapter_model.bin").unlink()
    assert f"no {ADAPTER} in {out}; save the adapter there with peft's" in refusal(base, out)


def test_the_same_bits_on_any_number_of_threads(pair):
    parents = lora(*pair)
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(parents.tensor("lora", DOWN))
            assert torch.get_num_threads() == n
        assert all(torch.equal(found[0], other) for other in found)
    finally:
        torch.set_num_threads(threads)
