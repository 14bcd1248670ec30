"""Models that can be packed, up to which length, and the reason if not."""

import re
from typing import Any

import pytest
import torch
from heterosis.evals.scorer.architecture import longest_packed, why_not_packed
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..tiny_models import tiny_config, tiny_model

NO_LIMIT = 2**62


def skeleton(config: PretrainedConfig, **changes: Any) -> Any:
    """A model of a configuration without weights to speak of: what is asked is in the config."""
    for name, value in changes.items():
        setattr(config, name, value)
    if config._attn_implementation is None:
        config._attn_implementation = "sdpa"
    with torch.device("meta"):
        make: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return make(config)


def small(kind: type, **settings: Any) -> Any:
    shared = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
    shared |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    return kind(**shared | {"pad_token_id": 0} | settings)


@pytest.mark.parametrize("arch", ["llama", "gpt_neox", "gemma2", "gemma3", "qwen2", "qwen3", "phi"])
def test_nothing_speaks_against_plain_attention(arch):
    assert why_not_packed(tiny_model(arch)) is None


BLOOM = BloomConfig(vocab_size=64, hidden_size=32, n_head=4)
BLOOM._attn_implementation = "eager"


class NoPositions(LlamaForCausalLM):
    """Counts its positions itself."""

    def forward(self, input_ids=None, attention_mask=None, **rest):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)


def without_positions() -> Any:
    config: Any = tiny_config("llama")
    return NoPositions(config)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tiny_model("mamba"), r"not every layer is attention \(linear_attention"),
        (lambda: skeleton(small(Qwen3NextConfig)), r"not every layer is attention \(linear_att"),
        (lambda: skeleton(small(RecurrentGemmaConfig)), "not every layer is attention"),
        (lambda: skeleton(small(FalconConfig, alibi=True)), r"place in the row \(ALiBi\)"),
        (lambda: skeleton(BLOOM), "its forward takes no `position_ids`"),
        (without_positions, "its forward takes no `position_ids`"),
        (lambda: skeleton(small(LlamaConfig), is_causal=False), "its attention is not causal"),
        (
            lambda: skeleton(small(Gemma3TextConfig), use_bidirectional_attention=True),
            "its attention is not causal",
        ),
    ],
)
def test_each_reason_against_packing(model, reason):
    assert re.search(reason, why_not_packed(model()) or "")


@pytest.mark.parametrize("kind", ["flex_attention", "flash_attention_2"])
def test_attention_that_builds_its_own_mask_is_refused(kind):
    model = tiny_model("llama")
    model.config._attn_implementation = kind
    found = why_not_packed(model)
    assert found == f"attention '{kind}' takes no block mask; 'sdpa' and 'eager' do"


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
SLIDES = {"sliding_window": 16, "use_sliding_window": True}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (lambda: small(LlamaConfig), NO_LIMIT),
        (lambda: small(MistralConfig, sliding_window=24), 24),
        (lambda: small(MistralConfig, sliding_window=None), NO_LIMIT),
        (lambda: small(Qwen2Config, max_window_layers=2, **SLIDES), 16),
        (lambda: small(Qwen2Config, sliding_window=16), NO_LIMIT),
        (lambda: tiny_config("gemma3"), 16),
        (lambda: small(Llama4TextConfig, attention_chunk_size=32), 32),
        (lambda: small(LlamaConfig, rope_parameters=YARN), NO_LIMIT),
        (lambda: small(LlamaConfig, rope_parameters=DYNAMIC, max_position_embeddings=48), 48),
    ],
)
def test_longest_request_that_is_packed(config, longest):
    class Model:
        pass

    model: Any = Model()
    model.config = config()
    assert longest_packed(model) == longest
