"""Whether a parent is a fine-tune of the base: same tensors, same architecture, same vocabulary.

Compares what headers, config.json and tokenizer files say. Every difference is refused with one
line that names the parent, what differs and the remedy; nothing is skipped or cropped.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from .headers import ParentError, TensorInfo, read_json

log = logging.getLogger(__name__)

# Settings that leave the meaning of the weights alone: bookkeeping, training, generation.
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

# Vocabularies that are compared as bytes where there is no tokenizer.json.
_SLOW_FILES = ("tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "merges.txt")


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
            f"{who}: tensor {extra[0]} is not in the base ({len(extra)} such in all); "
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


def read_config(who: str, folder: Path) -> dict[str, Any]:
    """Settings of a model directory with the defaults of its architecture filled in.

    Raises:
        ParentError: No config.json, an architecture unknown to transformers (remote code is never
            run), or packed (quantised) weights.
    """
    raw = read_json(who, folder / "config.json")
    if "quantization_config" in raw:
        raise ParentError(
            f"{who}: {folder} holds quantised weights (quantization_config in config.json), which "
            f"cannot be merged; save a dequantised copy in bfloat16"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        *(ValueError, KeyError, OSError, TypeError, AttributeError),
        StrictDataclassError,
    ) as error:
        reason = f"{error}".strip().splitlines()[0][:160] if f"{error}".strip() else repr(error)
        raise ParentError(
            f"{who}: transformers cannot read {folder / 'config.json'} ({reason}); use an "
            f"architecture that this version of transformers knows without remote code"
        ) from None
    return config.to_dict()


def check_config(who: str, config: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Refuse a parent whose architecture settings differ from the base's.

    Settings known to one side only are not compared: they are unknown to the architecture.

    Raises:
        ParentError: Naming the parent, the setting and both values.
    """
    for key in ("model_type", "vocab_size", *sorted(base)):
        if key in _FREE_KEYS or "dropout" in key or "pdrop" in key:
            continue
        if key in config and key in base and config[key] != base[key]:
            raise ParentError(
                f"{who}: config.json has {key} = {_short(config[key])}, the base has "
                f"{_short(base[key])}; use a fine-tune of this base"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_vocabulary(who: str, folder: Path, base: Path) -> None:
    """Refuse a parent whose tokens, their ids, or its special tokens differ from the base's.

    A parent without tokenizer files is taken to use the base's, which is said in the log.

    Raises:
        ParentError: Naming the parent, the token and both ids, or the file that differs.
    """
    fast = "tokenizer.json"
    if (folder / fast).is_file() and (base / fast).is_file():
        ours, special = _vocabulary(who, folder / fast)
        theirs, base_special = _vocabulary("base", base / fast)
        _check_tokens(who, ours, theirs)
        _check_special(who, special, base_special)
        return
    common = [f for f in _SLOW_FILES if (folder / f).is_file() and (base / f).is_file()]
    for name in common:
        if _sha256(folder / name) != _sha256(base / name):
            raise ParentError(
                f"{who}: vocabulary file {name} differs from the base's; use a fine-tune that "
                f"kept the base's tokenizer"
            )
    if not common:
        log.warning("%s: no tokenizer files to compare in %s; the base's are used", who, folder)


def _check_tokens(who: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            raise ParentError(
                f"{who}: vocabulary differs: token {token!r} has id {ours.get(token, 'none')}, in "
                f"the base {theirs.get(token, 'none')} ({len(ours)} tokens against "
                f"{len(theirs)}); use a fine-tune that kept the base's tokenizer"
            )


def _check_special(who: str, ours: frozenset[str], theirs: frozenset[str]) -> None:
    for token in sorted(ours ^ theirs):
        state = "is" if token in ours else "is not"
        raise ParentError(
            f"{who}: special tokens differ: {token!r} {state} special here, unlike in the base; "
            f"use a fine-tune that kept the base's tokenizer"
        )


def _vocabulary(who: str, path: Path) -> tuple[dict[str, int], frozenset[str]]:
    data = read_json(who, path)
    try:
        vocab = data["model"]["vocab"]
        if isinstance(vocab, list):  # Unigram: a list of [token, score], the id is the position
            vocab = {entry[0]: i for i, entry in enumerate(vocab)}
        added = data.get("added_tokens") or []
        tokens = {**vocab, **{entry["content"]: entry["id"] for entry in added}}
        special = frozenset(entry["content"] for entry in added if entry.get("special"))
    except (KeyError, TypeError, IndexError) as error:
        raise ParentError(
            f"{who}: {path} is no tokenizers file ({type(error).__name__}: {error}); fetch it again"
        ) from None
    return tokens, special


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
