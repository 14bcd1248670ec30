"""Vocabularies that differ: refused, or brought into one order by a policy, row by row."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.families import tiny_family

from ..conftest import Family
from ..trained import EMBED, HEAD, add_tokens, rewrite, special

POLICIES = "choose the policy `tokenizer: base` or `tokenizer: union`"
TEXT = "<|im_start|>hi<|im_end|> you"


def pad(folder: Path, n_rows: int, value: float) -> None:
    """Lengthen embeddings and head to a round number, as trainers do for speed."""
    state = load_file(folder / "model.safetensors")
    for name in {EMBED, HEAD} & state.keys():
        more = torch.full((n_rows - len(state[name]), 32), value, dtype=state[name].dtype)
        state[name] = torch.cat([state[name], more])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder / "config.json", lambda c: c.update(vocab_size=n_rows))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A base and three parents: "a" has two tokens more, "b" one of these and another, "c" none."""
    folder = tmp_path_factory.mktemp("grown")
    paths = tiny_family(folder, tied=request.param, dtype="float32", n_parents=3, n_layers=1)
    add_tokens(paths["a"], special("<|im_start|>"), special("<|im_end|>"), seed=1)
    add_tokens(paths["b"], "<tool>", special("<|im_end|>"), seed=2)
    return paths


def opened(paths: Family, names: str = "a", tokenizer: str | None = "union") -> ParentSet:
    return ParentSet.open(paths["base"], {n: paths[n] for n in names}, tokenizer=tokenizer)


def refusal(paths: Family, tokenizer: str | None = "union") -> str:
    with pytest.raises(ParentError) as caught:
        opened(paths, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(parents: ParentSet, owner: str, folder: Path) -> Path:
    """Save what a parent set serves for one of its models as a directory of its own."""
    folder.mkdir()
    state = {name: parents.tensor(owner, name).contiguous() for name in parents.tensors}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((parents.folders["base"] / "config.json").read_text())
    config["vocab_size"] = parents.config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in parents.tokenizer_files().items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (folder / name).write_bytes(data)
    return folder


@torch.no_grad()
def logits(folder: Path, text: str) -> tuple[torch.Tensor, dict[str, int]]:
    """Logits (T, V) of a text, and the ids of the tokens that are its columns."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return model(ids).logits[0], tokenizer.get_vocab()


@pytest.mark.parametrize("names", ["a", "cba"])
def test_a_union_gives_each_parent_its_logits(grown, tmp_path, names):
    texts = {"a": TEXT, "b": "<|im_end|>hi<tool>", "c": "hello"}
    parents = opened(grown, names)
    for parent in names:
        saved = write(parents, parent, tmp_path / parent)
        ours, our_ids = logits(saved, texts[parent])
        theirs, their_ids = logits(grown[parent], texts[parent])
        tokens = sorted(their_ids)
        torch.testing.assert_close(
            ours[:, [our_ids[t] for t in tokens]], theirs[:, [their_ids[t] for t in tokens]]
        )


def test_a_union_has_the_bases_ids_first_then_the_parents_by_name(grown, tmp_path):
    parents = opened(grown, "cba")
    assert parents.config["vocab_size"] == 262
    assert parents.tensors[EMBED].shape == (262, 32)
    assert all(parents.infos(o)[EMBED].shape == (262, 32) for o in parents.folders)
    tokenizer = AutoTokenizer.from_pretrained(write(parents, "base", tmp_path / "out"))
    before = AutoTokenizer.from_pretrained(grown["base"])
    ids = tokenizer.get_vocab()
    assert len(tokenizer) == 262
    assert {token: ids[token] for token in before.get_vocab()} == before.get_vocab()
    new = ["<|im_start|>", "<|im_end|>", "<tool>"]
    assert [ids[token] for token in new] == [259, 260, 261]
    assert tokenizer.chat_template == before.chat_template
    assert tokenizer.decode(tokenizer(TEXT + "<tool>")["input_ids"]) == TEXT + "<tool>"
    assert tokenizer.decode([259, 261], skip_special_tokens=True) == "<tool>"


def test_a_union_fills_rows_with_the_mean_of_those_that_have_them(grown):
    parents = opened(grown, "abc")
    rows = {name: load_file(grown[name] / "model.safetensors")[EMBED] for name in ("a", "b", "c")}
    base = parents.tensor("base", EMBED)
    assert torch.equal(base[:259], load_file(grown["base"] / "model.safetensors")[EMBED])
    assert torch.equal(base[259], rows["a"][259])
    assert torch.equal(base[260], (rows["a"][260] + rows["b"][260]) / 2)
    assert torch.equal(base[261], rows["b"][259])
    served = {name: parents.tensor(name, EMBED) for name in "abc"}
    assert torch.equal(served["a"], torch.cat([rows["a"], base[261:]]))
    assert torch.equal(served["b"][259:], torch.stack([base[259], rows["b"][260], rows["b"][259]]))
    assert torch.equal(served["c"], torch.cat([rows["c"], base[259:]]))


def test_the_base_policy_gives_a_model_of_the_bases_vocabulary(grown, tmp_path):
    parents = opened(grown, "ab", "base")
    base = grown["base"]
    assert parents.config == ParentSet.open(base, {"c": grown["c"]}).config
    assert parents.tensors == opened(grown, "c", None).tensors
    for name, content in parents.tokenizer_files().items():
        assert content == base / name
    rows = load_file(grown["b"] / "model.safetensors")[EMBED]
    assert torch.equal(parents.tensor("b", EMBED), rows[:259])
    assert parents.infos("b")[EMBED].shape == (259, 32)
    saved = write(parents, "a", tmp_path / "a")
    ours, _ = logits(saved, "hello")
    theirs, _ = logits(grown["a"], "hello")
    torch.testing.assert_close(ours, theirs[:, :259])


def test_a_token_that_a_parent_lacks_has_the_bases_row(grown):
    paths = {"base": grown["b"], "a": grown["c"], "b": grown["a"]}
    parents = opened(paths, "ab", "base")
    base = load_file(grown["b"] / "model.safetensors")[EMBED]
    tensors = load_file(grown["a"] / "model.safetensors")[EMBED]
    assert torch.equal(parents.tensor("base", EMBED), base)
    assert torch.equal(parents.tensor("a", EMBED)[259:], base[259:])
    assert torch.equal(parents.tensor("b", EMBED)[259:], torch.stack([base[259], tensors[260]]))


def test_equal_vocabularies_are_left_alone(grown):
    for policy in ("base", "union"):
        parents, plain = opened(grown, "c", policy), opened(grown, "c", None)
        assert parents.digests() == plain.digests()
        assert dict(parents.tokenizer_files()) == dict(plain.tokenizer_files())
        assert parents.config == plain.config


def test_the_order_of_rows_enters_the_digests(grown):
    union, base, plain = (
        opened(grown, "ac", policy).digests() for policy in ("union", "base", "base")
    )
    assert base == plain
    assert len({union["a"], base["a"]}) == len({union["base"], base["base"]}) == 2
    assert opened(grown, "abc").digests()["base"] != union["base"]
    assert base["base"] == opened(grown, "c", None).digests()["base"]


def test_only_rows_of_tokens_are_mapped(grown):
    parents = opened(grown, "ab")
    norm = "model.norm.weight"
    state = load_file(grown["a"] / "model.safetensors")
    assert torch.equal(parents.tensor("a", norm), state[norm])
    assert parents.bytes_of("a", norm) == 128
    assert parents.bytes_of("a", EMBED) == parents.bytes_of("base", EMBED) == 262 * 32 * 4


# ---- padding, dtypes, adapters ------------------------------------------------------------------


@pytest.fixture
def pair(grown: Family, tmp_path: Path) -> Family:
    """A base and a parent with two tokens more that a test may spoil."""
    return {name: Path(shutil.copytree(grown[name], tmp_path / name)) for name in ("base", "a")}


def test_new_tokens_take_the_bases_padding_rows(pair):
    pad(pair["base"], 264, 7.0)
    parents = opened(pair)
    assert parents.config["vocab_size"] == 264
    base, tuned = parents.tensor("base", EMBED), parents.tensor("a", EMBED)
    rows = load_file(pair["a"] / "model.safetensors")[EMBED]
    assert torch.equal(tuned[:261], rows)
    assert torch.equal(base[259:261], rows[259:])
    assert torch.equal(base[261:], torch.full((3, 32), 7.0))
    assert torch.equal(tuned[261:], base[261:])


def test_padding_of_both_stays_each_ones_own(pair):
    pad(pair["base"], 264, 7.0)
    pad(pair["a"], 288, 8.0)
    for policy in ("base", "union"):
        parents = opened(pair, tokenizer=policy)
        assert parents.config["vocab_size"] == 264
        assert torch.equal(parents.tensor("a", EMBED)[261:], torch.full((3, 32), 8.0))
    assert torch.equal(
        opened(pair, tokenizer="base").tensor("a", EMBED)[259:261], torch.full((2, 32), 7.0)
    )


def test_tokens_in_padding_rows_are_mapped_though_shapes_agree(pair):
    for folder in pair.values():
        pad(folder, 264, 7.0)
    parents = opened(pair, tokenizer="base")
    assert torch.equal(parents.tensor("a", EMBED)[259:261], torch.full((2, 32), 7.0))


def test_rows_from_a_base_of_another_dtype_keep_their_bits(pair):
    state = load_file(pair["a"] / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    save_file(half, pair["a"] / "model.safetensors", metadata={"format": "pt"})
    pad(pair["base"], 264, 1.0 + 2.0**-20)
    parents = opened(pair)
    tuned = parents.tensor("a", EMBED)
    assert tuned.dtype == torch.float32
    assert parents.infos("a")[EMBED].dtype == "F32"
    assert torch.equal(tuned[261:], parents.tensor("base", EMBED)[261:])


def test_an_adapter_may_bring_tokens(pair, tmp_path):
    """As peft saves it: resized embeddings and head whole, and the tokenizer beside them."""
    out = tmp_path / "lora"
    out.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "base"}
    (out / "adapter_config.json").write_text(json.dumps(settings))
    (out / "tokenizer.json").write_bytes((pair["a"] / "tokenizer.json").read_bytes())
    state = load_file(pair["a"] / "model.safetensors")
    q = "model.layers.0.self_attn.q_proj"
    factors = {f"{q}.lora_A.weight": torch.ones(1, 32), f"{q}.lora_B.weight": torch.ones(32, 1)}
    whole = {EMBED: state[EMBED], HEAD: state.get(HEAD, state[EMBED]).clone()}
    tensors = {f"base_model.model.{name}": tensor for name, tensor in (factors | whole).items()}
    save_file(tensors, out / "adapter_model.safetensors")
    parents = opened({"base": pair["base"], "a": out})
    assert torch.equal(parents.tensor("a", EMBED), state[EMBED])
    assert parents.low_rank("a", f"{q}.weight") is not None
    assert parents.low_rank("a", EMBED) is None
    assert parents.is_base("a", "model.norm.weight")
    assert not parents.is_base("a", EMBED)
    assert "vocabulary differs: token '<|im_end|>'" in refusal(
        {"base": pair["base"], "a": out}, None
    )


def test_settings_of_parts_are_resized_too(tmp_path):
    paths = tiny_family(tmp_path, arch="llava", n_parents=1, n_layers=1, dtype="float32")
    shutil.rmtree(paths["a"])
    shutil.copytree(paths["base"], paths["a"])
    state = load_file(paths["a"] / "model.safetensors")
    name = next(n for n in state if "embed_tokens" in n)
    state[name] = torch.cat([state[name], torch.ones(1, 32)])
    save_file(state, paths["a"] / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(paths["a"])
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(paths["a"])
    rewrite(paths["a"] / "config.json", lambda c: c["text_config"].update(vocab_size=260))
    parents = opened(paths)
    assert parents.config["text_config"]["vocab_size"] == 260
    assert parents.tensors[name].shape == (260, 32)
    kind = type(AutoConfig.from_pretrained(paths["base"]))
    assert kind.from_dict(dict(parents.config)).text_config.vocab_size == 260


def test_tokenizers_saved_by_older_versions_get_their_lists_too(pair, tmp_path):
    before = json.loads((pair["base"] / "tokenizer.json").read_text())["added_tokens"]
    kept = {str(entry.pop("id")): entry for entry in before}
    rewrite(pair["base"] / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=kept))
    (pair["base"] / "added_tokens.json").write_text('{"<pad>": 0}')
    parents = opened(pair)
    folder = write(parents, "base", tmp_path / "out")
    added = json.loads((folder / "added_tokens.json").read_text())
    assert added == {"<pad>": 0, "<|im_start|>": 259, "<|im_end|>": 260}
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert decoder["260"]["content"] == "<|im_end|>"
    assert decoder["260"]["special"] is True
    assert AutoTokenizer.from_pretrained(folder).get_vocab()["<|im_end|>"] == 260


# ---- what is refused ----------------------------------------------------------------------------


def test_without_a_policy_differences_are_refused_with_the_remedy(pair):
    message = refusal(pair, None)
    assert message.startswith("parent a: config.json has vocab_size = 261, the base has 259; ")
    assert message.endswith(POLICIES)
    pad(pair["base"], 261, 0.0)
    message = refusal(pair, None)
    assert "vocabulary differs: token '<|im_end|>' has id 260, in the base none" in message
    assert message.endswith(POLICIES)


def test_special_tokens_follow_the_policy(grown, tmp_path):
    paths = {
        n: Path(shutil.copytree(grown[x], tmp_path / n)) for n, x in (("base", "base"), ("a", "c"))
    }
    rewrite(paths["a"] / "tokenizer.json", lambda d: d["added_tokens"][0].update(special=False))
    message = refusal(paths, None)
    assert "special tokens differ: '<pad>' is not special here, unlike in the base" in message
    assert message.endswith(POLICIES)
    for policy in ("base", "union"):
        files = opened(paths, tokenizer=policy).tokenizer_files()
        assert files["tokenizer.json"] == paths["base"] / "tokenizer.json"


def test_an_unknown_policy(pair):
    assert refusal(pair, "best") == "`tokenizer` must be base, union or left out, got 'best'"


@pytest.mark.parametrize("policy", ["base", "union"])
def test_another_core_is_refused(pair, policy):
    def swap(data: dict) -> None:
        vocab = data["model"]["vocab"]
        vocab["A"], vocab["B"] = vocab["B"], vocab["A"]

    tokenizer = pair["a"] / "tokenizer.json"
    good = tokenizer.read_bytes()
    rewrite(tokenizer, swap)
    message = refusal(pair, policy)
    assert "parent a: its tokenizer has another core than the base's: token 'A' has id" in message
    assert "a tokenizer policy maps added tokens only, use a fine-tune whose" in message
    tokenizer.write_bytes(good)
    rewrite(tokenizer, lambda d: d["model"]["merges"].append(["A", "B"]))
    assert "has other merges than the base's, so the same text is split" in refusal(pair, policy)
    tokenizer.write_bytes(good)
    rewrite(tokenizer, lambda d: d["model"].update(type="WordLevel"))
    assert "its tokenizer is of kind WordLevel, the base's of kind BPE;" in refusal(pair, policy)


def test_merges_may_be_written_in_two_forms(pair):
    for name, merge in (("base", "A B"), ("a", ["A", "B"])):
        rewrite(pair[name] / "tokenizer.json", lambda d, m=merge: d["model"]["merges"].append(m))
    assert opened(pair, tokenizer="base").names == ("a",)


def test_a_policy_needs_tokenizers(pair):
    good = (pair["a"] / "tokenizer.json").read_bytes()
    (pair["a"] / "tokenizer.json").unlink()
    message = refusal(pair)
    assert "parent a: no tokenizer.json in" in message
    assert "by which a tokenizer policy maps its 261 rows onto the base's 259; save it" in message
    (pair["a"] / "tokenizer.json").write_bytes(good)
    (pair["base"] / "tokenizer.json").unlink()
    assert "base: no tokenizer.json in" in refusal(pair)


def test_a_parent_without_a_tokenizer_has_the_bases(grown, tmp_path):
    tuned = Path(shutil.copytree(grown["c"], tmp_path / "c"))
    for file in [*tuned.glob("tokenizer*"), *tuned.glob("*.jinja")]:
        file.unlink()
    parents = opened({**grown, "c": tuned}, "ac")
    assert torch.equal(parents.tensor("c", EMBED)[259:], parents.tensor("base", EMBED)[259:])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"model": {"vocab": {"a": -1}}}', "TypeError: token 'a' has id -1"),
        ('{"model": {"vocab": {"a": 1.5}}}', "TypeError: token 'a' has id 1.5"),
        ('{"model": {"vocab": [3]}}', "TypeError: "),
        ('{"model": {}}', "KeyError: 'vocab'"),
        ('{"model": 3}', "TypeError: "),
        ('{"model": {"vocab": {}}, "added_tokens": [7]}', "TypeError: "),
        ('{"model": {"vocab": {}, "merges": 7}}', "TypeError: "),
        ('{"model": {"vocab": {}, "merges": [["a"]]}}', "IndexError: "),
    ],
)
def test_files_that_are_no_tokenizers(pair, text, reason):
    (pair["a"] / "tokenizer.json").write_text(text)
    assert f"tokenizer.json is not a tokenizers file ({reason}" in refusal(pair)


def test_tokens_that_the_library_will_not_have(pair):
    good = (pair["a"] / "tokenizer.json").read_text()
    for token in ("", "\ud800"):
        bad = good.replace('"<|im_end|>"', json.dumps(token))
        (pair["a"] / "tokenizer.json").write_text(bad)
        message = refusal(pair)
        assert "base: the tokenizers library cannot add the parents' tokens to " in message
        assert message.endswith("; fetch base and parents again")
    (pair["a"] / "tokenizer.json").write_text(good)
    rewrite(pair["base"] / "tokenizer.json", lambda d: d.update(normalizer={"type": "Novel"}))
    assert "cannot add the parents' tokens to " in refusal(pair)


def test_tokens_without_rows(pair, caplog):
    state = load_file(pair["a"] / "model.safetensors")
    for name in {EMBED, HEAD} & state.keys():
        state[name] = state[name][:260].clone()
    save_file(state, pair["a"] / "model.safetensors", metadata={"format": "pt"})
    rewrite(pair["a"] / "config.json", lambda c: c.update(vocab_size=260))
    parents = opened(pair)
    assert parents.config["vocab_size"] == 260
    assert "parent a: token '<|im_end|>' has id 260, its embeddings have 260 rows" in caplog.text
    swapped = {"base": pair["a"], "a": pair["base"]}
    assert opened(swapped, tokenizer="base").tensors[EMBED].shape == (260, 32)
    add_tokens(pair["base"], "<x>")
    message = refusal(swapped)
    assert "base: token '<|im_end|>' has id 260, but the embeddings have 260 rows" in message
    assert message.endswith("resize the base's embeddings")


def test_embeddings_and_head_of_different_lengths(untied, tmp_path):
    tuned = Path(shutil.copytree(untied["a"], tmp_path / "a"))
    state = load_file(tuned / "model.safetensors")
    state[HEAD] = state[HEAD][:258].clone()
    save_file(state, tuned / "model.safetensors", metadata={"format": "pt"})
    message = refusal({"base": untied["base"], "a": tuned})
    assert (
        "parent a: the tensors with one row per token must have the same number of rows" in message
    )
    assert f"but {HEAD} has 258, {EMBED} has 259; resize embeddings and head together" in message


def test_settings_that_deny_the_embeddings(pair):
    rewrite(pair["base"] / "config.json", lambda c: c.update(vocab_size=300))
    message = refusal(pair)
    assert "base: no tensor outside the layers has one row for each of the 300 tokens" in message
    assert message.endswith("correct config.json, or leave `tokenizer` out")
