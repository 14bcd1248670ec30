"""Deltas for tests of statistics."""

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensors(*shape: int, parents: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A base and parents that equal it in a third of their entries."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator) / 10
    tuned = []
    for _ in range(parents):
        delta = torch.randn(shape, generator=generator) / 100
        delta *= torch.rand(shape, generator=generator) > 0.3
        tuned.append((base + delta).to(dtype))
    return [base.to(dtype), *tuned]


def deltas_of(base: Tensor, *parents: Tensor) -> list[np.ndarray]:
    return [(p.to(torch.float32) - base.to(torch.float32)).numpy() for p in parents]
