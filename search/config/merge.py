"""The section `merge`: method, dtype and placement."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from ...merge.hints import near
from ...merge.recipe.groups import Grouping
from .section import MethodName, Section

DEVICE = re.compile(r"cpu|cuda(:\d+)?")
POLICIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Words of `device_map` for maps that accelerate computes; transformers' names."""


def _check_device(device: str) -> str:
    if device != "auto" and not DEVICE.fullmatch(device):
        raise ValueError(f"must be auto, cpu, cuda or cuda:NUMBER, got {device!r}; name one")
    return device


def _check_device_map(value: Any) -> Any:
    is_word = isinstance(value, str) and (value in POLICIES or DEVICE.fullmatch(value))
    is_map = isinstance(value, dict) and all(map(_is_entry, value, value.values()))
    if value is None or is_word or (is_map and value):
        return value
    words = f"{', '.join(POLICIES)} or a device, or module names with devices"
    raise ValueError(f"must be {words}, got {value!r}{near(value, POLICIES)}")


def _is_entry(module: Any, device: Any) -> bool:
    is_device = isinstance(device, int | str) and not isinstance(device, bool)
    return isinstance(module, str) and is_device


class MergeSection(Section):
    """How and where a recipe is merged."""

    method: MethodName | None = None
    """Merge method; default: task_arithmetic, unless `space.method` names several."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """dtype of the resident model, and of the exported files: they are exactly what was scored."""
    device: Annotated[str, AfterValidator(_check_device)] = "auto"
    """`auto` (CUDA if available), `cpu`, `cuda` or `cuda:1`."""
    device_map: Annotated[Any, AfterValidator(_check_device_map)] = None
    """Distribution of the resident model over several devices, as in transformers (`auto`, or
    module name -> device); each tensor is merged on its device."""
    placement: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Memory of base and parents: the device's, pinned host memory, or memory-mapped files; `auto`
    is the first that fits."""
    compile: Literal["auto", True, False] = "auto"
    """Whether to compile the kernels; `auto`: where it works and pays. The bytes are the same."""
    tokenizer: Literal["base", "union"] | None = None
    """Vocabulary of the merge if the parents' differ: the base's, or the union of all; default:
    differences are refused."""
    layer_groups: dict[str, str] = Field(default_factory=dict)
    """Tensor-name pattern -> layer group, before the rule from names; `{layer}` is a layer index,
    as in ``"*.layers.{layer}.*.q_proj.*": "layers.{layer}.q"``."""
    mask_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of random masks, unless `space.mask_seed` is searched."""

    @field_validator("layer_groups")
    @classmethod
    def _check_layer_groups(cls, rules: dict[str, str]) -> dict[str, str]:
        Grouping(tuple(rules.items()))
        return rules

    @property
    def grouping(self) -> Grouping:
        """Rule from tensor names to layer groups."""
        return Grouping(tuple(self.layer_groups.items()))
