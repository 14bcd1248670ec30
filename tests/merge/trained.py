"""Adapters trained, and tokens added, for tests."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer


def train(base: Path, out: Path, seed: int = 0, **settings: Any) -> dict[str, torch.Tensor]:
    """Save a random adapter made on `base`; returns the state dict of peft's own merge."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0.0, 0.1, generator=generator)
        tuned.save_pretrained(str(out))
        return tuned.merge_and_unload().state_dict()


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def add_tokens(folder: Path, *tokens: str | AddedToken, seed: int = 0) -> None:
    """Add tokens to a model directory, with random rows of their own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in {EMBED, HEAD} & state.keys():
        rows = torch.randn(len(tokenizer) - len(state[name]), 32, generator=generator) / 20
        state[name] = torch.cat([state[name], rows.to(state[name].dtype)])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder / "config.json", lambda c: c.update(vocab_size=len(tokenizer)))


def rewrite(path: Path, change: Callable[[dict], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)
