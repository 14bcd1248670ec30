"""The resident model: built from the base by transformers' loader, ready to be overwritten.

It is bitwise equal to the result of `from_pretrained`, but loaded tensor by tensor from the parent
set, whose vocabulary may differ from that of the base's directory. `outline` builds it without
weights to determine sizes. Knows nothing of recipes; placement.py holds base and parents during a
search.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..blocks import blocks
from ..hints import near, reason
from ..parents.headers import ParentError
from ..parents.parent_set import BASE, ParentSet
from ..recipe.groups import layer_group
from .devices import DeviceMap, dispatch, find_homes, home_of, settle
from .memory import give_back
from .weight_views import file_views, storage_of

__all__ = ["DTYPES", "Outline", "Resident", "build_resident", "outline", "resident_dtype"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Resident:
    """A model and, by file tensor name in model order, the views of its weights (targets).

    A target is detached, has the shape of the file's tensor and may be a slice of a larger
    parameter, so perhaps not contiguous. Tied tensors appear once.
    """

    model: PreTrainedModel
    targets: Mapping[str, Tensor]


@dataclass(frozen=True)
class Outline:
    """Sizes and devices of a resident model, known without loading it."""

    devices: Mapping[torch.device, int]
    """Device -> bytes of parameters and buffers there."""
    sample: int
    """Bytes that transformers loads itself, on the host, for comparison (`_sample`)."""
    targets: Mapping[str, torch.device]
    """File tensors that will be merged, in model order -> device of their target."""


def resident_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a dtype of resident or exported models; ValueError for any other."""
    result = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if result not in DTYPES.values():
        meant = near(dtype, DTYPES)
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}{meant}")
    assert result is not None
    return result


def build_resident(
    parents: ParentSet,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device = "cpu",
    device_map: DeviceMap | None = None,
) -> Resident:
    """Build the resident model with the base's weights.

    Args:
        parents: The base and its fine-tunes; the base gives architecture and tensors.
        dtype: Dtype of the model: float32, bfloat16 or float16.
        device: Device of the model, unless ``device_map`` is given.
        device_map: "auto" or module name -> device, as in transformers; needs accelerate.

    Raises:
        ValueError: Unknown dtype, or a ``device_map`` that would keep weights off their devices.
        ParentError: A base whose tensors are not those of its architecture, or an architecture
            whose weights cannot be overwritten in place.
    """
    dtype = resident_dtype(dtype)
    homes = find_homes(torch.device(device), device_map, lambda: _skeleton(parents, dtype))
    sample = _sample(parents)
    model = _load(parents, dtype, sample)
    views = _views(model, parents)
    _check_sample(model, parents, {name: views[name] for name in sample})
    give_back()  # the parts that transformers has stacked
    settle(model, homes)
    views = _views(model, parents)
    _fill(parents, {name: view for name, view in views.items() if name not in sample})
    dispatch(model, homes)
    return Resident(model, _targets(views, parents))


def outline(
    parents: ParentSet,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device = "cpu",
    device_map: DeviceMap | None = None,
) -> Outline:
    """Return the sizes of the result of `build_resident`; reads no weights.

    Raises:
        ValueError: As `build_resident`.
        ParentError: As `build_resident`, except for faulty values.
    """
    dtype = resident_dtype(dtype)
    homes = find_homes(torch.device(device), device_map, lambda: _skeleton(parents, dtype))
    model = _skeleton(parents, dtype)
    devices: Counter[torch.device] = Counter()
    places = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        home = places[storage_of(tensor)] = home_of(name, homes)
        devices[home] += tensor.nbytes
    views = _views(model, parents)
    sample = sum(views[name].nbytes for name in _sample(parents))
    targets = {n: places[storage_of(view)] for n, view in _targets(views, parents).items()}
    return Outline(dict(devices), sample, targets)


class _Source:
    """A tensor of the base for the loader of transformers, read on request."""

    def __init__(self, parents: ParentSet, name: str, has_data: bool) -> None:
        self._parents, self._name, self._has_data = parents, name, has_data

    def __getitem__(self, _: Any) -> "_Source":
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return a copy of the tensor, or one without data."""
        if self._has_data:
            return self._parents.tensor(BASE, self._name).to(device, dtype, copy=True)
        return torch.empty(self._parents.tensors[self._name].shape, dtype=dtype, device="meta")


def _load(
    parents: ParentSet, dtype: torch.dtype, sample: frozenset[str] = frozenset()
) -> PreTrainedModel:
    # The model as built by from_pretrained, on the host, with the data of a sample of its tensors
    # and of buffers that are in no file; all others are on device "meta".
    folder = parents.folders[BASE]
    settings = transformers.CONFIG_MAPPING[parents.config["model_type"]]
    config = settings.from_dict(dict(parents.config))
    kind = _model_class(config, folder)
    names = sorted(parents.tensors.keys() - _aliases(parents))
    try:
        with _without_threads():
            model, info = kind.from_pretrained(
                None,
                config=config,
                state_dict={name: _Source(parents, name, name in sample) for name in names},
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                generation_config=_generation_config(folder),
            )
    except RuntimeError as error:
        raise ParentError(
            f"base: transformers cannot build {kind.__name__} from {folder} ({reason(error)}); "
            f"such a model cannot be searched, `heterosis merge` merges its files"
        ) from None
    _check_complete(parents, model, info)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model.eval()


def _skeleton(parents: ParentSet, dtype: torch.dtype) -> PreTrainedModel:
    with _without_progress():
        return _load(parents, dtype)


def _sample(parents: ParentSet) -> frozenset[str]:
    # Of tensors that differ only by layer, the first layer's; all tensors outside the layers.
    first: dict[str, int] = {}
    rows = []
    for name in parents.tensors.keys() - _aliases(parents):
        number = re.search(r"\d+", name)
        layer = int(number[0]) if number else 0
        kind = re.sub(r"\d+", "#", name, count=1)
        first[kind] = min(first.get(kind, layer), layer)
        rows.append((name, kind, layer))
    return frozenset(name for name, kind, layer in rows if layer == first[kind])


def _model_class(config: PretrainedConfig, folder: Path) -> Any:
    # The class in config.json if it generates text, else the architecture's.
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    for kind in named:
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel) and kind.can_generate():
            return kind
    try:
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ParentError(
            f"base: {folder} has architecture {config.model_type}, for which transformers has no "
            f"model that generates text; use a language model"
        ) from None


def _aliases(parents: ParentSet) -> set[str]:
    # Copies of tied tensors in the files: all but the first of equal tensors outside the layers.
    # The loader ties those that are missing and does not allocate them twice.
    if not parents.config.get("tie_word_embeddings", True):
        return set()
    outside = [n for n, info in parents.tensors.items() if layer_group(n).name in ("embed", "head")]
    seen: dict[tuple[int, ...], list[str]] = {}
    aliases = set()
    for name in sorted(outside):
        firsts = seen.setdefault(parents.tensors[name].shape, [])
        tensor = parents.tensor(BASE, name)
        if any(torch.equal(tensor, parents.tensor(BASE, first)) for first in firsts):
            aliases.add(name)
        else:
            firsts.append(name)
    return aliases


def _generation_config(folder: Path) -> GenerationConfig | None:
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def _without_threads() -> Iterator[None]:
    # Memory freed by threads of the loader cannot be returned to the system.
    switch = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def _fill(parents: ParentSet, views: Mapping[str, Tensor]) -> None:
    for name, view in views.items():
        view.copy_(parents.tensor(BASE, name))


def _check_complete(parents: ParentSet, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    faults = (
        ("lacks", info["missing_keys"]),
        ("has unknown", info["unexpected_keys"]),
        ("has a wrong shape of", {str(entry[0]) for entry in info["mismatched_keys"]}),
    )
    for what, keys in faults:
        if keys:
            raise ParentError(
                f"base: {parents.folders[BASE]} {what} tensor {min(keys)} of its architecture "
                f"{type(model).__name__}; use a complete checkpoint of a language model"
            )


def _views(model: PreTrainedModel, parents: ParentSet) -> dict[str, Tensor]:
    # File tensor -> its part of the weights, in model order.
    names = sorted(parents.tensors, key=lambda name: layer_group(name).order)
    views = {}
    for name, view in file_views(model, names).items():
        shape = parents.tensors[name].shape
        if view is None or tuple(view.shape) != shape:
            raise ParentError(
                f"base: tensor {name} of shape {'x'.join(map(str, shape))} has no part of its own "
                f"in {type(model).__name__}, whose weights transformers rearranges when it loads "
                f"them; such a model cannot be searched, `heterosis merge` merges its files"
            )
        views[name] = view
    _check_covered(model, views)
    return views


def _check_covered(model: PreTrainedModel, views: Mapping[str, Tensor]) -> None:
    # Weights that no file tensor fills must have been filled by transformers.
    filled: Counter[int] = Counter()
    for place, view in {_place(view): view for view in views.values()}.items():
        filled[place[0]] += view.nbytes
    for name, tensor in model.state_dict(keep_vars=True).items():
        n_bytes = tensor.untyped_storage().nbytes()
        if tensor.device.type == "meta" and filled[storage_of(tensor)] != n_bytes:
            raise ParentError(
                f"base: of weight {name} of {type(model).__name__} ({n_bytes} bytes) the files "
                f"fill {filled[storage_of(tensor)]}; such a model cannot be searched, `heterosis "
                f"merge` merges its files"
            )


def _place(view: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return storage_of(view), int(view.storage_offset()), tuple(view.shape), view.stride()


def _targets(views: Mapping[str, Tensor], parents: ParentSet) -> dict[str, Tensor]:
    # The tensors to merge; of tied tensors, the first.
    owners: dict[Any, str] = {}
    targets = {}
    for name, view in views.items():
        if parents.tensors[name].is_floating:
            owner = owners.setdefault(_place(view), name)
            if owner == name:
                targets[name] = view
            else:
                parents.check_tied(owner, name)
    return targets


@torch.no_grad()
def _check_sample(model: PreTrainedModel, parents: ParentSet, views: Mapping[str, Tensor]) -> None:
    # transformers has loaded these: a correct view has the file's values.
    for name, view in views.items():
        base, flat = parents.tensor(BASE, name).reshape(-1), view.reshape(-1)
        for run in blocks(flat.numel(), view.device):
            if not torch.equal(_bits(flat[run]), _bits(base[run].to(view.dtype))):
                raise ParentError(
                    f"base: tensor {name} is changed when it is loaded into "
                    f"{type(model).__name__}; such a model cannot be searched, `heterosis merge` "
                    f"merges its files"
                )


def _bits(tensor: Tensor) -> Tensor:
    # As integers, so that NaN equals NaN and -0.0 differs from 0.0.
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
