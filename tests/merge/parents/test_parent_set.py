"""Parents: what is read right, and every kind of bad one refused in one line with the remedy."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from heterosis.merge.parents import headers
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from heterosis.merge.recipe.groups import Grouping
from safetensors.torch import load_file, save_file

from tests.families import tiny_family

from ..conftest import Family, opened

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MLP = "model.layers.1.mlp.up_proj.weight"


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the tensors of a single-file directory."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def rewrite_json(path: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rewrite_header(path: Path, change: Callable[[dict], None]) -> None:
    """Change a safetensors header and leave the data as they are."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.fixture
def pair(family: Family, tmp_path: Path) -> Family:
    """A base and one parent that a test may spoil."""
    return {name: Path(shutil.copytree(family[name], tmp_path / name)) for name in ("base", "a")}


@pytest.fixture
def shards(sharded: Family, tmp_path: Path) -> Family:
    return {name: Path(shutil.copytree(sharded[name], tmp_path / name)) for name in ("base", "a")}


def refusal(paths: Family) -> str:
    """The one line that says why a family is refused."""
    with pytest.raises(ParentError) as caught:
        opened(paths)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)
    return message


def test_missing_directory(pair):
    pair["a"] = pair["a"].with_name("nowhere")
    assert "parent a: no directory" in refusal(pair)
    assert "give the path of a Hugging Face model directory" in refusal(pair)


def test_missing_base_directory(pair):
    pair["base"] = pair["base"].with_name("nowhere")
    assert refusal(pair).startswith("base: no directory")


def test_no_weights(pair):
    (pair["a"] / WEIGHTS).unlink()
    assert f"parent a: no {WEIGHTS} nor {INDEX} in" in refusal(pair)
    assert "save the model there with save_pretrained" in refusal(pair)


def test_only_pickled_weights(pair):
    (pair["a"] / WEIGHTS).rename(pair["a"] / "pytorch_model.bin")
    message = refusal(pair)
    assert "parent a:" in message
    assert "only pickled weights (pytorch_model.bin), which are never read" in message
    assert "save it again with save_pretrained" in message


def invalid(pair) -> str:
    """The reason for which safetensors refuses the weights of parent a."""
    message = refusal(pair)
    start = f"parent a: {pair['a'] / WEIGHTS} is not a valid safetensors file ("
    end = "; fetch it again"
    assert message.startswith(start) and message.endswith(")" + end)
    return message[len(start) : -len(end) - 1]


@pytest.mark.parametrize("size", [0, 5])
def test_file_cut_before_its_header_says_its_size(pair, size):
    (pair["a"] / WEIGHTS).write_bytes(b"\0" * size)
    assert invalid(pair).endswith(f", {size} bytes are there")


def truncated(pair: Family, promised: int, size: int) -> str:
    """The line for parent a whose weights are cut."""
    return (
        f"parent a: {pair['a'] / WEIGHTS} is truncated: its header promises {promised} bytes, "
        f"{size} are there; fetch it again"
    )


@pytest.mark.parametrize("size", [8, 100])
def test_file_cut_in_the_header(pair, size):
    file = pair["a"] / WEIGHTS
    raw = file.read_bytes()
    file.write_bytes(raw[:size])
    assert refusal(pair) == truncated(pair, 8 + struct.unpack("<Q", raw[:8])[0], size)


def test_file_cut_in_the_data(pair):
    file = pair["a"] / WEIGHTS
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    assert refusal(pair) == truncated(pair, len(raw), len(raw) - 1)


def test_file_longer_than_its_header_says(pair):
    file = pair["a"] / WEIGHTS
    raw = file.read_bytes()
    file.write_bytes(raw + b"\0")
    assert f"{len(raw) + 1} bytes are there, its header promises {len(raw)}" in invalid(pair)


@pytest.mark.parametrize("length", [2**63, 200_000_000, 1])
def test_huge_or_empty_header(pair, length):
    file = pair["a"] / WEIGHTS
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    assert "invalid JSON in header" in (reason := invalid(pair)) or "header too large" in reason


@pytest.mark.parametrize(
    "text",
    [
        *(b"\xff\xfe{{{", b"[1, 2]", b'{"x": 3}', b'{"x": {}}', b"[" * 5000, b'{"a":' * 5000),
        *(b'{"x": NaN}', b'{"\\ud800": 1}', b'{"__metadata__": {"x": 3}}', b'{"x": "\xff"}'),
    ],
)
def test_corrupt_header(pair, text):
    file = pair["a"] / WEIGHTS
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "Error while deserializing header: " in invalid(pair)


@pytest.mark.parametrize(
    "shape",
    [[-64, -32], [64.0, 32], [True, 2048], ["64", 32], [1e400], [2**63], [1] * 17, 2048, None, {}],
)
def test_shapes_that_are_no_sizes(pair, shape):
    rewrite_header(pair["a"] / WEIGHTS, lambda h: h[MLP].update(shape=shape))
    assert "Error while deserializing header: " in invalid(pair)


@pytest.mark.parametrize("offsets", [[-2, 4094], [0], [0, 4096, 0], [0.0, 4096.0], None, "04"])
def test_offsets_that_are_none(pair, offsets):
    rewrite_header(pair["a"] / WEIGHTS, lambda h: h[MLP].update(data_offsets=offsets))
    assert "Error while deserializing header: " in invalid(pair)


def test_a_name_that_stands_twice_in_a_header(pair):
    file = pair["a"] / WEIGHTS
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    twice = f'{{"{MLP}": {json.dumps(header[MLP])}, {json.dumps(header)[1:]}'.encode()
    file.write_bytes(struct.pack("<Q", len(twice)) + twice + raw[8 + length :])
    assert invalid(pair) == f"duplicate name '{MLP}'"


def test_tensors_that_overlap_or_leave_holes(pair):
    file = pair["a"] / WEIGHTS
    whole = file.read_bytes()
    rewrite_header(file, lambda h: h.update(double=h[MLP]))
    assert "invalid offset for tensor" in invalid(pair)
    file.write_bytes(whole)
    rewrite_header(file, lambda h: h.pop(MLP))
    reason = invalid(pair)
    assert "file not fully covered" in reason or "invalid offset for tensor" in reason


def test_bytes_behind_the_last_tensor(pair):
    file = pair["a"] / WEIGHTS
    file.write_bytes(file.read_bytes() + b"xyz")
    assert "file not fully covered" in invalid(pair)


def test_names_cannot_spoil_the_message(pair):
    name = "x\n\x1b[31mred" + "y" * 100_000
    rewrite(pair["a"], lambda s: s.update({name: torch.zeros(1)}))
    message = refusal(pair)
    assert r"tensor x\n\x1b[31mred" in message
    assert message.isprintable()
    assert len(message) < 1100
    assert message.endswith("use a fine-tune of this base without added parts")


def test_shape_that_does_not_match_its_bytes(pair):
    rewrite_header(pair["a"] / WEIGHTS, lambda h: h[MLP].update(shape=[64, 33]))
    assert "invalid shape, data type, or offset for tensor" in invalid(pair)


def test_dtype_that_cannot_be_merged(pair):
    rewrite(pair["a"], lambda s: s.update({MLP: s[MLP].to(torch.float8_e4m3fn)}))
    message = refusal(pair)
    assert f"parent a: tensor {MLP} in" in message
    assert "has dtype F8_E4M3, which cannot be merged; save the model in bfloat16" in message


def test_missing_tensor(pair):
    rewrite(pair["a"], lambda s: s.pop(MLP))
    message = refusal(pair)
    assert f"parent a: tensor {MLP} is missing (1 in all), the base has it" in message
    assert "use a full fine-tune of this base" in message


def test_extra_tensor(pair):
    rewrite(pair["a"], lambda s: s.update({"lm_head.bias": torch.zeros(3)}))
    message = refusal(pair)
    assert "parent a: tensor lm_head.bias is not in the base (1 in all)" in message


def test_other_shape(pair):
    rewrite(pair["a"], lambda s: s.update({MLP: s[MLP][:60].clone()}))
    message = refusal(pair)
    assert f"parent a: tensor {MLP} has shape 60x32, the base has 64x32" in message


def test_whole_numbers_must_be_equal(pair):
    for name, value in (("base", 1), ("a", 1)):
        rewrite(pair[name], lambda s, v=value: s.update({"steps": torch.tensor([v])}))
    assert opened(pair).groups() == ("embed", *opened(pair).groups()[1:-1], "head")
    rewrite(pair["a"], lambda s: s.update({"steps": torch.tensor([2])}))
    assert "parent a: tensor steps holds whole numbers that differ from the base's" in refusal(pair)
    rewrite(pair["a"], lambda s: s.update({"steps": torch.tensor([2.0])}))
    assert "parent a: tensor steps has dtype F32, the base has I64" in refusal(pair)


@pytest.mark.parametrize(
    "name", ["../a/x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", 3]
)
def test_index_that_leaves_its_directory(shards, name):
    rewrite_json(shards["a"] / INDEX, lambda i: i["weight_map"].update({MLP: name}))
    message = refusal(shards)
    assert f"parent a: {INDEX} puts tensor {MLP} in {str(name)!r}, outside its directory" in message
    assert "do not trust this model" in message


def test_shard_that_is_missing(shards):
    (shards["a"] / "model-00002-of-00004.safetensors").unlink()
    message = refusal(shards)
    assert "parent a: shard model-00002-of-00004.safetensors is missing in" in message


def test_index_that_names_the_wrong_shard(shards):
    def move(index: dict) -> None:
        here = index["weight_map"][MLP]
        other = next(f for f in index["weight_map"].values() if f != here)
        index["weight_map"][MLP] = other

    rewrite_json(shards["a"] / INDEX, move)
    assert f"parent a: {INDEX} puts tensor {MLP} in model-0000" in refusal(shards)
    assert "which does not hold it; fetch the directory again" in refusal(shards)


def test_a_tensor_in_two_shards(shards):
    files = sorted(shards["a"].glob("model-*.safetensors"))
    state = load_file(files[0])
    name = min(load_file(files[1]))
    save_file({**state, name: torch.zeros(2)}, files[0])
    message = refusal(shards)
    assert (
        f"parent a: shard {files[0].name} holds tensor {name}, but {INDEX} puts it in " in message
    )
    save_file({**state, "more": torch.zeros(2)}, files[0])
    message = refusal(shards)
    assert f"holds tensor more, but {INDEX} omits it; fetch the directory again" in message


def test_a_name_that_stands_twice_in_an_index(shards):
    text = (shards["a"] / INDEX).read_text()
    name = json.dumps(MLP)
    (shards["a"] / INDEX).write_text(text.replace(f"{name}:", f'{name}: "x.safetensors", {name}:'))
    assert f"is not valid JSON (duplicate name '{MLP}')" in refusal(shards)


def test_links_that_lead_nowhere(shards):
    shard = shards["a"] / "model-00002-of-00004.safetensors"
    shard.unlink()
    (shards["a"] / "loop").symlink_to(shard)
    shard.symlink_to(shards["a"] / "loop")
    assert f"parent a: shard {shard.name} is missing in" in refusal(shards)
    shard.unlink()
    shutil.copy(shards["base"] / shard.name, shard.with_name("blob"))
    shard.symlink_to("blob")  # as in the hub's cache
    assert opened(shards).names == ("a",)
    (shards["a"] / "config.json").unlink()
    (shards["a"] / "config.json").symlink_to("config.json")
    assert "parent a: cannot read " in refusal(shards)
    assert "config.json (Too many levels of symbolic links); fetch" in refusal(shards)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_directories_named_like_files(pair, name):
    (pair["a"] / name).unlink()
    (pair["a"] / name).mkdir()
    if name == "tokenizer.json":
        assert opened(pair).names == ("a",)
    else:
        assert refusal(pair).startswith("parent a: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_pipe_is_no_file(pair):
    (pair["a"] / WEIGHTS).unlink()
    os.mkfifo(pair["a"] / WEIGHTS)
    assert f"parent a: no {WEIGHTS} nor {INDEX} in" in refusal(pair)


def test_json_files_have_a_largest_size(pair, monkeypatch):
    monkeypatch.setattr(headers, "MAX_JSON_BYTES", 6000)
    (pair["a"] / "config.json").write_text(" " * 6001)
    assert "config.json has 6001 bytes, at most 6000 are read" in refusal(pair)


def test_index_without_a_map(shards):
    rewrite_json(shards["a"] / INDEX, lambda i: i.pop("weight_map"))
    assert f"parent a: {INDEX} has no weight_map; fetch" in refusal(shards)
    (shards["a"] / INDEX).write_text("{")
    assert "is not valid JSON (" in refusal(shards)
    (shards["a"] / INDEX).write_text("[]")
    assert "must hold a JSON object; fetch the directory again" in refusal(shards)


def test_missing_config(pair):
    (pair["a"] / "config.json").unlink()
    assert "parent a: no config.json in" in refusal(pair)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 8, "has num_attention_heads = 8, the base has 4"),
        ("tie_word_embeddings", False, "has tie_word_embeddings = False, the base has True"),
        ("rms_norm_eps", 0.1, "has rms_norm_eps = 0.1, the base has 1e-06"),
        ("model_type", "mistral", "has model_type = 'mistral', the base has 'llama'"),
    ],
)
def test_other_config(pair, key, value, message):
    rewrite_json(pair["a"] / "config.json", lambda c: c.update({key: value}))
    assert refusal(pair).startswith(f"parent a: config.json has {key}")
    assert message in refusal(pair)
    assert refusal(pair).endswith("; use a fine-tune of this base")


def test_other_vocabulary_size(pair):
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(vocab_size=300))
    assert refusal(pair) == (
        "parent a: config.json has vocab_size = 300, the base has 259; use a fine-tune of this "
        "base, or choose the policy `tokenizer: base` or `tokenizer: union`"
    )


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels", "n_layer", "encoder_layers"])
def test_settings_that_would_fill_the_memory(pair, key):
    rewrite_json(pair["a"] / "config.json", lambda c: c.update({key: 10**12}))
    message = refusal(pair)
    assert f"config.json has {key} = 1000000000000, more than 10000; fetch the file" in message


def test_settings_that_do_not_touch_the_weights_may_differ(pair):
    free = {
        "eos_token_id": 5,
        "use_cache": False,
        "transformers_version": "4.0",
        "dtype": "float32",
    }
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(free, attention_dropout=0.1))
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(made_by_some_trainer=1))
    assert opened(pair).names == ("a",)


def test_architecture_unknown_to_transformers(pair):
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(model_type="novel"))
    assert "parent a: transformers cannot read" in refusal(pair)
    assert "without remote code" in refusal(pair)


def test_files_of_an_unknown_architecture_can_be_opened(pair):
    for folder in pair.values():
        rewrite_json(folder / "config.json", lambda c: c.update(model_type="novel"))
    parents = ParentSet.open(pair["base"], {"a": pair["a"]}, architecture_required=False)
    assert parents.config["model_type"] == "novel"
    assert parents.n_layers == 3
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(rms_norm_eps=0.1))
    with pytest.raises(ParentError, match=r"parent a: config.json has rms_norm_eps = 0.1"):
        ParentSet.open(pair["base"], {"a": pair["a"]}, architecture_required=False)


def test_mixtures_of_experts_open_by_tensor_name(tmp_path):
    paths = tiny_family(tmp_path, arch="qwen3_moe", n_parents=1)
    parents = opened(paths)
    expert = "model.layers.1.mlp.experts.2.down_proj.weight"
    assert torch.equal(parents.tensor("a", expert), load_file(paths["a"] / WEIGHTS)[expert])
    assert {"layers.0.attn", "layers.1.mlp"} <= set(parents.groups())


def test_multimodal_models_open_and_their_parts_are_compared(tmp_path):
    paths = tiny_family(tmp_path, arch="llava", n_parents=1)
    parents = opened(paths)
    tower = next(name for name in parents.tensors if "vision" in name)
    assert torch.equal(parents.tensor("a", tower), load_file(paths["a"] / WEIGHTS)[tower])
    for key, value in (("use_cache", False), ("_name_or_path", "elsewhere")):
        rewrite_json(
            paths["a"] / "config.json", lambda c, k=key, v=value: c["text_config"].update({k: v})
        )
    assert opened(paths).names == ("a",)
    rewrite_json(paths["a"] / "config.json", lambda c: c["text_config"].update(rms_norm_eps=0.5))
    assert "parent a: config.json has text_config.rms_norm_eps = 0.5, the base has" in refusal(
        paths
    )


def test_quantised_weights(pair):
    rewrite_json(pair["a"] / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    assert "parent a: " in refusal(pair)
    assert "holds quantised weights" in refusal(pair)
    assert "save a dequantised copy in bfloat16" in refusal(pair)


def test_other_token_ids(pair):
    def swap(data: dict) -> None:
        vocab = data["model"]["vocab"]
        vocab["A"], vocab["B"] = vocab["B"], vocab["A"]

    rewrite_json(pair["a"] / "tokenizer.json", swap)
    message = refusal(pair)
    assert "parent a: vocabulary differs: token 'A' has id" in message
    assert (
        "(259 tokens against 259); use a fine-tune that kept the base's tokenizer, or " in message
    )
    assert message.endswith("choose the policy `tokenizer: base` or `tokenizer: union`")


def test_added_token(pair):
    token = {"id": 259, "content": "<|im_start|>", "special": True}
    rewrite_json(pair["a"] / "tokenizer.json", lambda d: d["added_tokens"].append(token))
    assert "token '<|im_start|>' has id 259, in the base none (260 tokens" in refusal(pair)


def test_special_tokens(pair):
    rewrite_json(pair["a"] / "tokenizer.json", lambda d: d["added_tokens"][0].update(special=False))
    message = refusal(pair)
    assert "parent a: special tokens differ: '<pad>' is not special here" in message


def test_tokenizer_file_of_another_kind(pair):
    rewrite_json(pair["a"] / "tokenizer.json", lambda d: d.pop("model"))
    assert "is not a tokenizers file (KeyError: 'model'); fetch it again" in refusal(pair)


def test_slow_vocabularies_are_compared_as_bytes(pair, caplog):
    for folder in pair.values():
        (folder / "tokenizer.json").unlink()
    assert opened(pair).names == ("a",)
    assert "parent a: no tokenizer files to compare in" in caplog.text
    for name, folder in pair.items():
        (folder / "tokenizer.model").write_text(name)
    assert "parent a: vocabulary file tokenizer.model differs from the base's" in refusal(pair)


def test_a_file_that_rots_after_opening_is_still_one_line(pair):
    parents = opened(pair)
    file = pair["a"] / WEIGHTS
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ParentError, match=r"parent a: cannot read tensor .* fetch it again"):
        parents.tensor("a", MLP)


@pytest.mark.parametrize("name", ["base", "", "x\0y"])
def test_names_that_parents_cannot_have(pair, name):
    with pytest.raises(ParentError, match="a parent's name must be non-empty and not `base`"):
        ParentSet.open(pair["base"], {name: pair["a"]})


def test_a_merge_needs_a_parent(pair):
    with pytest.raises(ParentError, match="a merge needs at least one parent, got none"):
        ParentSet.open(pair["base"], {})


def test_tensors_are_those_of_the_files(parents, sharded):
    for source in (parents, opened(sharded)):
        assert source.names == ("a", "b", "c")
        for name, info in source.tensors.items():
            expected = load_file(info.file)[name]
            assert torch.equal(source.tensor("base", name), expected)
            assert info.shape == tuple(expected.shape)
            assert info.dtype == "BF16"
    tensors = load_file(parents.folders["a"] / WEIGHTS)
    assert parents.bytes_of("a") == sum(tensor.nbytes for tensor in tensors.values())
    assert parents.bytes_of("a", MLP) == tensors[MLP].nbytes
    assert parents.infos("a").keys() == tensors.keys()
    assert parents.low_rank("a", MLP) is None
    assert not parents.is_base("a", MLP)


def test_groups_follow_a_grouping(parents):
    grouping = Grouping(((("*.layers.{layer}.*.q_proj.*"), "layers.{layer}.q"),))
    assert "layers.2.q" in parents.groups(grouping)
    assert "layers.2.q" not in parents.groups()


def test_digests_follow_the_bytes(pair):
    expected = {n: hashlib.sha256((p / WEIGHTS).read_bytes()).hexdigest() for n, p in pair.items()}
    assert opened(pair).digests() == expected
    rewrite(pair["a"], lambda s: s[MLP].add_(1))
    changed = opened(pair).digests()
    assert changed["base"] == expected["base"]
    assert changed["a"] != expected["a"]


def test_digests_of_shards_see_each_shard(shards):
    before = opened(shards).digests()
    file = sorted(shards["a"].glob("model-*.safetensors"))[2]
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    after = opened(shards).digests()
    assert before["a"] != after["a"]
    assert before["base"] == after["base"]
