"""Read the structure of mergekit's YAML: keys, models and slices, levels of parameters.

Checks the file, not the models that it names; rules.py knows the meaning of parameters. Semantics
are those of mergekit 0.1.5, determined by running it. No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..strict_yaml import load_yaml
from .parameters import MergekitError, Parameters, Scalar, check_keys, first, read_parameters

__all__ = ["MergekitFile", "ModelRef", "Slice", "Source", "parse", "parse_text"]
_TOP = (
    *("models", "slices", "modules", "merge_method", "base_model", "parameters"),
    *("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
_FOREIGN = MappingProxyType(
    {
        "genome": "a configuration of mergekit-evolve; write a search.yaml for `heterosis search`",
        "tasks": "a configuration of `heterosis search`, not a merge",
        "experts": "a configuration of mergekit-moe, which stacks models instead of merging them",
    }
)


@dataclass(frozen=True)
class ModelRef:
    """A model as mergekit names it: ``path``, ``path@revision``, either ``+lora``."""

    path: str
    revision: str | None = None
    lora: "ModelRef | None" = None

    def __str__(self) -> str:
        """Return the model as in the file."""
        own = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{own}+{self.lora}" if self.lora else own


@dataclass(frozen=True)
class Source:
    """One model of a slice, with its layers (None: all) and its parameters."""

    model: ModelRef
    where: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Models that are merged with each other over a run of layers."""

    sources: tuple[Source, ...]
    where: str
    parameters: Parameters = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, int] | None:
        """Return the layers, equal in all sources; None for the whole model."""
        return self.sources[0].layers


@dataclass(frozen=True)
class MergekitFile:
    """A configuration: models, method, and parameters by place.

    ``levels`` are the parameters of the module and of the whole file, in this order of precedence,
    after those of a source and of its slice.
    """

    method: str
    slices: tuple[Slice, ...]
    levels: tuple[Parameters, ...]
    base: ModelRef | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Return all models but the base, in order of mention."""
        named = (source.model for part in self.slices for source in part.sources)
        return tuple(model for model in dict.fromkeys(named) if model != self.base)

    def shared(self, name: str, part: Slice, tensor: str, t: float) -> Scalar | None:
        """Return a parameter of the whole merge, for one tensor at position ``t`` of its slice."""
        return first((part.parameters, *self.levels), name, tensor, t)

    def of_model(
        self, name: str, part: Slice, model: ModelRef, tensor: str, t: float
    ) -> Scalar | None:
        """Return a parameter of one model, for one tensor at position ``t`` of its slice."""
        own = [source.parameters for source in part.sources if source.model == model]
        return first((*own, part.parameters, *self.levels), name, tensor, t)


def parse(path: Path) -> MergekitFile:
    """Read a configuration of mergekit.

    Raises:
        MergekitError: If it is not valid, or is not supported whatever the models are.
    """
    try:
        return parse_text(path.read_bytes())
    except MergekitError as error:
        raise MergekitError(f"{path}: {error}") from None


def parse_text(text: str | bytes) -> MergekitFile:
    """Read a configuration from its text, as `parse`."""
    try:
        data = load_yaml(text, decimals=True)
    except ValueError as error:
        raise MergekitError(str(error)) from None
    if not isinstance(data, dict):
        raise MergekitError("must be a mapping with the keys of a merge, such as merge_method")
    for key, what in _FOREIGN.items():
        if key in data:
            raise MergekitError(f"the key `{key}` makes this {what}")
    return _file(data)


def _file(data: Mapping[Any, Any]) -> MergekitFile:
    check_keys("", data, _TOP)
    method = data.get("merge_method")
    if not isinstance(method, str):
        raise MergekitError("the key `merge_method` is missing; name one, such as `ties`")
    base = _optional_model(data, "base_model", "base_model")
    levels = [read_parameters("parameters", data.get("parameters"))]
    inputs, where = data, ""
    if _only("", data, ("models", "slices", "modules")) == "modules":
        where, inputs = _only_module(data["modules"])
        levels.insert(0, read_parameters(f"{where}parameters", inputs.get("parameters")))
    slices = _slices(inputs, where, base)
    return MergekitFile(
        method=method,
        slices=slices,
        levels=tuple(levels),
        base=base,
        dtype=_text(data, "dtype"),
        out_dtype=_text(data, "out_dtype"),
        tokenizer=_tokenizer(data, base),
        chat_template=_text(data, "chat_template"),
    )


def _only_module(modules: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(modules, dict) or len(modules) != 1:
        raise MergekitError(
            "`modules` with several parts of a model is not supported; use `models` with "
            "filters on the parts' tensor names"
        )
    name, module = next(iter(modules.items()))
    where = f"modules.{name}."
    check_keys(where, module, ("models", "slices", "parameters"))
    return where, module


def _only(where: str, data: Mapping[str, Any], keys: Sequence[str]) -> str:
    given = [key for key in keys if data.get(key)]
    if len(given) != 1:
        raise MergekitError(
            f"{where}there must be exactly one of {', '.join(keys)}; got "
            f"{' and '.join(given) or 'none'}"
        )
    return given[0]


def _slices(inputs: Mapping[str, Any], where: str, base: ModelRef | None) -> tuple[Slice, ...]:
    key = _only(where, inputs, ("models", "slices"))
    entries = _sequence(where + key, inputs[key])
    if key == "models":
        sources = _sources(where + key, entries, ("model", "parameters"))
        return (Slice(sources, where + key),)
    parts = [_slice(f"{where}slices[{i}]", part, base) for i, part in enumerate(entries)]
    return _contiguous(parts)


def _slice(where: str, data: Any, base: ModelRef | None) -> Slice:
    check_keys(where, data, ("sources", "base_model", "residual_weight", "parameters"))
    own = _optional_model(data, "base_model", f"{where}.base_model")
    if own is not None and own != base:
        raise MergekitError(
            f"{where}.base_model is {own}, the file's base_model is {base}; one merge has one "
            f"base, name it at the top"
        )
    entries = _sequence(f"{where}.sources", data.get("sources"))
    keys = ("model", "layer_range", "parameters")
    sources = _sources(f"{where}.sources", entries, keys)
    for source in sources:
        if source.layers != sources[0].layers:
            raise MergekitError(
                f"{source.where} gives layers {_span(source.layers)}, {sources[0].where} "
                f"{_span(sources[0].layers)}: layers of different depth cannot be merged with "
                f"each other; give all sources of a slice the same layer_range"
            )
    return Slice(sources, where, read_parameters(f"{where}.parameters", data.get("parameters")))


def _sources(where: str, entries: Sequence[Any], keys: tuple[str, ...]) -> tuple[Source, ...]:
    sources = []
    for i, entry in enumerate(entries):
        place = f"{where}[{i}]"
        check_keys(place, entry, keys)
        if "model" not in entry:
            raise MergekitError(f"{place}: the key `model` is missing; name a path or hub id")
        model = _model(f"{place}.model", entry["model"])
        if model in [source.model for source in sources]:
            raise MergekitError(f"{place}: the model {model} is listed twice; list it once")
        layers = _layer_range(place, entry) if "layer_range" in keys else None
        parameters = read_parameters(f"{place}.parameters", entry.get("parameters"))
        sources.append(Source(model, place, layers, parameters))
    return tuple(sources)


def _optional_model(data: Mapping[str, Any], key: str, where: str) -> ModelRef | None:
    return None if data.get(key) is None else _model(where, data[key])


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise MergekitError(f"`{key}` must be text, got {value!r}")
    return value


def _tokenizer(data: Mapping[str, Any], base: ModelRef | None) -> str | None:
    source = data.get("tokenizer_source")
    where = "tokenizer_source"
    if data.get("tokenizer") is not None:
        if source is not None:
            raise MergekitError("`tokenizer_source` and `tokenizer` exclude each other; keep one")
        where, source = "tokenizer.source", _tokenizer_section(data["tokenizer"])
    if source is None or source in ("base", "union"):
        return source
    if base is not None and _model(where, source) == base:
        return "base"
    raise MergekitError(
        f"`{where}` must be `base` or `union`, got {source}: the tokenizer of another model "
        f"than the base cannot be used; make that model the base_model, or use `union`"
    )


def _tokenizer_section(section: Any) -> Any:
    check_keys("tokenizer", section, ("source", "tokens", "pad_to_multiple_of"))
    for key in ("tokens", "pad_to_multiple_of"):
        if section.get(key):
            raise MergekitError(
                f"`tokenizer.{key}` is not supported; remove it, and change the "
                f"vocabulary of a model before it is merged"
            )
    return section.get("source", "union")


def _contiguous(parts: Sequence[Slice]) -> tuple[Slice, ...]:
    """Return slices with each layer once and in its place; refuse all others (frankenmerges)."""
    end = 0
    for part in parts:
        begin, stop = part.layers or (0, 0)
        if begin != end:
            raise MergekitError(
                f"{part.where} begins with layer {begin} where layer {end} must follow: stacking, "
                f"repeating and leaving out layers (frankenmerges) make another architecture and "
                f"are not supported; use mergekit for it, and merge its result"
            )
        end = stop
    return tuple(parts)


def _model(where: str, value: Any) -> ModelRef:
    if isinstance(value, dict):
        check_keys(where, value, ("model", "lora", "override_architecture"))
        if value.get("override_architecture"):
            raise MergekitError(f"{where}.override_architecture is not supported; remove it")
        own, lora = value.get("model"), value.get("lora")
        plain = _model_path(where, own)
        return ModelRef(plain.path, plain.revision, _model_path(where, lora) if lora else None)
    if not isinstance(value, str) or not value.strip():
        raise MergekitError(f"{where} must name a path or hub id, got {value!r}")
    own, *loras = value.split("+")
    if len(loras) > 1:
        raise MergekitError(f"{where}: one adapter per model, got {value!r}; list each by itself")
    plain = _model_path(where, own)
    return ModelRef(plain.path, plain.revision, _model_path(where, loras[0]) if loras else None)


def _model_path(where: str, value: Any) -> ModelRef:
    if isinstance(value, dict):
        check_keys(where, value, ("path", "revision"))
        return ModelRef(str(value.get("path")), value.get("revision"))
    path, *revision = str(value).split("@")
    if len(revision) > 1 or not path:
        raise MergekitError(f"{where} must be `path` or `path@revision`, got {value!r}")
    return ModelRef(path, revision[0] if revision else None)


def _layer_range(where: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    given = entry.get("layer_range")
    pair = given if isinstance(given, list) and all(isinstance(n, int) for n in given) else []
    if len(pair) != 2 or not 0 <= pair[0] < pair[1]:
        raise MergekitError(
            f"{where}.layer_range must be [first, end) of the model's layers, got {given!r}"
        )
    return pair[0], pair[1]


def _span(layers: tuple[int, int] | None) -> str:
    return "all" if layers is None else f"[{layers[0]}, {layers[1]})"


def _sequence(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise MergekitError(f"`{where}` must be a list of models or slices, got {value!r}")
    return value
