"""Build tiny families of models (a base and fine-tunes of it) as Hugging Face directories.

Random weights, a byte-level tokenizer with a chat template, no network. A family takes less than a
second; the same arguments give the same bytes.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3MoeConfig,
)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and three special tokens, 259 in total."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(arch: str, *, tied: bool, vocab_size: int, n_layers: int) -> PretrainedConfig:
    """Return the configuration of a model with about 50 thousand parameters.

    "qwen3_moe" has 4 experts per layer, "llava" a vision tower of one layer before a Llama.
    """
    shared = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if arch == "gpt2":
        return GPT2Config(n_embd=32, n_layer=n_layers, n_head=4, n_positions=256, **shared)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    shared |= {**sizes, "num_hidden_layers": n_layers, "num_key_value_heads": 2}
    shared["max_position_embeddings"] = 256
    if arch == "qwen3_moe":
        return Qwen3MoeConfig(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **shared
        )
    if arch == "llava":
        tower = CLIPVisionConfig(
            **sizes, num_hidden_layers=1, image_size=16, patch_size=8, projection_dim=32
        )
        return LlavaConfig(
            vision_config=tower,
            text_config=LlamaConfig(**shared),
            image_token_index=3,
            tie_word_embeddings=tied,
        )
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[arch](**shared)


def tiny_family(
    folder: Path,
    *,
    tied: bool = True,
    n_parents: int = 2,
    dtype: str = "bfloat16",
    arch: str = "llama",
    n_layers: int = 3,
    spread: float = 0.01,
    seed: int = 0,
    max_shard_size: str = "5GB",
) -> dict[str, Path]:
    """Write a base and `n_parents` fine-tunes ("a", "b", ...) under `folder`.

    Args:
        folder: Parent folder of the directories "base", "a", "b", ...
        tied: Whether input and output embeddings are one tensor.
        n_parents: Number of fine-tunes, at most 26.
        dtype: dtype of the saved weights.
        arch: "llama", "qwen2", "gpt2", "qwen3_moe" or "llava".
        n_layers: Transformer blocks.
        spread: Standard deviation of a fine-tune's delta; the base's weights have 0.05.
        seed: Seed of the base's weights and of the deltas.
        max_shard_size: A small value ("20KB") gives sharded directories.

    Returns:
        Name -> directory, "base" first.
    """
    tokenizer = byte_tokenizer()
    config = tiny_config(arch, tied=tied, vocab_size=len(tokenizer), n_layers=n_layers)
    kind = AutoModelForImageTextToText if arch == "llava" else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    paths = {}
    for name in ("base", *"abcdefghijklmnopqrstuvwxyz"[:n_parents]):
        if name != "base":
            _perturb(model, base, spread, generator)
        paths[name] = folder / name
        _save(model, tokenizer, paths[name], getattr(torch, dtype), max_shard_size)
    return paths


@torch.no_grad()
def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name or ".ln_" in name else 0.0
        parameter.normal_(mean, 0.05, generator=generator)


@torch.no_grad()
def _perturb(
    model: torch.nn.Module,
    base: dict[str, torch.Tensor],
    spread: float,
    generator: torch.Generator,
) -> None:
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, spread, generator=generator).add_(base[name])


def _save(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str,
) -> None:
    original = {name: p.data for name, p in model.named_parameters()}
    model.to(dtype)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, max_new_tokens=17)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.data = original[name]
