"""The resident model: what from_pretrained gives, with a place for every tensor of the files."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from heterosis.merge.engine import devices
from heterosis.merge.engine.devices import settle
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.engine.resident import build_resident, outline
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from heterosis.merge.recipe.recipe import Recipe
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Concatenate, ConversionOps, Interleave, WeightConverter

from tests.families import byte_tokenizer, tiny_family

from ..conftest import Family, opened

TEXT: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CPU = torch.device("cpu")
NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=258,
        boi_token_index=256,
        eoi_token_index=257,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        image_token_index=258,
    )
    return transformers.LlavaForConditionalGeneration(config)


def made(name: str, **settings: Any) -> Callable[[], PreTrainedModel]:
    config = getattr(transformers, f"{name}Config")
    kind = getattr(transformers, f"{name}ForCausalLM")
    return lambda: kind(config(**TEXT, **settings))


MODELS = {
    "mixtral": made("Mixtral", num_local_experts=3),
    "qwen2_moe": made("Qwen2Moe", num_experts=3, shared_expert_intermediate_size=24, **EXPERTS),
    "qwen3_moe": made("Qwen3Moe", num_experts=3, head_dim=8, **EXPERTS),
    "deepseek_v3": made(
        "DeepseekV3",
        **EXPERTS,
        n_routed_experts=4,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "hrm_text": made("HrmText", head_dim=8),  # files join what the model holds apart
    "phi3": made("Phi3"),
    "gemma3": gemma3,
    "llava": llava,
}
STACKED = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"]


def save(name: str, folder: Path) -> Family:
    """A base and one parent, of random weights."""
    generator = torch.Generator().manual_seed(0)
    paths = {"base": folder / "base", "a": folder / "a"}
    model: Any = MODELS[name]()
    for path in paths.values():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.05, generator=generator)
        model.to(torch.bfloat16).save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
    return paths


@pytest.fixture(scope="module", params=["llama", "untied", "qwen2", "gpt2", *MODELS])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in MODELS:
        return save(request.param, folder)
    arch = "llama" if request.param == "untied" else request.param
    return tiny_family(folder, arch=arch, tied=request.param != "untied", n_parents=1)


def loaded(folder: Path, kind: type[PreTrainedModel], dtype: str) -> PreTrainedModel:
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same(model: PreTrainedModel, other: PreTrainedModel) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_is_what_from_pretrained_gives(paths, dtype):
    parents = opened(paths)
    model = build_resident(parents, dtype=dtype).model
    named = json.loads((paths["base"] / "config.json").read_text())["architectures"]
    assert [type(model).__name__] == named
    other = loaded(paths["base"], type(model), dtype)
    assert_same(model, other)
    assert not model.training
    assert model.config.to_dict() == other.config.to_dict()
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    ids = torch.arange(12)[None] + 3
    assert torch.equal(model(ids).logits, other(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_targets_are_views_that_hold_the_files_tensors(paths, dtype):
    parents = opened(paths)
    resident = build_resident(parents, dtype=dtype)
    held = {t.untyped_storage().data_ptr() for t in resident.model.state_dict().values()}
    assert resident.targets.keys() == parents.tensors.keys()
    for name, target in resident.targets.items():
        assert type(target) is torch.Tensor
        assert not target.requires_grad
        assert target.untyped_storage().data_ptr() in held
        assert torch.equal(target, parents.tensor("base", name).to(target.dtype))


def test_what_is_written_to_targets_is_the_parents_model(paths):
    parents = opened(paths)
    resident = build_resident(parents, dtype="bfloat16")
    for name, target in resident.targets.items():
        target.copy_(parents.tensor("a", name))
    assert_same(resident.model, loaded(paths["a"], type(resident.model), "bfloat16"))


def test_an_outline_tells_sizes_beforehand(paths):
    parents = opened(paths)
    shape = outline(parents, dtype="float16")
    resident = build_resident(parents, dtype="float16")
    size = sum(tensor.nbytes for tensor in weights(resident.model).values())
    assert shape.devices == {CPU: size}
    assert list(shape.targets) == list(resident.targets)
    assert set(shape.targets.values()) == {CPU}
    assert 0 < shape.sample <= size


@pytest.mark.parametrize("arch", STACKED)
def test_experts_are_slices_of_one_parameter(arch, tmp_path):
    parents = opened(save(arch, tmp_path))
    targets = build_resident(parents, dtype="bfloat16").targets
    experts = [name for name in targets if ".experts.1." in name]
    assert experts
    for name in experts:
        twin = targets[name.replace(".experts.1.", ".experts.2.")]
        assert targets[name].is_contiguous()
        assert targets[name].untyped_storage().data_ptr() == twin.untyped_storage().data_ptr()


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "hrm_text", "gemma3"])
def test_a_recipe_is_written_to_the_right_slices(arch, tmp_path):
    paths = save(arch, tmp_path)
    parents = opened(paths)
    engine = MergeEngine(
        parents, dtype="bfloat16", compile=False, statistics_folder=tmp_path / "facts"
    )
    for weight, owner in ((1.0, "a"), (0.0, "base")):
        model = engine.load(Recipe.uniform("task_arithmetic", ("a",), parents.groups(), weight))
        assert_same(model, loaded(paths[owner], type(model), "bfloat16"))


def test_files_without_the_base_models_prefix_load(tmp_path):
    # The hub's own GPT-2 files have none.
    paths = tiny_family(tmp_path, arch="gpt2", n_parents=1)
    for folder in paths.values():
        rewrite(folder, lambda state: {n.removeprefix("transformer."): state[n] for n in state})
    parents = opened(paths)
    resident = build_resident(parents, dtype="float32")
    assert "wte.weight" in resident.targets
    assert_same(resident.model, loaded(paths["base"], type(resident.model), "float32"))


def rewrite(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_tensors_that_are_tied_appear_once(tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    for folder in paths.values():
        rewrite(folder, lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"].clone()})
    parents = opened(paths)
    resident = build_resident(parents, dtype="float32")
    assert parents.tensors.keys() - resident.targets.keys() == {"model.embed_tokens.weight"} or (
        parents.tensors.keys() - resident.targets.keys() == {"lm_head.weight"}
    )
    embeddings = resident.model.get_input_embeddings().weight
    assert embeddings is resident.model.get_output_embeddings().weight
    rewrite(paths["a"], lambda s: s | {"lm_head.weight": s["lm_head.weight"] + 1})
    with pytest.raises(ParentError, match=r"parent a: tensors .* differ, in the base they are one"):
        build_resident(opened(paths), dtype="float32")


def test_the_vocabulary_is_that_of_the_parent_set(tmp_path):
    paths = tiny_family(tmp_path, n_parents=1, tied=False)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(paths["a"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rewrite(paths["a"], lambda s, n=name: s | {n: torch.cat([s[n], s[n][:1]])})
    config = json.loads((paths["a"] / "config.json").read_text())
    (paths["a"] / "config.json").write_text(json.dumps(config | {"vocab_size": 260}))
    parents = ParentSet.open(paths["base"], {"a": paths["a"]}, tokenizer="union")
    resident = build_resident(parents, dtype="bfloat16")
    assert resident.model.config.vocab_size == 260
    assert resident.model.get_input_embeddings().weight.shape == (260, 32)
    for name, target in resident.targets.items():
        assert torch.equal(target, parents.tensor("base", name)), name


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: {n: t for n, t in s.items() if n != NORM}, f"lacks tensor {NORM}"),
        (lambda s: s | {"odd": torch.ones(2)}, "has unknown tensor odd"),
        (lambda s: s | {NORM: torch.ones(3)}, f"has a wrong shape of tensor {NORM}"),
    ],
)
def test_a_base_that_does_not_fit_its_architecture_is_refused(change, fault, tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    for folder in paths.values():
        rewrite(folder, change)
    message = rf"base: .* {re.escape(fault)}.* of its architecture LlamaForCausalLM; use a complete"
    with pytest.raises(ParentError, match=message):
        build_resident(opened(paths), dtype="float32")


def test_an_architecture_that_writes_no_text_is_refused(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(**VISION, num_channels=3))
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ParentError, match="architecture vit, for which transformers has no model"):
        build_resident(ParentSet.open(tmp_path / "base", {"a": tmp_path / "base"}), dtype="float32")


def test_unknown_dtypes_are_refused(parents):
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16, got 'int8'"):
        build_resident(parents, dtype="int8")


class Shuffled(Interleave):
    """Says that it is undone by doing nothing."""

    @property
    def reverse_op(self) -> ConversionOps:
        return Same()


class Same(ConversionOps):
    def convert(self, input_dict: Any, **kwargs: Any) -> Any:
        return input_dict


class Twice(Concatenate):
    """The model holds the file's tensor and half of it again."""

    def convert(self, input_dict: Any, target_patterns: Any, **kwargs: Any) -> Any:
        (tensor,) = next(iter(input_dict.values()))
        return {target_patterns[0]: torch.cat([tensor, tensor])}

    @property
    def reverse_op(self) -> ConversionOps:
        return FirstHalf()


class FirstHalf(ConversionOps):
    def convert(self, input_dict: Any, target_patterns: Any, **kwargs: Any) -> Any:
        (tensor,) = next(iter(input_dict.values()))
        return {target_patterns[0]: tensor.chunk(2)[0]}


class Broken(ConversionOps):
    def convert(self, input_dict: Any, **kwargs: Any) -> Any:
        raise ValueError("no")


@pytest.fixture
def converted() -> Iterator[Callable[[ConversionOps], None]]:
    """Makes transformers load Llama's gate projections through an operation."""
    before = get_checkpoint_conversion_mapping("llama")
    name = "mlp.gate_proj.weight"

    def convert(operation: ConversionOps) -> None:
        rule = WeightConverter(name, name, operations=[operation])
        register_checkpoint_conversion_mapping("llama", [rule], overwrite=True)

    yield convert
    register_checkpoint_conversion_mapping("llama", before or [], overwrite=True)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        (Interleave(dim=0), f"tensor {GATE} of shape 64x32 has no part of its own in LlamaFor"),
        (Shuffled(dim=0), f"tensor {GATE} is changed when it is loaded into LlamaForCausalLM"),
        (Broken(), "transformers cannot build LlamaForCausalLM from"),
    ],
)
def test_layouts_without_views_are_refused_by_name(operation, fault, converted, family):
    converted(operation)
    with pytest.raises(ParentError, match=re.escape(f"base: {fault}")) as caught:
        build_resident(opened(family), dtype="float32")
    assert str(caught.value).endswith("`heterosis merge` merges its files")


def test_weights_that_files_fill_in_part_only_are_refused(converted, tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    gate = "mlp.gate_proj.weight"
    for folder in paths.values():
        rewrite(folder, lambda s: {n: t[:32] if gate in n else t for n, t in s.items()})
    converted(Twice())
    message = r"of weight model\.layers\.1\.mlp\.gate_proj\.weight of LlamaForCausalLM \(8192 byt"
    with pytest.raises(ParentError, match=message + r"es\) the files fill 4096"):
        build_resident(opened(paths), dtype="float32")


MAPS = [
    "auto",
    "sequential",
    "cpu",
    {"": "cpu"},
    {"model": "cpu", "lm_head": "cpu"},
    {"model": "cpu", "model.layers": "cpu", "model.layers.1.mlp": "cpu", "lm_head": "cpu"},
]


@pytest.mark.parametrize("device_map", MAPS, ids=str)
def test_maps_are_followed(device_map, parents):
    pytest.importorskip("accelerate")
    if device_map in ("auto", "sequential") and torch.cuda.is_available():
        pytest.skip("these maps would choose the GPU")
    resident = build_resident(parents, dtype="float32", device_map=device_map)
    assert_same(resident.model, build_resident(parents, dtype="float32").model)
    shape = outline(parents, dtype="float32", device_map=device_map)
    assert shape == outline(parents, dtype="float32")


def test_each_weight_is_settled_on_its_device(family):
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(family["base"])
    names = [name for name, _ in model.named_parameters()]
    head = model.get_output_embeddings().weight.data_ptr()
    there = torch.device("meta")  # for lack of a second device with data
    settle(model, {"": CPU, "model.layers.1": there, "model.layers.1.mlp": CPU})
    for name, parameter in model.named_parameters():
        is_there = name.startswith("model.layers.1.") and ".mlp." not in name
        assert parameter.device == (there if is_there else CPU), name
    assert [name for name, _ in model.named_parameters()] == names
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_output_embeddings().weight.data_ptr() == head


def test_devices_that_are_not_there_are_refused(parents):
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"a device must exist, got {missing} for the model"):
        build_resident(parents, dtype="float32", device=missing)
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match=f"got {missing} for lm_head .*; use cpu, or a torch"):
        build_resident(parents, dtype="float32", device_map={"lm_head": missing})


@pytest.mark.parametrize(
    ("device_map", "which"),
    [
        ({"model": "cpu", "lm_head": "disk"}, "got cpu for model among cpu, disk"),
        ({"": "disk"}, "got disk for the model among disk"),
        ({"model": "meta", "lm_head": "meta"}, "got meta for model among meta"),
        ({"model": 0, "model.layers.1": "cpu", "lm_head": "cuda:1"}, "got cpu for model.layers.1 "),
    ],
)
def test_maps_that_keep_weights_away_are_refused(device_map, which, parents):
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match=re.escape(which)) as caught:
        build_resident(parents, dtype="float32", device_map=device_map)
    assert "must keep all weights on devices of one kind" in str(caught.value)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("autoo", r"`device_map` must be auto or another word .*, got 'autoo'; use auto$"),
        ({}, "`device_map` must name a module, got none; use auto$"),
        ({"lm_haed": "cpu"}, r"must name modules .*, got `lm_haed`; did you mean `lm_head`\?$"),
        ({"xyz": "cpu"}, "must name modules .*, got `xyz`; such as model and lm_head$"),
    ],
)
def test_maps_that_name_nothing_are_refused(device_map, message, parents):
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match=message):
        outline(parents, dtype="float32", device_map=device_map)


@pytest.mark.parametrize("device_map", [{"": 0, "lm_head": 1}, {"lm_head": 0, "model.layers": 1}])
def test_maps_over_devices_that_leave_weights_out_are_refused(device_map, parents, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(devices, "_there", lambda _, number: torch.device("cuda", number))
    with pytest.raises(ValueError, match=r"got none for model\.embed_tokens\.weight; add its mod"):
        outline(parents, dtype="float32", device_map=device_map)


def test_a_map_without_accelerate_is_refused(parents, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`device_map` needs the package accelerate, which is"):
        build_resident(parents, dtype="float32", device_map={"": "cpu"})
