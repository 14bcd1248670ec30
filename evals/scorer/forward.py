"""Logits at scored positions only, and caches of prefixes. Knows torch and transformers' models.

A causal model of transformers is a backbone and a head: a projection, for some models with a scale
or a soft-cap. The head accepts any hidden states, so a hook cuts those of the backbone to the
scored positions; the model's own code does the rest.

Legend: B rows, T tokens, H hidden size, S scored positions, V vocabulary; K heads of keys, D their
size, P tokens of a prefix.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def scored_logits(model: Any, cells: Int64[Tensor, " S"], **inputs: Any) -> Float[Tensor, "S V"]:
    """Return a model's logits at some positions only.

    Args:
        model: A causal language model of transformers; left unchanged.
        cells: Positions as indices into B * T.
        **inputs: Arguments of the model's forward.

    Returns:
        Logits in the model's dtype.

    Raises:
        NotImplementedError: If the model is no backbone followed by a head.
    """
    backbone = getattr(model, "base_model", model)
    if backbone is model:
        raise NotImplementedError(f"{type(model).__name__} has no backbone apart from its head")

    def cut(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0]  # (B, T, H)
        kept = hidden.flatten(0, 1)[cells.to(hidden.device)][None]  # (1, S, H)
        if isinstance(output, tuple):
            return (kept, *output[1:])
        output.last_hidden_state = kept
        return output

    handle = backbone.register_forward_hook(cut)
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    if logits.shape[:2] != (1, cells.numel()):
        raise NotImplementedError(
            f"the head of {type(model).__name__} does not follow its backbone: logits of "
            f"{tuple(logits.shape)} for {cells.numel()} positions"
        )
    return logits[0]


class PrefixLayer(DynamicLayer):
    """Keys and values of a prefix in one layer: put before those of any batch, never changed."""

    def __init__(self, keys: Float[Tensor, "1 K P D"], values: Float[Tensor, "1 K P Dv"]) -> None:
        """Keep keys and values."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._prefix = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new states (B, K, P + T, D); the layer is left unchanged."""
        keys, values = self._prefix
        return self._before(keys, key_states), self._before(values, value_states)

    @staticmethod
    def _before(prefix: Tensor, states: Tensor) -> Tensor:
        return torch.cat([prefix.expand(states.shape[0], -1, -1, -1), states], dim=-2)


def read_prefix(model: Any, ids: Int64[Tensor, "1 P"]) -> Cache:
    """Run the model on a prefix, and return the cache of its keys and values.

    Args:
        model: A causal language model with attention in every layer.
        ids: Token ids of the prefix.

    Raises:
        NotImplementedError: If the model caches anything but keys and values of P tokens.
    """
    output = model.base_model(input_ids=ids, use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", None)
    if not layers:
        raise NotImplementedError(f"{type(model).__name__} returns no cache of keys and values")
    for layer in layers:
        keys = getattr(layer, "keys", None)
        if keys is None or keys.shape[-2] != ids.shape[1]:
            raise NotImplementedError(
                f"a layer of {type(model).__name__} does not keep the keys of the whole prefix"
            )
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])
