"""Run by test_placement.py in a process of its own: builds, merges, and watches its memory.

Prints the peak that the plan states, the peak that was measured, and the resident model's bytes.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.engine.memory import give_back, process_bytes
from heterosis.merge.engine.placement import HOST
from heterosis.merge.parents.parent_set import ParentSet
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe
from safetensors.torch import save_file
from transformers import LlamaConfig, MixtralConfig

SHARED: dict[str, Any] = {"vocab_size": 16000, "num_attention_heads": 8, "num_key_value_heads": 8}


def write(folder: Path, arch: str, seed: int) -> None:
    """Save 130 million random bfloat16 weights; large tensors repeat the same numbers."""
    if arch == "mixtral":
        config = MixtralConfig(
            hidden_size=512,
            intermediate_size=1792,
            num_hidden_layers=5,
            num_local_experts=8,
            architectures=["MixtralForCausalLM"],
            **SHARED,
        )
    else:
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=8,
            architectures=["LlamaForCausalLM"],
            **SHARED,
        )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    block = torch.empty(1 << 20).normal_(0.0, 0.02, generator=generator).bfloat16()
    state = {}
    for name, shape in shapes(config).items():
        n = shape.numel()
        state[name] = block.repeat(-(-n // len(block)))[:n].view(shape)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def shapes(config: LlamaConfig | MixtralConfig) -> dict[str, torch.Size]:
    """Names and shapes as in files on the hub."""
    hidden, inner = config.hidden_size, config.intermediate_size
    found = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for kind in "qkvo":
            found[f"{layer}.self_attn.{kind}_proj.weight"] = (hidden, hidden)
        found[f"{layer}.input_layernorm.weight"] = (hidden,)
        found[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        if isinstance(config, MixtralConfig):
            found[f"{layer}.block_sparse_moe.gate.weight"] = (config.num_local_experts, hidden)
            mlps = [
                (f"{layer}.block_sparse_moe.experts.{e}", ("w1", "w3", "w2"))
                for e in range(config.num_local_experts)
            ]
        else:
            mlps = [(f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"))]
        for mlp, (gate, up, down) in mlps:
            found[f"{mlp}.{gate}.weight"] = found[f"{mlp}.{up}.weight"] = (inner, hidden)
            found[f"{mlp}.{down}.weight"] = (hidden, inner)
    return {name: torch.Size(shape) for name, shape in found.items()}


def watch(peak: list[int], is_done: threading.Event) -> None:
    """Keep the largest anonymous memory seen, every 2 ms."""
    while not is_done.is_set():
        peak[0] = max(peak[0], process_bytes())
        time.sleep(0.002)


def main(arch: str, method: str, placement: str, dtype: str, is_compiled: str, at: str) -> None:
    """Build and merge twice, watched."""
    folder = Path(at)
    for seed, owner in enumerate(("base", "a")):
        write(folder / owner, arch, seed)
    peak, is_done = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, is_done))
    parents = ParentSet.open(folder / "base", {"a": folder / "a"})
    give_back()  # what writing has left in the heap
    watcher.start()
    try:
        engine = MergeEngine(
            parents,
            dtype=dtype,
            placement=placement,
            compile=is_compiled == "1",
            statistics_folder=folder / "facts",
            needs=METHODS[method].needs,
        )
        rate = 0.5 * METHODS[method].uses_drop_rate
        for weight in (0.3, 0.7):
            engine.load(Recipe.uniform(method, ("a",), parents.groups(), weight, rate))
    finally:
        is_done.set()
        watcher.join()
    place = engine.memory_plan.places[HOST]
    figures = place.peak, peak[0], place.held["resident model"]
    sys.stdout.write("\n".join([*engine.memory_plan.lines(), " ".join(map(str, figures))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
