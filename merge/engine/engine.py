"""The merge engine: one resident model whose weights each recipe overwrites, in one pass.

methods.py makes plans, launcher.py carries them out, on tensors from placement.py, into the views
of resident.py. A tensor is left unchanged if its plan equals that of the last load. Knows nothing
of search.

Shapes: P parents.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..kernels.launcher import Job, Launcher, maps_of
from ..parents.parent_set import BASE, ParentSet
from ..recipe.plans import Combination, Plan
from ..recipe.recipe import Recipe, plan_tensor
from ..statistics.cache import default_folder
from ..statistics.parent_statistics import ParentStatistics, TensorStatistics
from .devices import DeviceMap
from .placement import Sources, plan_memory
from .resident import build_resident

__all__ = ["MergeEngine", "MergeFailure"]
WORTH_COMPILING = 20_000_000
"""Entries of a model from which `compile="auto"` compiles: below, compilation takes longer than it
saves in a search (docs/experiments.md)."""


class MergeFailure(RuntimeError):  # noqa: N818 - a failed candidate, not a bug
    """A recipe whose merged weights are not finite; the message names the tensor."""


class MergeEngine:
    """A resident model and the parents that recipes merge into it.

    Attributes:
        model: The resident model, always the same object.
        targets: File tensor name -> its view of the resident model's weights.
        parents: The base and its fine-tunes.
        device: Device of the model, or of its first tensor if there are several devices.
        memory_plan: Memory use by place.
        statistics: Statistics of the parents, computed once.
        sources: Tensors of the base and the parents, on the device.
    """

    def __init__(
        self,
        parents: ParentSet,
        *,
        dtype: str | torch.dtype,
        device: str | torch.device = "cpu",
        placement: str = "auto",
        compile: str | bool = "auto",
        device_map: DeviceMap | None = None,
        statistics_folder: Path | None = None,
        needs: Collection[str] = (),
    ) -> None:
        """Build the resident model from the base.

        Args:
            parents: The models that recipes will merge.
            dtype: Dtype of the resident model: float32, bfloat16 or float16.
            device: Device of the resident model.
            placement: Placement of base and parents: auto, device, pinned or mapped.
            compile: Whether to compile the kernels of large tensors: True, False, or "auto", which
                is True for models of WORTH_COMPILING entries. The bits are the same.
            device_map: Module name -> device, or "auto": spreads the model over devices.
            statistics_folder: Folder of cached statistics; the user's cache by default.
            needs: Statistics that the methods of the search use (`Method.needs`), for the memory
                plan.

        Raises:
            ValueError: Unknown dtype, device or placement, or too little memory.
            ParentError: A base whose tensors are not those of its architecture, or NaN.
        """
        self.parents = parents
        entries = sum(info.n_entries for info in parents.tensors.values() if info.is_floating)
        is_compiling = entries >= WORTH_COMPILING if compile == "auto" else bool(compile)
        self.memory_plan = plan_memory(
            parents,
            dtype=dtype,
            device=device,
            device_map=device_map,
            placement=placement,
            needs=needs,
            is_compiling=is_compiling,
        )
        resident = build_resident(parents, dtype=dtype, device=device, device_map=device_map)
        self.model: PreTrainedModel = resident.model
        self.targets: Mapping[str, Tensor] = resident.targets
        self.device = next(iter(self.targets.values())).device
        self.launcher = Launcher(compile=is_compiling)
        self.statistics = ParentStatistics(
            parents, statistics_folder or default_folder(), self.device
        )
        self.sources = Sources(parents, self.memory_plan.placement, self.targets)
        self._loaded: dict[str, Plan] = {}  # tensor -> the plan of its weights

    @torch.no_grad()
    def load(self, recipe: Recipe) -> PreTrainedModel:
        """Overwrite the resident model's weights with a recipe's.

        After a failure the model is a mixture; the next successful load corrects every tensor.

        Args:
            recipe: Its parents and layer groups must be those of the parent set.

        Returns:
            The resident model, always the same object.

        Raises:
            ValueError: If the recipe does not fit the parents.
            MergeFailure: If a merged tensor holds NaN or infinity in the resident dtype.
        """
        check_fit(recipe, self.parents)
        plans = {name: plan_tensor(recipe, name, self.statistics.of(name)) for name in self.targets}
        changed = {name: plan for name, plan in plans.items() if self._loaded.get(name) != plan}
        for name in changed:
            self._loaded.pop(name, None)
        self.order(changed)
        self.launcher.run(self._jobs(changed))
        self._check_finite(recipe, changed)
        self._loaded |= changed
        return self.model

    def order(self, plans: Mapping[str, Plan]) -> None:
        """Announce the plans whose jobs are next, in this order; streamed tensors start now."""
        self.sources.order(self._wanted(plans))

    def _wanted(self, plans: Mapping[str, Plan]) -> Iterator[tuple[str, str, torch.device]]:
        for name, plan in plans.items():
            for owner in (BASE, *plan.parents):
                yield owner, name, self.targets[name].device

    def _jobs(self, plans: Mapping[str, Plan]) -> Iterator[Job]:
        for name, plan in plans.items():
            yield self.job(name, plan, self.targets[name])

    def job(self, name: str, plan: Plan, out: Tensor) -> Job:
        """Return the job that overwrites ``out`` with a tensor's plan; fetches what it reads."""
        base, *parents = (
            self.sources.fetch(owner, name, out.device) for owner in (BASE, *plan.parents)
        )
        maps = maps_of(plan, self.statistics.of(name), out.device)
        return Job(name, out, base, tuple(parents), plan, maps)

    def _check_finite(self, recipe: Recipe, plans: Mapping[str, Plan]) -> None:
        # Weights are only checked if the numbers of the plan do not bound them.
        suspects = [
            name
            for name, plan in plans.items()
            if not _bound(plan, self.statistics.of(name)) < _largest(self.targets[name].dtype)
        ]
        for name in suspects:
            if not _is_finite(self.targets[name]):
                self._loaded |= {n: p for n, p in plans.items() if n not in suspects}
                raise MergeFailure(
                    f"merged tensor {name} holds NaN or infinity in {self.model.dtype} (recipe "
                    f"{recipe.digest[:12]}, layer group {recipe.grouping.group(name).name}); use "
                    f"smaller weights or lambda, or a resident model in float32"
                )


def _largest(dtype: torch.dtype) -> float:
    # Kernels multiply votes by up to 2**96 and divide by it again.
    return min(torch.finfo(dtype).max, 2.0**31)


def _bound(plan: Plan, statistics: TensorStatistics) -> float:
    # Upper bound on merged entries and votes, with rounding. |delta| <= |base| + |parent|; a mean
    # of votes that agree is at most the sum of votes over the smallest weight.
    base = statistics.largest(BASE)
    sizes = [statistics.largest(parent) for parent in plan.parents]
    if isinstance(plan, Combination):
        terms = [abs(c) * size for c, size in zip(plan.coefficients, sizes, strict=True)]
        return 1.01 * (abs(plan.base_share) * base + sum(terms))
    votes = sum(abs(s) * (base + size) for s, size in zip(plan.scales, sizes, strict=True))
    if plan.keep == "ranked":
        votes /= 1.0 - max(plan.low)
    divisor = min(plan.weights) if plan.combine == "elect_mean" else 1.0
    return 1.01 * max(base + abs(plan.factor) * votes / divisor, votes)


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # NaN propagates through both


def check_fit(recipe: Recipe, parents: ParentSet) -> None:
    """Refuse a recipe that does not name the parents and layer groups of a parent set.

    Raises:
        ValueError: Naming what is missing or unknown.
    """
    if set(recipe.parents) != set(parents.names):
        raise ValueError(
            f"a recipe must name the opened parents, got {', '.join(recipe.parents)} for "
            f"{', '.join(parents.names)}; give a parent weight 0 to leave it out"
        )
    groups = parents.groups(recipe.grouping)
    missing = [group for group in groups if group not in recipe.coefficients]
    extra = [group for group in recipe.coefficients if group not in groups]
    if missing or extra:
        detail = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise ValueError(
            f"a recipe must have coefficients for each of the {len(groups)} layer groups "
            f"of the model and no others, got {len(recipe.coefficients)}: {detail}; build it from "
            f"the parent set's `groups`"
        )
