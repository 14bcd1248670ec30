"""Settings of a LoRA adapter: its variant, its scale, its base.

Variants whose merged weights are not ``base + scale * B @ A`` are refused by name. Reads weights
only to compare an adapter's base with the given one.

Sources: LoRA, Hu et al., arXiv:2106.09685, Sec. 4.1; rank-stabilised LoRA, Kalajdzievski,
arXiv:2312.03732, Theorem 3.2.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hints import short
from .checkpoint import Checkpoint
from .headers import INDEX, WEIGHTS, ParentError, read_json

CONFIG = "adapter_config.json"
REMEDY = "merge it into its base with peft (merge_and_unload) and give the saved model"
_MAX_ALPHA = 1e6
"""Far above any used value; keeps the product finite in float32."""
# Settings of the placement and training of the factors, which do not change the product.
_HARMLESS = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "revision"),
        *("base_model_name_or_path", "target_modules", "exclude_modules", "modules_to_save"),
        *("layers_to_transform", "layers_pattern", "lora_dropout", "init_lora_weights", "bias"),
        *("eva_config", "corda_config", "loftq_config", "lora_ga_config", "megatron_core"),
        *("ensure_weight_tying", "runtime_config", "qalora_group_size"),
    }
)
# Initialisations that do not change the base's weights; others subtract from them.
_CLEAN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_NAMES = {
    "use_dora": "DoRA",
    "lora_bias": "a bias beside B",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on bare parameters",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "megatron_config": "Megatron layers",
}


@dataclass(frozen=True)
class LoraSettings:
    """Ranks and scales of adapter_config.json.

    ``base`` is the adapter's base as written there. ``is_flipped``: weights are (inputs, outputs),
    as in GPT-2. ``is_tying``: tied embeddings were trained as one.
    """

    base: str | None
    default_rank: int
    default_alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilised: bool
    is_flipped: bool
    is_tying: bool

    def rank(self, layer: str) -> int:
        """Return the rank R of the factors of a layer."""
        return _pattern(self.ranks, layer, self.default_rank)

    def scale(self, layer: str) -> float:
        """Return the factor of B @ A: alpha / R, or alpha / sqrt(R) if rank-stabilised."""
        rank, alpha = self.rank(layer), _pattern(self.alphas, layer, self.default_alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def _pattern(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    # As in peft: the first that matches the end of the layer's name.
    matches = (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", layer))
    return next(matches, default)


def read_settings(who: str, folder: Path) -> LoraSettings:
    """Read and check an adapter's settings.

    Args:
        who: "parent <name>", for messages.
        folder: Directory with adapter_config.json.

    Raises:
        ParentError: Not LoRA, an unsupported variant, or invalid values.
    """
    data = read_json(who, folder / CONFIG, is_strict=True)
    _check_variant(who, data)
    _check_numbers(who, data)
    base = data.get("base_model_name_or_path")
    return LoraSettings(
        base if isinstance(base, str) and base else None,
        data["r"],
        data["lora_alpha"],
        data.get("rank_pattern") or {},
        data.get("alpha_pattern") or {},
        bool(data.get("use_rslora")),
        bool(data.get("fan_in_fan_out")),
        bool(data.get("ensure_weight_tying")),
    )


def _check_variant(who: str, data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind != "LORA":
        raise ParentError(
            f"{who}: its adapter is of type {kind!r}, only LORA is supported; {REMEDY}"
        )
    for key, value in data.items():
        if value and key not in _HARMLESS:
            what = _NAMES.get(key, "an unknown variant of LoRA")
            raise ParentError(
                f"{who}: its adapter has {key} = {short(value)} ({what}), which cannot be "
                f"computed as base + scale * B @ A; {REMEDY}"
            )
    start = data.get("init_lora_weights")
    if start not in _CLEAN_STARTS:
        raise ParentError(
            f"{who}: its adapter has init_lora_weights = {short(start)}, which changes the base's "
            f"weights before training; convert it (peft's save_pretrained with "
            f"path_initial_model_for_weight_conversion), or {REMEDY}"
        )


def _check_numbers(who: str, data: Mapping[str, Any]) -> None:
    ranks, alphas = ((data.get(k) or {}) for k in ("rank_pattern", "alpha_pattern"))
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        raise ParentError(
            f"{who}: rank_pattern and alpha_pattern must be mappings in {CONFIG}; fetch it again"
        )
    for key, value in [("r", data.get("r")), *ranks.items()]:
        if type(value) is not int or value < 1:
            raise ParentError(
                f"{who}: a rank must be a whole number from 1, got {key} = {short(value)} in "
                f"{CONFIG}; fetch it again"
            )
    for key, value in [("lora_alpha", data.get("lora_alpha")), *alphas.items()]:
        if type(value) not in (int, float) or not abs(value) < _MAX_ALPHA:
            raise ParentError(
                f"{who}: an alpha must be a number below {_MAX_ALPHA:g}, got {key} = "
                f"{short(value)} in {CONFIG}; fetch it again"
            )
    for pattern in (*ranks, *alphas):
        # Repeated groups are refused: matching them can take exponential time.
        if re.search(r"\)[*+?{]", pattern) or not _is_expression(pattern):
            raise ParentError(
                f"{who}: a rank or alpha pattern must be a regular expression without repeated "
                f"groups, got {short(pattern)} in {CONFIG}; {REMEDY}"
            )


def _is_expression(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def check_base(
    who: str, folder: Path, stated: str | None, base: Checkpoint, home: Path, names: Sequence[str]
) -> None:
    """Refuse an adapter of another base.

    Args:
        who: "parent <name>", for messages.
        folder: The adapter's directory.
        stated: The base in its settings. A directory on this machine is compared by the SHA-256 of
            its weights, anything else by the last part of its name.
        base: The base's tensors.
        home: Directory of the base.
        names: Names of the base, that of its directory or id first.

    Raises:
        ParentError: Naming both bases, and the remedy if they are in fact the same.
    """
    path = Path(stated or "")
    detail = ""
    if stated and ((path / WEIGHTS).is_file() or (path / INDEX).is_file()):
        if path.samefile(home):
            return
        ours, theirs = Checkpoint(f"{who}, its base", path).digest(), base.digest()
        if ours == theirs:
            return
        detail = f" (SHA-256 {ours[:12]} against {theirs[:12]})"
    elif stated and _last_part(stated).casefold() in {name.casefold() for name in names}:
        return
    raise ParentError(
        f"{who}: its adapter was made on {stated or 'an unnamed base'}, not on the "
        f"base {home}{detail}; give that base, or, if they are in fact the same, write "
        f"{names[0]!r} as base_model_name_or_path in {folder / CONFIG}"
    )


def _last_part(stated: str) -> str:
    # The model's name in an id or a path; paths in the hub's cache have it in the middle.
    cached = re.search(r"models--(?:.*--)?([^/\\]+)[/\\]snapshots[/\\]", stated)
    return cached[1] if cached else re.split(r"[/\\]", stated.rstrip("/\\"))[-1].partition("@")[0]
