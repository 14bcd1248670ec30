"""The section `merge`: method, dtype and placement. Knows no torch, no Optuna."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from ...merge.recipe.groups import Grouping
from .section import Section, _known_method


def _device_map(value: Any) -> Any:
    is_map = isinstance(value, dict) and all(isinstance(d, int | str) for d in value.values())
    if value is None or isinstance(value, str) or is_map:
        return value
    raise ValueError(f"must be a word as `auto`, or module names with devices, got {value!r}")


class MergeSection(Section):
    """What is computed when a recipe is materialised, and where."""

    method: str | None = None
    """Row of the method table; default task_arithmetic, unless `space.method` names several."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the resident model: the exported file is exactly what was scored."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`."""
    device_map: Annotated[Any, AfterValidator(_device_map)] = None
    """Spreads the resident model over several devices, as in transformers (`auto`, or module name
    -> device); each tensor is merged where it lives."""
    placement: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where base and parents are held: on the device, in pinned host memory, or memory-mapped from
    disk; `auto` takes the first that fits."""
    compile: Literal["auto", True, False] = "auto"
    """Whether the kernels are compiled; `auto` where it works. The bytes are the same."""
    tokenizer: Literal["base", "union"] | None = None
    """Vocabulary of the merge where the parents' differ: the base's, or the union of all; default:
    differences are refused."""
    layer_groups: dict[str, str] = Field(default_factory=dict)
    """Tensor-name pattern -> layer group, before the rule from names; `{layer}` stands for a layer
    index, as in ``"*.layers.{layer}.*.q_proj.*": "layers.{layer}.q"``."""
    mask_seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str | None) -> str | None:
        return None if method is None else _known_method(method)

    @field_validator("layer_groups")
    @classmethod
    def _readable(cls, rules: dict[str, str]) -> dict[str, str]:
        Grouping(tuple(rules.items()))
        return rules

    @property
    def grouping(self) -> Grouping:
        """How tensors form layer groups."""
        return Grouping(tuple(self.layer_groups.items()))
