"""Keys and values of a prefix that many requests share. Knows torch and transformers' caches.

Legend: P tokens of the prefix, B rows, T tokens of a row, K key heads, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PrefixLayer(DynamicLayer):
    """One layer's prefix; shown before the keys of any batch, and never grown."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Hold keys and values (1, K, P, D)."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._prefix = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new states (B, K, P + T, D); the layer itself stays as it is."""
        keys, values = self._prefix
        return self._before(keys, key_states), self._before(values, value_states)

    @staticmethod
    def _before(prefix: Tensor, states: Tensor) -> Tensor:
        return torch.cat([prefix.expand(states.shape[0], -1, -1, -1), states], dim=-2)


def read_prefix(model: Any, ids: Tensor) -> Cache:
    """Run a prefix once and keep its keys and values.

    Args:
        model: A causal language model with attention in every layer.
        ids: The prefix (1, P).

    Raises:
        NotImplementedError: If the model keeps something else than keys and values of P tokens.
    """
    output = model.base_model(input_ids=ids, use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", None)
    if not layers:
        raise NotImplementedError(f"{type(model).__name__} gives no cache of keys and values")
    for layer in layers:
        keys = getattr(layer, "keys", None)
        if keys is None or keys.shape[-2] != ids.shape[1]:
            raise NotImplementedError(
                f"a layer of {type(model).__name__} does not keep the keys of the whole prefix"
            )
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in layers])
