"""Layer groups: which tensors share coefficients, derived from tensor names.

Knows the naming conventions of published architectures, and the user's rules that override them.
Knows no weights and no torch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

LAYER_KINDS = ("attn", "mlp", "other")
EMBED = "embed"
HEAD = "head"
VISION = "vision"
AUDIO = "audio"
INPUTS = (EMBED, VISION, AUDIO)
_LAYER = "{layer}"
_KIND = re.compile(r"[a-z][a-z0-9_]*")
_CONTAINERS = frozenset({"layers", "layer", "h", "blocks", "block", "decoder_layers"})
_NORM = re.compile(r"norm|^ln(_|\d|$)|^ln\w*$")
_ATTN = re.compile(r"attn|attention|^([qkvo]|qkv|query|key|value|query_key_value)_proj$")
_MLP = re.compile(
    r"mlp|ffn|ffw|feed_?forward|expert|moe|router|^gate$"
    r"|^(gate|up|down|gate_up)_proj$|^fc(1|2|_in|_out)$"
)
_EMBED = re.compile(r"embed|^w[tp]e$")
_OUTPUT = re.compile(r"embed_out|lm_head|output_embed")
_AUDIO = re.compile(r"audio|speech|acoustic")
_VISION = re.compile(r"vision|visual|image|video|projector|connector|resampler|aligner|^vi[tp]$")


@dataclass(frozen=True)
class LayerGroup:
    """A set of tensors that share one coefficient per parent.

    ``layer`` is the index of the transformer block, or None outside the blocks; ``kind`` is
    "attn", "mlp" or "other" inside a block and "embed", "head", "vision" or "audio" outside where
    names alone decide; rules may give it any word of small letters, digits and underscores.
    """

    layer: int | None
    kind: str

    def __post_init__(self) -> None:
        """Refuse a layer or kind that has no name in recipes."""
        bad_layer = self.layer is not None and self.layer < 0
        if bad_layer or not _KIND.fullmatch(self.kind):
            raise ValueError(
                f"a layer group has layer None or >= 0 and a kind of small letters, digits and "
                f"underscores; got layer {self.layer} with kind {self.kind!r}"
            )

    @property
    def name(self) -> str:
        """Return the name used in recipes: "layers.3.attn", "embed", "head"."""
        return self.kind if self.layer is None else f"layers.{self.layer}.{self.kind}"

    @classmethod
    def from_name(cls, name: str) -> "LayerGroup":
        """Read back `name`; ValueError for anything else."""
        match = re.fullmatch(r"(?:layers\.(0|[1-9]\d*)\.)?([a-z][a-z0-9_]*)", name)
        if match is None:
            raise ValueError(
                f"a layer group is named `embed`, `head` or another word, or "
                f"`layers.<i>.<attn|mlp|other or another word>`, in small letters; got {name!r}"
            )
        return cls(None if match[1] is None else int(match[1]), match[2])

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Return a sort key: the order of the forward pass, groups from rules last."""
        if self.layer is not None:
            return (1, self.layer, _position(self.kind, LAYER_KINDS), self.kind)
        if self.kind in INPUTS:
            return (0, 0, INPUTS.index(self.kind), self.kind)
        return (2, 0, _position(self.kind, (HEAD,)), self.kind)


def _position(kind: str, kinds: tuple[str, ...]) -> int:
    return kinds.index(kind) if kind in kinds else len(kinds)


@dataclass(frozen=True)
class Grouping:
    """Map from tensors to layer groups: the user's rules first, then the rule from names.

    ``rules`` are pairs (pattern, group name); the first pattern that matches the whole tensor name
    decides. In a pattern ``*`` matches any characters, ``?`` one, and ``{layer}`` an integer that
    the group name may repeat: ``("*.layers.{layer}.*.q_proj.*", "layers.{layer}.q")``.

    Raises:
        ValueError: If a group name is not valid, or repeats a ``{layer}`` that its pattern lacks.
    """

    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check every rule now, not at its first use."""
        object.__setattr__(self, "rules", tuple((str(p), str(n)) for p, n in self.rules))
        for pattern, name in self.rules:
            if _LAYER in name and _LAYER not in pattern:
                raise ValueError(
                    f"a group's name may contain {{layer}} only if its pattern does, got "
                    f"{pattern!r} -> {name!r}; put {{layer}} in place of the layer's number"
                )
            LayerGroup.from_name(name.replace(_LAYER, "0"))

    def group(self, tensor: str) -> LayerGroup:
        """Return the layer group of a tensor."""
        return _group(self.rules, tensor)

    def unmatched(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """Return the patterns that match none of some tensors."""
        names = list(tensors)
        return tuple(
            pattern
            for pattern, _ in self.rules
            if not any(_compiled(pattern).fullmatch(name) for name in names)
        )

    def names(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the layer groups of some tensors, each once, in model order."""
        groups = {self.group(tensor) for tensor in tensors}
        return tuple(group.name for group in sorted(groups, key=lambda group: group.order))


@lru_cache(maxsize=1 << 16)
def _group(rules: tuple[tuple[str, str], ...], tensor: str) -> LayerGroup:
    for pattern, name in rules:
        match = _compiled(pattern).fullmatch(tensor)
        if match is not None:
            layer = str(int(match["layer"])) if _LAYER in pattern else ""
            return LayerGroup.from_name(name.replace(_LAYER, layer))
    return _from_names(tensor)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # A repeated {layer} must match the same number.
    glob = re.escape(pattern).replace(r"\*", ".*?").replace(r"\?", ".")
    layer = re.escape(_LAYER)
    glob = glob.replace(layer, r"(?P<layer>\d+)", 1).replace(layer, "(?P=layer)")
    return re.compile(glob, re.DOTALL)


def layer_group(tensor_name: str) -> LayerGroup:
    """Return the layer group of a tensor from its name, without rules.

    The layer index is the first whole number that follows a container such as ``layers`` or
    ``h``. Inside a layer, norms are "other" even where their name mentions attention; experts and
    routers are "mlp". Outside the layers, input embeddings are "embed", the rest (final norm,
    output head) is "head". A tower or projector of a multimodal checkpoint is one group "vision"
    or "audio" with all its layers, so that layer 3 of a vision tower shares nothing with layer 3
    of the language model.
    """
    return _group((), tensor_name)


def _from_names(tensor: str) -> LayerGroup:
    parts = [part.lower() for part in tensor.split(".")]
    index = next((i for i in range(1, len(parts)) if _is_layer(parts, i)), len(parts))
    for kind, pattern in ((AUDIO, _AUDIO), (VISION, _VISION)):
        if any(pattern.search(part) for part in parts[:index]):
            return LayerGroup(None, kind)
    if index < len(parts):
        return LayerGroup(int(parts[index]), _layer_kind(parts[index + 1 :]))
    is_input = any(_EMBED.search(p) for p in parts) and not any(_OUTPUT.search(p) for p in parts)
    is_norm = any(_NORM.search(p) for p in parts)
    return LayerGroup(None, EMBED if is_input and not is_norm else HEAD)


def tensor_rules(
    tensors: Iterable[str], rules: tuple[tuple[str, str], ...] = ()
) -> tuple[tuple[str, str], ...]:
    """Return rules that give every tensor a layer group of its own.

    The kind of a group is the tensor's name inside its layer ("self_attn_q_proj"), or its last
    parts outside; where two would be equal (the layers of a vision tower), its complete name.

    Args:
        tensors: Names of the tensors.
        rules: The user's rules, which come first; tensors that they match keep their groups.
    """
    patterns: dict[str, str] = {}  # pattern -> kind
    for tensor in tensors:
        if not any(_compiled(pattern).fullmatch(tensor) for pattern, _ in rules):
            pattern, before, inside = _parted(tensor)
            kind = _kind_word(inside or before[-2:])
            if kind in patterns.values() and pattern not in patterns:
                kind = _kind_word([*before, *inside])
            patterns.setdefault(pattern, kind)
    return rules + tuple(
        (pattern, f"layers.{_LAYER}.{kind}" if _LAYER in pattern else kind)
        for pattern, kind in patterns.items()
    )


def _parted(tensor: str) -> tuple[str, list[str], list[str]]:
    # The pattern of a tensor's name, its parts before the layer's index, and those behind it.
    parts = tensor.split(".")
    index = next((i for i in range(1, len(parts)) if _is_layer(parts, i)), None)
    if index is None:
        return tensor, parts, []
    pattern = ".".join([*parts[:index], _LAYER, *parts[index + 1 :]])
    return pattern, parts[:index], parts[index + 1 :]


def _kind_word(parts: Sequence[str]) -> str:
    words = [part for part in parts if part != "weight"] or list(parts)
    word = re.sub(r"[^a-z0-9_]", "_", "_".join(words).lower())
    return word if word[0].isalpha() else f"t_{word}"


def _is_layer(parts: list[str], index: int) -> bool:
    return parts[index].isdecimal() and parts[index - 1] in _CONTAINERS


def _layer_kind(parts: list[str]) -> str:
    if any(_NORM.search(part) for part in parts):
        return "other"
    if any(_ATTN.search(part) for part in parts):
        return "attn"
    return "mlp" if any(_MLP.search(part) for part in parts) else "other"


def depth(group: LayerGroup | str, n_layers: int) -> float:
    """Return the position of a layer group in the model, 0 at the input and 1 at the output.

    Layer ``i`` of ``n_layers`` is at ``i / (n_layers - 1)``, a single layer at 0. Outside the
    layers, embeddings and the towers that feed them are at 0, the rest at 1.

    Raises:
        ValueError: If the group's layer is outside ``[0, n_layers)``.
    """
    group = LayerGroup.from_name(group) if isinstance(group, str) else group
    if group.layer is None:
        return 0.0 if group.kind in INPUTS else 1.0
    if group.layer >= n_layers:
        raise ValueError(
            f"a layer index must be below the number of layers, got {group.layer} of {n_layers}"
        )
    return group.layer / (n_layers - 1) if n_layers > 1 else 0.0


def lines(alpha: float, beta: float, depth: float) -> float:
    """Return LiNeS' factor on the weights of a layer at ``depth`` in [0, 1]: alpha + beta * depth.

    Shallow layers hold the general knowledge of the base and are scaled down (alpha below
    alpha + beta). It is a prior on weights and works with any method.

    Source:
        Wang et al., arXiv:2410.17146: lambda(l) = alpha + beta * (l - 1) / (L - 1), l = 1 .. L.
    """
    return alpha + beta * depth
