"""Check whether a model can be scored packed. Knows the configurations of transformers.

Packing needs attention that respects a 4-D mask and given positions in every layer. Checked here
is all that a configuration shows; the self-check finds the rest.
"""

import inspect
from typing import Any

# Attention implementations that take a 4-D mask; flash and flex attention build their own.
_MASKED = ("sdpa", "eager")
# Kinds of layers with limited attention -> the setting of the limit.
_LIMITED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# Rotary embeddings whose frequencies depend on the longest position of the batch.
_LENGTH_BOUND = ("dynamic", "longrope")


def why_not_packed(model: Any) -> str | None:
    """Return why a model cannot be scored packed; None if no reason is known."""
    config = model.config.get_text_config(decoder=True)
    attention = getattr(config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", *_LIMITED}
    if getattr(model, "_is_stateful", False) or kinds:
        what = ", ".join(sorted(kinds)) or "a state along the row"
        return f"not every layer is attention ({what})"
    if getattr(config, "alibi", False):
        return "its positions depend on the place in the row (ALiBi)"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no `position_ids`"
    if attention not in _MASKED:
        return f"attention '{attention}' takes no block mask; 'sdpa' and 'eager' do"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(
        config, "is_causal", True
    ):
        return "its attention is not causal"
    return None


def longest_packed(model: Any) -> int:
    """Return the longest request, in tokens, for which the block mask is sufficient.

    In longer ones a sliding window or chunk hides keys, or rotary frequencies change.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    names = {_LIMITED[kind] for kind in kinds if kind in _LIMITED} if kinds else _LIMITED.values()
    limits = [getattr(config, name, None) for name in names]
    if not kinds and getattr(config, "use_sliding_window", True) is False:
        limits = []
    limits += [_original_length(config, rope) for rope in _rope_settings(config)]
    return min((int(limit) for limit in limits if limit), default=2**62)


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    """Return the rotary settings, one per kind of layer if they differ."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def _original_length(config: Any, rope: dict[str, Any]) -> int | None:
    """Return the length up to which frequencies are constant; None if they do not depend on it."""
    if rope.get("rope_type") not in _LENGTH_BOUND:
        return None
    name = "original_max_position_embeddings"
    return rope.get(name) or getattr(config, name, None) or config.max_position_embeddings
