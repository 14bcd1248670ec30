"""Which part of which parameter each file tensor fills, whatever the architecture.

transformers turns the tensors of a checkpoint into a model's parameters by renaming, stacking,
joining, splitting and transposing them, and turns them back when it saves. Here it turns them back
on tensors that refuse to be copied: what comes out under a file's name is a view of a parameter,
or of several that lie behind each other. Knows nothing of parents; reads no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

__all__ = ["file_views", "storage_of"]


class _View(Tensor):
    """A tensor whose conversions stay views where torch's own would copy."""

    def contiguous(self, *_: Any, **__: Any) -> "_View":  # pyright: ignore
        """This very tensor, whatever its strides."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch does, except that joining what lies together in memory copies nothing."""
        kwargs = kwargs or {}
        if func is torch.cat and kwargs.get("dim", args[1] if len(args) > 1 else 0) == 0:
            joined = _rejoined(args[0])
            if joined is not None:
                return joined
        return super().__torch_function__(func, types, args, kwargs)


def storage_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory, on any device (also one without data)."""
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def file_views(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor | None]:
    """The view of the model's weights that each tensor of its files fills.

    Args:
        model: A model that transformers has loaded from such files.
        names: File tensor names, with or without the prefix of the base model.

    Returns:
        Name -> detached tensor that shares memory with a parameter, or None where there is no
        such tensor or no view that has its entries.
    """
    state = model.state_dict(keep_vars=True)
    views = {name: tensor.detach().as_subclass(_View) for name, tensor in state.items()}
    found: Mapping[str, Tensor] = revert_weight_conversion(model, views)
    held = {storage_of(tensor) for tensor in state.values()}
    prefix = f"{model.base_model_prefix}."
    chosen = {}
    for name in names:
        view = found.get(name, found.get(prefix + name, found.get(name.removeprefix(prefix))))
        if view is not None and storage_of(view) in held:
            chosen[name] = view.as_subclass(Tensor)
        else:
            chosen[name] = None
    return chosen


def _rejoined(parts: Sequence[Tensor]) -> Tensor | None:
    # The loader splits a file's tensor into parameters without copying it: back to the whole.
    first = parts[0]
    end = first.storage_offset()
    for part in parts:
        is_next = storage_of(part) == storage_of(first) and part.storage_offset() == end
        if not (is_next and part.is_contiguous() and part.shape[1:] == first.shape[1:]):
            return None
        end += part.numel()
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride())
