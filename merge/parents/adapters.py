"""LoRA adapters as parents: the base plus ``scale * B @ A``, computed when a tensor is read.

Reads adapter_config.json and adapter_model.safetensors as written by peft. The product is never
stored; tensors that the adapter does not change are the base's. adapter_settings.py interprets the
settings. Knows nothing of other parents.

Source: Hu et al., arXiv:2106.09685, Sec. 4.1.

Shapes: R rank, I inputs, O outputs of a layer.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter_settings import CONFIG, REMEDY, LoraSettings, check_base, read_settings
from .checkpoint import Checkpoint, Files, LowRank, Source, digest_of_files
from .compatibility import is_tied
from .headers import INDEX, WEIGHTS, ParentError, TensorInfo, read_header
from .vocabulary import vocabulary_size, vocabulary_tensors

ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Factors of embeddings have no suffix ".weight".
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")
_OTHER_VARIANTS = re.compile(r"\.(lora_|token_adapter\.)")


def is_adapter(who: str, folder: Path) -> bool:
    """Return whether a directory holds an adapter, not a model.

    Raises:
        ParentError: If it holds both.
    """
    if not (folder / CONFIG).is_file():
        return False
    models = [name for name in (WEIGHTS, INDEX) if (folder / name).is_file()]
    if models:
        raise ParentError(
            f"{who}: {folder} holds both an adapter ({CONFIG}) and a model ({models[0]}); move one "
            f"of them to a directory of its own"
        )
    return True


@dataclass(frozen=True)
class _Pair:
    # The tensors of one LowRank, by their names in the file.
    a: str
    b: str
    scale: float
    is_transposed: bool


class Adapter:
    """A base with a LoRA adapter added. Create it with `open`."""

    def __init__(
        self,
        who: str,
        folder: Path,
        base: Source,
        pairs: Mapping[str, _Pair],
        whole: Mapping[str, str],
        infos: Mapping[str, TensorInfo],
    ) -> None:
        """Take what `open` has checked: base tensor -> factors, base tensor -> full tensor."""
        self._folder, self._base, self._files = folder, base, Files(who)
        self._pairs, self._whole, self._infos = pairs, whole, infos
        changed = {name: infos[key] for name, key in whole.items()}
        path = folder / ADAPTER
        for name in pairs:
            shape = changed.get(name, base.tensors[name]).shape
            changed[name] = TensorInfo(shape, "F32", path)
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **changed}

    @classmethod
    def open(
        cls,
        who: str,
        folder: Path,
        base: Checkpoint,
        base_folder: Path,
        base_names: Sequence[str],
        config: Mapping[str, Any],
    ) -> "Adapter":
        """Check an adapter against its base, reading its settings and header only.

        Args:
            who: "parent <name>", for messages.
            folder: Directory with adapter_config.json and adapter_model.safetensors.
            base: The base's tensors.
            base_folder: Directory of the base.
            base_names: Names of the base; an adapter whose base is not on this machine must name
                one of these.
            config: The base's settings.

        Raises:
            ParentError: An unsupported variant of LoRA, another base, or tensors that do not fit
                it.
        """
        if not (folder / ADAPTER).is_file():
            raise ParentError(_no_weights(who, folder))
        settings = read_settings(who, folder)
        check_base(who, folder, settings.base, base, base_folder, base_names)
        infos = read_header(who, folder / ADAPTER)
        contents = _sort_out(who, infos, base.tensors)
        shapes = {name: info.shape for name, info in base.tensors.items()}
        shapes |= {name: infos[key].shape for name, key in contents.whole.items()}
        pairs = _pair_up(who, settings, contents.factors, infos, shapes)
        opened = cls(who, folder, base, pairs, contents.whole, infos)
        opened._check_tied(who, contents.rest, config, settings.is_tying)
        return opened

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor that is the base's plus a product; None for any other."""
        pair = self._pairs.get(name)
        if pair is None or name in self._whole:
            return None
        return self._factors(pair)

    def is_base(self, name: str) -> bool:
        """Return whether the adapter does not change a tensor."""
        return name not in self._pairs and name not in self._whole

    def read(self, name: str) -> Tensor:
        """Read the base's tensor, a tensor of the adapter, or float32 base + scale * B @ A."""
        key = self._whole.get(name)
        tensor = self._base.read(name) if key is None else self._own(key)
        pair = self._pairs.get(name)
        return tensor if pair is None else self._factors(pair).added_to(tensor)

    def bytes_of(self, name: str) -> int:
        """Return the bytes in the adapter's file; 0 if the tensor is the base's."""
        pair = self._pairs.get(name)
        keys = [self._whole.get(name), *((pair.a, pair.b) if pair else ())]
        return sum(self._infos[key].n_bytes for key in keys if key is not None)

    def digest(self) -> str:
        """Return the SHA-256 over lines of file name and SHA-256: settings and weights."""
        return digest_of_files((self._folder / CONFIG, self._folder / ADAPTER))

    def _own(self, key: str) -> Tensor:
        return self._files.read(self._folder / ADAPTER, key)

    def _factors(self, pair: _Pair) -> LowRank:
        return LowRank(self._own(pair.a), self._own(pair.b), pair.scale, pair.is_transposed)

    def _check_tied(
        self, who: str, rest: Collection[str], config: Mapping[str, Any], is_tying: bool
    ) -> None:
        # Tensors that the base lacks may only be copies of embeddings that it ties to its head,
        # and embeddings that are tied may only be changed together with the head.
        names = vocabulary_tensors(self._base.tensors, vocabulary_size(config))
        names = names if is_tied(config) else frozenset()
        copied = set()
        for key in rest:
            copies = {name for name in names if self._are_equal(name, key)}
            if not copies:
                detail = ", whose embeddings are tied to its head" if names else ""
                raise ParentError(_no_match(who, key, detail))
            copied |= copies
        for name in sorted(names & self._pairs.keys() | names & self._whole.keys()):
            is_head_too = name in copied or is_tying or len(names) > 1
            if name in self._pairs or not is_head_too:
                raise ParentError(
                    f"{who}: the adapter changes {name} alone, in the base it is tied to the head; "
                    f"{REMEDY}"
                )

    def _are_equal(self, name: str, key: str) -> bool:
        if self.tensors[name].shape != self._infos[key].shape:
            return False
        return torch.equal(self.read(name).float(), self._own(key).float())


def _no_weights(who: str, folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            f"{who}: {folder} has only a pickled adapter (adapter_model.bin), which is never read "
            f"since it can run code; save it again with peft's save_pretrained, which writes "
            f"{ADAPTER}"
        )
    return f"{who}: no {ADAPTER} in {folder}; save the adapter there with peft's save_pretrained"


@dataclass
class _Contents:
    # Roles of an adapter's tensors: base tensor -> factor -> key, base tensor -> key of a full
    # tensor, and keys of full tensors that the base lacks.
    factors: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    whole: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)


def _sort_out(
    who: str, infos: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]
) -> _Contents:
    contents = _Contents()
    for key, info in infos.items():
        plain = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        match = _FACTOR.fullmatch(plain)
        if match is None and _OTHER_VARIANTS.search(key):
            raise ParentError(
                f"{who}: adapter tensor {key} belongs to an unknown variant of LoRA; {REMEDY}"
            )
        if not info.is_floating or (match and len(info.shape) != 2):
            raise ParentError(
                f"{who}: adapter tensor {key} has shape {info.shape} {info.dtype}, only floating "
                f"tensors and factors that are matrices can be merged; {REMEDY}"
            )
        name = _in_base(f"{match['layer']}.weight" if match else plain, base)
        if match and name is None:
            raise ParentError(_no_match(who, key))
        if name is None:
            contents.rest.append(key)
            continue
        place, part = (contents.factors[name], match["factor"]) if match else (contents.whole, name)
        if part in place:
            raise ParentError(
                f"{who}: adapter tensors {place[part]} and {key} both belong to {name}; fetch it "
                f"again"
            )
        place[part] = key
    return contents


def _in_base(name: str, base: Mapping[str, TensorInfo]) -> str | None:
    # Published checkpoints may lack the first part of transformers' names ("transformer.").
    return next((n for n in (name, name.partition(".")[2]) if n in base), None)


def _no_match(who: str, key: str, detail: str = "") -> str:
    return (
        f"{who}: adapter tensor {key} matches no tensor of the base{detail}; give the base that "
        f"the adapter was made on, or {REMEDY}"
    )


def _pair_up(
    who: str,
    settings: LoraSettings,
    factors: Mapping[str, Mapping[str, str]],
    infos: Mapping[str, TensorInfo],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, _Pair]:
    pairs, layouts = {}, {}
    for name, keys in factors.items():
        if set(keys) != {"A", "B"}:
            raise ParentError(
                f"{who}: the adapter has {min(keys.values())} but not the other of A and B for "
                f"{name}; fetch it again"
            )
        a, b = infos[keys["A"]].shape, infos[keys["B"]].shape
        layouts[name] = _layouts(keys["A"], a, b, shapes[name])
        if a[0] != b[1] or not layouts[name]:
            raise ParentError(
                f"{who}: the adapter's factors B {b} and A {a} do not fit {name} of shape "
                f"{shapes[name]}; give the base that the adapter was made on"
            )
        scale = _scale(who, settings, keys["A"], a[0])
        pairs[name] = _Pair(keys["A"], keys["B"], scale, layouts[name][0])
    # The layout of a square weight is ambiguous: it is that of the other layers, else the flag's.
    shown = {
        fitting[0]
        for name, fitting in layouts.items()
        if len(fitting) == 1 and "lora_embedding_" not in pairs[name].a
    }
    flipped = shown.pop() if len(shown) == 1 else settings.is_flipped
    return {
        name: replace(pair, is_transposed=flipped) if len(layouts[name]) == 2 else pair
        for name, pair in pairs.items()
    }


def _layouts(
    key: str, a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]
) -> list[bool]:
    # The layouts that fit: False for (O, I), True for (I, O).
    fitting = [flip for flip in (False, True) if shape == ((a[1], b[0]) if flip else (b[0], a[1]))]
    return [flip for flip in fitting if flip or "lora_embedding_" not in key]


def _scale(who: str, settings: LoraSettings, key: str, rank: int) -> float:
    match = _FACTOR.fullmatch(key.removeprefix(_PREFIX))
    assert match is not None
    if settings.rank(match["layer"]) != rank:
        raise ParentError(
            f"{who}: adapter tensor {key} has rank {rank}, {CONFIG} says "
            f"{settings.rank(match['layer'])}; fetch it again"
        )
    return settings.scale(match["layer"])
