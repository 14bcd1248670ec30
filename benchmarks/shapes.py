"""Families of random checkpoints at SmolLM2-135M's shapes, for speed measurements.

No training, no downloads. Deltas are as small as real ones, so that trims and masks both keep and
drop entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS, VOCABULARY = 576, 1536, 9, 3, 49152
LAYERS = 30
"""SmolLM2-135M: 134.5 M parameters with tied embeddings."""
BASE_SCALE, DELTA_SCALE = 0.05, 0.002


def config(n_layers: int) -> LlamaConfig:
    """Return SmolLM2-135M's configuration, at any depth."""
    return LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=n_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def tensor_shapes(n_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor, in the order of the forward pass."""
    keys = HIDDEN // HEADS * KEY_HEADS
    layer = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(n_layers):
        for name, shape in layer.items():
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (HIDDEN,)


def make_family(folder: Path, n_parents: int, n_layers: int = LAYERS) -> dict[str, Path]:
    """Write a base and its parents "a", "b", ...; return name -> directory, "base" first."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> dict[str, torch.Tensor]:
        shapes = tensor_shapes(n_layers)
        return {n: torch.randn(s, generator=generator).mul_(scale) for n, s in shapes}

    base = noise(BASE_SCALE)
    paths = {}
    for name in ("base", *"abcdefghijklmnopqrstuvwxyz"[:n_parents]):
        weights = base
        if name != "base":
            weights = {n: d.add_(base[n]) for n, d in noise(DELTA_SCALE).items()}
        paths[name] = folder / name
        config(n_layers).save_pretrained(paths[name])
        rounded = {n: w.bfloat16() for n, w in weights.items()}
        save_file(rounded, paths[name] / "model.safetensors", metadata={"format": "pt"})
    return paths
