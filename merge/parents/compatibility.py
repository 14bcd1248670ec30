"""Check that a parent is a fine-tune of the base: same tensors, same architecture.

Compares headers and config.json; vocabulary.py compares vocabularies. Every difference is refused
with one line that names the parent, the difference and the remedy; nothing is skipped or cropped.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ..hints import reason, short
from .headers import ParentError, TensorInfo, read_json

# Settings that do not affect the meaning of the weights: bookkeeping, training, generation.
_FREE_KEYS = frozenset(
    {
        *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
        *("use_cache", "initializer_range", "pretraining_tp", "gradient_checkpointing"),
        *("torchscript", "use_bfloat16", "chunk_size_feed_forward", "router_aux_loss_coef"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"),
        *("decoder_start_token_id", "max_position_embeddings", "_attn_implementation"),
        *("return_dict", "output_attentions", "output_hidden_states", "problem_type"),
        *("id2label", "label2id", "num_labels", "task_specific_params", "is_encoder_decoder"),
    }
)
POLICIES = "choose the policy `tokenizer: base` or `tokenizer: union`"
"""The remedy for every difference in vocabulary."""
MAX_LENGTH = 10_000
"""Bound on settings that transformers uses as lengths of lists; no real model is near it."""
_LENGTHS = re.compile(r"(^|_)layers?$|blocks$|^depth$|^num_labels$")
# Raised by transformers for a config.json that makes no sense.
_CONFIG_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, StrictDataclassError),
)


def check_tensors(
    who: str, tensors: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]
) -> None:
    """Refuse a parent whose tensor names, shapes or kinds differ from the base's.

    Raises:
        ParentError: Naming the parent and the first tensor that differs.
    """
    missing = [name for name in base if name not in tensors]
    if missing:
        raise ParentError(
            f"{who}: tensor {missing[0]} is missing ({len(missing)} in all), the base has it; "
            f"use a full fine-tune of this base"
        )
    extra = [name for name in tensors if name not in base]
    if extra:
        raise ParentError(
            f"{who}: tensor {extra[0]} is not in the base ({len(extra)} in all); "
            f"use a fine-tune of this base without added parts"
        )
    for name, info in base.items():
        other = tensors[name]
        if other.shape != info.shape:
            raise ParentError(
                f"{who}: tensor {name} has shape {_shape(other)}, the base has {_shape(info)}; "
                f"use a fine-tune of this base with the vocabulary and sizes unchanged"
            )
        if other.dtype != info.dtype and not (other.is_floating and info.is_floating):
            raise ParentError(
                f"{who}: tensor {name} has dtype {other.dtype}, the base has {info.dtype}; "
                f"save the parent with the base's kind of weights"
            )


def _shape(info: TensorInfo) -> str:
    return "x".join(map(str, info.shape)) or "scalar"


def read_config(who: str, folder: Path, *, architecture_required: bool = True) -> dict[str, Any]:
    """Read the settings of a model directory, with the defaults of its architecture.

    Args:
        who: "base" or "parent <name>", for messages.
        folder: A Hugging Face model directory.
        architecture_required: Refuse an architecture that transformers does not know. Otherwise
            its settings are those written in config.json.

    Raises:
        ParentError: No config.json, an architecture unknown to transformers (remote code is never
            run), or packed (quantised) weights.
    """
    path = folder / "config.json"
    raw = read_json(who, path)
    _check_raw(who, path, raw)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config.to_dict()
    except _CONFIG_ERRORS as error:
        if not architecture_required:
            return raw
        raise ParentError(
            f"{who}: transformers cannot read {path} ({reason(error)}); use an architecture "
            f"that this version of transformers knows without remote code"
        ) from None


def _check_raw(who: str, path: Path, raw: Mapping[str, Any]) -> None:
    if "quantization_config" in raw:
        raise ParentError(
            f"{who}: {path.parent} holds quantised weights (quantization_config in config.json), "
            f"which cannot be merged; save a dequantised copy in bfloat16"
        )
    for key, value in _settings(raw):
        if isinstance(value, int) and value > MAX_LENGTH and _LENGTHS.search(key):
            raise ParentError(
                f"{who}: {path} has {key} = {short(value)}, more than {MAX_LENGTH}; fetch the "
                f"file again"
            )


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    # All settings, including those of sub-configs.
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _settings(value)


def check_config(
    who: str,
    config: Mapping[str, Any],
    base: Mapping[str, Any],
    *,
    is_vocabulary_free: bool = False,
    prefix: str = "",
) -> None:
    """Refuse a parent whose architecture settings differ from the base's.

    Settings of one side only are not compared: the architecture does not use them. The parts of a
    multimodal model (``text_config`` and the like) are compared setting by setting.

    Args:
        who: "parent <name>", for messages.
        config: The parent's settings.
        base: The base's settings.
        is_vocabulary_free: Ignore ``vocab_size``, which a tokenizer policy handles.
        prefix: Place of these settings in the base's, for messages.

    Raises:
        ParentError: Naming the parent, the setting and both values.
    """
    for key in ("model_type", "vocab_size", *sorted(base)):
        if key in _FREE_KEYS or "dropout" in key or "pdrop" in key:
            continue
        if key not in config or key not in base or config[key] == base[key]:
            continue
        ours, theirs = config[key], base[key]
        if key.endswith("_config") and isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            free = is_vocabulary_free
            check_config(who, ours, theirs, is_vocabulary_free=free, prefix=f"{prefix}{key}.")
        elif not (is_vocabulary_free and key == "vocab_size"):
            policy = f", or {POLICIES}" if key == "vocab_size" else ""
            raise ParentError(
                f"{who}: config.json has {prefix}{key} = {short(ours)}, the base has "
                f"{short(theirs)}; use a fine-tune of this base{policy}"
            )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether input embeddings are also the output head, by the settings."""
    part = config.get("text_config")
    is_part_tied = isinstance(part, Mapping) and bool(part.get("tie_word_embeddings"))
    return bool(config.get("tie_word_embeddings", is_part_tied))
