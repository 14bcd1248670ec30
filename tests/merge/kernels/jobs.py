"""Kernel jobs for tests."""

import math
from collections.abc import Callable
from typing import Any

import torch
from heterosis.merge.kernels.launcher import Job, Launcher
from heterosis.merge.recipe.plans import Consensus, Plan

N = (1 << 16) + 77  # large, and no multiple of any vector's width
NAMES = ("a", "b", "c")
KEPT = {
    "band": {"low": (0.02, 0.05, 0.0), "high": (0.2, math.inf, 0.3)},
    "random": {"low": (0.5, 0.0, 0.9), "mask_seed": 3},
    "ranked": {"low": (0.6, 0.9, 0.3), "high": (0.4, 0.2, 0.3), "mask_seed": 3},
    "near": {"low": (0.05, math.inf, 0.001)},
    "common": {"low": (0.004,)},
}


def consensus(keep: str, combine: str, n_parents: int = 2, **changes: Any) -> Consensus:
    """A plan with numbers of every sign and size that its kind looks at."""
    numbers: dict[str, Any] = {"scales": (0.7, -0.4, 1.3), "weights": (0.7, 0.4, 1.0)}
    numbers |= KEPT.get(keep, {}) | changes
    cut = {k: v[:n_parents] if isinstance(v, tuple) else v for k, v in numbers.items()}
    return Consensus(NAMES[:n_parents], keep, combine, factor=0.8, **cut)


def job(plan: Plan, dtype: torch.dtype, n: int = N, seed: int = 0) -> Job:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator)
    parents = [base + 0.1 * torch.randn(n, generator=generator) for _ in plan.parents]
    for parent in parents:
        parent[::7] = base[::7]
    codes = [torch.randint(0, 256, (n,), generator=generator) for _ in plan.parents]
    has_maps = isinstance(plan, Consensus) and plan.keep in ("ranked", "important")
    maps = tuple(code.to(torch.uint8) for code in codes) if has_maps else ()
    out = torch.full((n,), math.nan, dtype=dtype)
    sources = tuple(parent.to(dtype) for parent in parents)
    return Job(f"tensor.{seed}", out, base.to(dtype), sources, plan, maps)


def written(launcher: Launcher, make: Callable[[], Job]) -> torch.Tensor:
    made = make()
    launcher.run([made])
    return made.out
