"""Layer groups: which tensors share coefficients, told from tensor names alone.

Knows the naming habits of published architectures. Knows no weights and no torch.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

LAYER_KINDS = ("attn", "mlp", "other")
EMBED = "embed"
HEAD = "head"

_CONTAINERS = frozenset({"layers", "layer", "h", "blocks", "block", "decoder_layers"})
_NORM = re.compile(r"norm|^ln(_|\d|$)|^ln\w*$")
_ATTN = re.compile(r"attn|attention|^([qkvo]|qkv|query|key|value|query_key_value)_proj$")
_MLP = re.compile(r"mlp|ffn|ffw|feed_?forward|expert|moe|^(gate|up|down)_proj$|^fc(1|2|_in|_out)$")
_EMBED = re.compile(r"embed|^w[tp]e$")
_OUTPUT = re.compile(r"embed_out|lm_head|output_embed")


@dataclass(frozen=True)
class LayerGroup:
    """A set of tensors that share one coefficient per parent.

    ``layer`` is the index of the transformer block, or None outside the blocks; ``kind`` is
    "attn", "mlp" or "other" inside a block, "embed" or "head" outside.
    """

    layer: int | None
    kind: str

    def __post_init__(self) -> None:
        """Refuse combinations that no tensor name can have."""
        kinds = (EMBED, HEAD) if self.layer is None else LAYER_KINDS
        if self.kind not in kinds or (self.layer is not None and self.layer < 0):
            raise ValueError(
                f"a layer group has layer None with kind embed or head, or layer >= 0 with kind "
                f"attn, mlp or other; got layer {self.layer} with kind {self.kind!r}"
            )

    @property
    def name(self) -> str:
        """The name used in recipes: "layers.3.attn", "embed", "head"."""
        return self.kind if self.layer is None else f"layers.{self.layer}.{self.kind}"

    @classmethod
    def from_name(cls, name: str) -> "LayerGroup":
        """Read back `name`; ValueError for anything else."""
        if name in (EMBED, HEAD):
            return cls(None, name)
        match = re.fullmatch(r"layers\.(\d+)\.(attn|mlp|other)", name)
        if match is None:
            raise ValueError(
                f"a layer group is named `embed`, `head` or `layers.<i>.<attn|mlp|other>`, "
                f"got {name!r}"
            )
        return cls(int(match[1]), match[2])

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key that gives the order of the forward pass."""
        if self.layer is None:
            return (0 if self.kind == EMBED else 2, 0, 0)
        return (1, self.layer, LAYER_KINDS.index(self.kind))


@lru_cache(maxsize=1 << 16)
def layer_group(tensor_name: str) -> LayerGroup:
    """Tell the layer group of a tensor from its name.

    The layer index is the first whole number that follows a container such as ``layers`` or
    ``h``. Inside a layer, norms are "other" even where their name mentions attention. Outside the
    layers, input embeddings are "embed", all else (final norm, output head) is "head".
    """
    parts = tensor_name.split(".")
    for position in range(1, len(parts)):
        if parts[position].isdecimal() and parts[position - 1] in _CONTAINERS:
            return LayerGroup(int(parts[position]), _layer_kind(parts[position + 1 :]))
    is_input = any(_EMBED.search(p) for p in parts) and not any(_OUTPUT.search(p) for p in parts)
    is_norm = any(_NORM.search(p) for p in parts)
    return LayerGroup(None, EMBED if is_input and not is_norm else HEAD)


def _layer_kind(parts: list[str]) -> str:
    words = [part.lower() for part in parts]
    if any(_NORM.search(word) for word in words):
        return "other"
    if any(_ATTN.search(word) for word in words):
        return "attn"
    return "mlp" if any(_MLP.search(word) for word in words) else "other"


def depth(group: LayerGroup | str, n_layers: int) -> float:
    """Position of a layer group in the model, 0 at the input and 1 at the output.

    Layer ``i`` of ``n_layers`` lies at ``i / (n_layers - 1)``; a single layer lies at 0.

    Raises:
        ValueError: If the group's layer is outside ``[0, n_layers)``.
    """
    group = LayerGroup.from_name(group) if isinstance(group, str) else group
    if group.layer is None:
        return 0.0 if group.kind == EMBED else 1.0
    if group.layer >= n_layers:
        raise ValueError(
            f"a layer index must be below the number of layers, got {group.layer} of {n_layers}"
        )
    return group.layer / (n_layers - 1) if n_layers > 1 else 0.0
