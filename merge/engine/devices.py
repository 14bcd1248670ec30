"""Placement of a model's weights: one device, or a map over several.

Recipes are written into the weights in place, so maps that keep some on disk, or in host memory
beside an accelerator, are refused. Knows no parents.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..hints import near, reason
from .weight_views import storage_of

__all__ = ["DeviceMap", "dispatch", "find_homes", "home_of", "settle"]
DeviceMap = str | Mapping[str, Any]
"""As in transformers: "auto" and the like, or module name -> device."""


def find_homes(
    device: torch.device,
    device_map: DeviceMap | None,
    skeleton: Callable[[], PreTrainedModel],
) -> dict[str, torch.device]:
    """Return module name -> device, with "" for all other weights.

    Args:
        device: Device of all weights without a map.
        device_map: As in transformers; needs accelerate.
        skeleton: Returns the model without data, which "auto" measures.

    Raises:
        ValueError: No accelerate, an unknown word or module, or a map that keeps weights off their
            devices or leaves some out.
    """
    if device_map is None:
        return {"": _there("the model", device)}
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            "`device_map` needs the package accelerate, which is not installed; "
            "pip install accelerate, or name one `device`"
        )
    model = skeleton()
    if isinstance(device_map, str):
        device_map = _automatic(model, device_map)
    else:
        _check_modules(device_map, model)
    kinds = {_kind(device) for device in device_map.values()}
    if kinds & {"disk", "meta"} or len(kinds) > 1:
        away = next(m for m, d in device_map.items() if _kind(d) in ("disk", "meta", "cpu"))
        raise ValueError(
            f"`device_map` must keep all weights on devices of one kind, got {device_map[away]} "
            f"for {away or 'the model'} among {', '.join(sorted(kinds))}: such weights are loaded "
            f"for each call and cannot be overwritten; use more devices or a smaller dtype"
        )
    named = {module: _there(module or "the model", d) for module, d in device_map.items()}
    if len(set(named.values())) > 1:
        _check_covered(named, model)
    return {"": next(iter(named.values())), **named}


def _check_modules(device_map: Mapping[str, Any], model: PreTrainedModel) -> None:
    if not device_map:
        raise ValueError("`device_map` must name a module, got none; use auto")
    known = {*dict(model.named_modules()), *model.state_dict()}
    parts = [name for name, _ in model.named_children()]
    for module in device_map:
        if module not in known:
            remedy = near(module, known) or f"; such as {' and '.join(parts)}"
            raise ValueError(f"`device_map` must name modules of the model, got `{module}`{remedy}")


def _check_covered(named: Mapping[str, Any], model: PreTrainedModel) -> None:
    # accelerate moves inputs to modules by name: "" does not cover the rest.
    for weight in model.state_dict():
        if not any(module and f"{weight}.".startswith(f"{module}.") for module in named):
            raise ValueError(
                f"`device_map` over several devices must name a module of every weight, got none "
                f"for {weight}; add its module, or use auto"
            )


def _kind(device: Any) -> str:
    # "cpu", "cuda", "disk"; whole numbers are accelerators.
    return "cuda" if isinstance(device, int) else str(device).partition(":")[0]


def _there(what: str, device: Any) -> torch.device:
    # Return the device with its number: cuda becomes cuda:0.
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"a device must exist, got {device} for {what} ({reason(error)}); use "
            f"cpu, or a torch with support for the device"
        ) from None


def _automatic(model: PreTrainedModel, policy: str) -> dict[str, Any]:
    # The map that transformers computes from "auto" and the like.
    from transformers.integrations import accelerate

    try:
        named = accelerate.check_and_set_device_map(policy)
    except ValueError:
        raise ValueError(
            f"`device_map` must be auto or another word of transformers, a device, or module names "
            f"with devices, got {policy!r}; use auto"
        ) from None
    if isinstance(named, dict):
        return named
    units = set(model._no_split_modules or ())
    limits = None
    if named != "sequential":
        limits = accelerate.get_balanced_memory(
            model, no_split_module_classes=units, low_zero=named == "balanced_low_0"
        )
    return accelerate.infer_auto_device_map(model, max_memory=limits, no_split_module_classes=units)


def home_of(name: str, homes: Mapping[str, torch.device]) -> torch.device:
    """Return the device of a weight: that of the longest module name that contains it."""
    modules = (m for m in homes if m == "" or name == m or name.startswith(m + "."))
    return homes[max(modules, key=len)]


@torch.no_grad()
def settle(model: PreTrainedModel, homes: Mapping[str, torch.device]) -> None:
    """Allocate each weight of a model on its device and copy the data that exist.

    Weights that share memory still do: tied weights, parameters split from one tensor.
    """
    storages: dict[int, Tensor] = {}
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # id -> (old, new); old ones keep their ids
    for path, module in model.named_modules():
        registries: tuple[Any, ...] = (module._parameters, module._buffers)
        for registry in registries:
            for leaf, old in registry.items():
                if old is None:
                    continue
                if id(old) not in moved:
                    home = home_of(f"{path}.{leaf}".lstrip("."), homes)
                    moved[id(old)] = old, _moved(old, home, storages)
                registry[leaf] = moved[id(old)][1]


def _moved(old: Tensor, home: torch.device, storages: dict[int, Tensor]) -> Tensor:
    if old.device == home:
        return old
    key = storage_of(old)
    if key not in storages:
        n = old.untyped_storage().nbytes() // old.element_size()
        storages[key] = torch.empty(n, dtype=old.dtype, device=home)
        if old.device.type != "meta":
            storages[key].copy_(old.detach().as_strided((n,), (1,), 0))
    new = storages[key].as_strided(old.shape, old.stride(), old.storage_offset())
    is_parameter = isinstance(old, torch.nn.Parameter)
    return torch.nn.Parameter(new, old.requires_grad) if is_parameter else new


def dispatch(model: PreTrainedModel, homes: Mapping[str, torch.device]) -> None:
    """Move inputs to the devices of the weights if there are several."""
    if len(set(homes.values())) > 1:
        from accelerate import dispatch_model

        where: dict[str, Any] = {module: device for module, device in homes.items() if module}
        skipped = model._skip_keys_device_placement
        dispatch_model(
            model,
            where,
            main_device=next(iter(where.values())),
            skip_keys=None if skipped is None else list(skipped),
        )
