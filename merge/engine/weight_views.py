"""Views of the parameters that correspond to the tensors of a file, for any architecture.

transformers converts the tensors of a checkpoint into parameters by renaming, stacking, joining,
splitting and transposing them, and converts them back to save them. Here it converts them back on
tensors that refuse to be copied, so that the result under a file's name is a view of a parameter,
or of several adjacent ones. Knows nothing of parents; reads no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

__all__ = ["file_views", "storage_of"]


class _View(Tensor):
    """A tensor whose conversions are views where torch's would copy."""

    def contiguous(self, *_: Any, **__: Any) -> "_View":  # pyright: ignore
        """Return this tensor, with any strides."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do as torch, but join tensors that are adjacent in memory without a copy."""
        kwargs = kwargs or {}
        if func is torch.cat and kwargs.get("dim", args[1] if len(args) > 1 else 0) == 0:
            joined = _rejoined(args[0])
            if joined is not None:
                return joined
        return super().__torch_function__(func, types, args, kwargs)


def storage_of(tensor: Tensor) -> int:
    """Return a number that is equal for tensors that share memory, also on device "meta"."""
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def file_views(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor | None]:
    """Return the view of the model's weights for each tensor of its files.

    Args:
        model: A model loaded from such files by transformers.
        names: File tensor names, with or without the prefix of the base model.

    Returns:
        Name -> detached tensor that shares memory with a parameter, or None if there is no such
        tensor or no view with its entries.
    """
    state = model.state_dict(keep_vars=True)
    views = {name: tensor.detach().as_subclass(_View) for name, tensor in state.items()}
    reverted: Mapping[str, Tensor] = revert_weight_conversion(model, views)
    owned = {storage_of(tensor) for tensor in state.values()}
    prefix = f"{model.base_model_prefix}."
    result = {}
    for name in names:
        saved_as = (name, prefix + name, name.removeprefix(prefix))
        view = next((reverted[n] for n in saved_as if n in reverted), None)
        is_view = view is not None and storage_of(view) in owned
        result[name] = view.as_subclass(Tensor) if view is not None and is_view else None
    return result


def _rejoined(parts: Sequence[Tensor]) -> Tensor | None:
    # Join parameters that the loader has split from one tensor of a file without copying it.
    first = parts[0]
    end = first.storage_offset()
    for part in parts:
        is_next = storage_of(part) == storage_of(first) and part.storage_offset() == end
        if not (is_next and part.is_contiguous() and part.shape[1:] == first.shape[1:]):
            return None
        end += part.numel()
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride())
