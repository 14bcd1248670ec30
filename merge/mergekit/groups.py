"""From coefficients per tensor to layer groups, split if tensors of one group differ.

mergekit sets parameters per tensor, a recipe per layer group. Groups from names are kept if
possible; if a filter splits one, the tensors that differ get their own group by a rule of the
recipe. Knows no mergekit and no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..recipe.coefficients import Coefficients
from ..recipe.groups import Grouping, LayerGroup, layer_group

__all__ = ["group_tensors"]
_WORD = re.compile(r"[a-z][a-z0-9_]*")


@dataclass
class _Class:
    """Patterns of tensor names with equal coefficients in every layer."""

    patterns: list[str]
    by_layer: dict[int | None, Coefficients] = field(default_factory=dict)

    def agrees(self, other: Mapping[int | None, Coefficients]) -> bool:
        return all(self.by_layer.get(layer, c) == c for layer, c in other.items())


def group_tensors(
    rows: Mapping[str, Coefficients],
) -> tuple[tuple[tuple[str, str], ...], dict[str, Coefficients]]:
    """Return layer groups that give each tensor its coefficients.

    Args:
        rows: Tensor name -> coefficients.

    Returns:
        Rules for `Recipe.layer_groups`, none if the groups from names suffice, and the coefficients
        by layer group, in model order.
    """
    rules: list[tuple[str, str]] = []
    for kind, patterns in _by_kind(rows).items():
        classes = _classes(patterns)
        classes.sort(key=lambda c: -len(c.patterns))  # the largest keeps the group from names
        for number, apart in enumerate(classes[1:], start=2):
            name = _name(kind, apart.patterns, number, {name for _, name in rules})
            rules += [(pattern, name) for pattern in apart.patterns]
    grouping = Grouping(tuple(rules))
    by_group = {grouping.group(tensor): coefficients for tensor, coefficients in rows.items()}
    assert all(by_group[grouping.group(tensor)] == c for tensor, c in rows.items())
    ordered = sorted(by_group, key=lambda group: group.order)
    return tuple(rules), {group.name: by_group[group] for group in ordered}


def _by_kind(
    rows: Mapping[str, Coefficients],
) -> dict[str, dict[str, dict[int | None, Coefficients]]]:
    """Group name with {layer} -> tensor pattern with {layer} -> layer -> coefficients."""
    kinds: dict[str, dict[str, dict[int | None, Coefficients]]] = {}
    for tensor, coefficients in rows.items():
        group = layer_group(tensor)
        kind, pattern = group.name, tensor
        if group.layer is not None:
            kind = f"layers.{{layer}}.{group.kind}"
            pattern = _pattern(tensor, group)
        kinds.setdefault(kind, {}).setdefault(pattern, {})[group.layer] = coefficients
    return kinds


def _pattern(tensor: str, group: LayerGroup) -> str:
    parts = tensor.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal() and int(part) == group.layer]
    for i in numbers:
        pattern = ".".join([*parts[:i], "{layer}", *parts[i + 1 :]])
        if layer_group(".".join([*parts[:i], "987654", *parts[i + 1 :]])).layer == 987654:
            return pattern
    return tensor


def _classes(patterns: Mapping[str, Mapping[int | None, Coefficients]]) -> list[_Class]:
    classes: list[_Class] = []
    for pattern, by_layer in patterns.items():
        home = next((c for c in classes if c.agrees(by_layer)), None)
        if home is None:
            home = _Class([])
            classes.append(home)
        home.patterns.append(pattern)
        home.by_layer.update(by_layer)
    return classes


def _name(kind: str, patterns: list[str], number: int, taken: set[str]) -> str:
    """Return a name after the tensor, if it is only one: layers.{layer}.attn_q_proj."""
    words = [word for word in patterns[0].lower().split(".") if _WORD.fullmatch(word)]
    words = [word for word in words if word not in ("weight", "bias")] if len(patterns) == 1 else []
    name = f"{kind}_{words[-1]}" if words else f"{kind}_{number}"
    return name if name not in taken else f"{kind}_{number}"
