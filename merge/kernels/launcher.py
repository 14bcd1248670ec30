"""Launch kernels: one launch per large tensor, one for many small ones, compiled or eager.

A job is a plan with its tensors. Compiled and eager give the same bits (kernels.py), so the choice
only affects speed. Knows plans and kernels; no files, no models.

Shapes: P parents that take part, N entries, J jobs of a pack.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..blocks import blocks, one_thread
from ..recipe.plans import Consensus, Plan
from ..recipe.recipe import Recipe, plan_tensor
from ..statistics.parent_statistics import TensorStatistics, UncachedStatistics
from .arguments import RANDOM, copy_source, float_rows, int_rows, kernel_variant, make_kernel
from .compiler import Compiler, has_compiler
from .masks import CHUNK, REGION, hashed_places

SMALL = 1 << 13
"""Entries up to which a tensor is packed with others: a launch would cost more than the work."""
PACK = 1 << 20
"""Entries at which a pack is launched, which bounds its workspace."""


@dataclass(frozen=True)
class Job:
    """One tensor to overwrite (``out``, any strides) by a plan, with the tensors it reads.

    ``parents`` are those of the plan, in its order; ``maps`` one per parent if the plan keeps
    "ranked" or "important" entries, else none. All have the shape and the device of ``out``.
    """

    name: str
    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    plan: Plan
    maps: tuple[Tensor, ...] = ()

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """What a kernel is specialised for; jobs of one kind may share a launch."""
        tensors = (self.out, self.base, *self.parents, *self.maps)
        return (
            kernel_variant(self.plan),
            self.out.device,
            tuple([tensor.dtype for tensor in tensors]),
        )

    @cached_property
    def is_random(self) -> bool:
        """Whether masks are random."""
        return isinstance(self.plan, Consensus) and self.plan.keep in RANDOM


def merge_tensors(
    recipe: Recipe,
    name: str,
    base: Tensor,
    parents: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    statistics: TensorStatistics | None = None,
    launcher: "Launcher | None" = None,
) -> Tensor:
    """Merge one tensor into a new one; base and parents are left unchanged.

    Args:
        recipe: Methods, coefficients and mask_seed.
        name: Name of the tensor; determines its layer group and its random masks.
        base: Any shape ``(*S)``, floating point.
        parents: Parent name -> tensor ``(*S)``, any floating dtype, for all parents
            of the recipe or those with a weight.
        dtype: Dtype of the result; that of ``base`` by default.
        statistics: Statistics of this tensor; computed here by default.
        launcher: Launcher to use; eager by default.

    Returns:
        New tensor ``(*S)`` on the device of ``base``.
    """
    statistics = UncachedStatistics(name, base, parents) if statistics is None else statistics
    out = torch.empty_like(base, dtype=dtype, memory_format=torch.contiguous_format)
    plan = plan_tensor(recipe, name, statistics)
    sources = tuple(parents[parent] for parent in plan.parents)
    job = Job(name, out, base, sources, plan, maps_of(plan, statistics, base.device))
    (launcher or Launcher(compile=False)).run([job])
    return out


def maps_of(plan: Plan, statistics: TensorStatistics, device: torch.device) -> tuple[Tensor, ...]:
    """Return the rank maps or importance masks that a plan reads, one per parent; usually none."""
    keep = plan.keep if isinstance(plan, Consensus) else None
    lookup = {"ranked": statistics.ranks, "important": statistics.importance}.get(keep or "")
    return () if lookup is None else tuple(lookup(p).to(device) for p in plan.parents)


class Launcher:
    """Runs jobs.

    Args:
        compile: Whether to compile the kernels of large tensors; without a compiler they run eager,
            which is logged once.
    """

    def __init__(self, compile: bool = False) -> None:
        self._compiler = Compiler() if compile and has_compiler() else None
        self.launches = 0
        """Kernels launched so far."""

    @property
    def is_compiling(self) -> bool:
        """Whether kernels of large tensors are compiled."""
        return self._compiler is not None

    @property
    def compiled(self) -> int:
        """Return the number of kernels compiled so far."""
        return len(self._compiler or ())

    @torch.no_grad()
    def run(self, jobs: Iterable[Job]) -> None:
        """Overwrite the tensor of every job; small ones last, in packs.

        Jobs may come from an iterator that fetches their tensors: a large job is finished before
        the next is requested, small ones are collected until a kind has PACK entries.
        """
        packs: dict[tuple[Any, ...], list[Job]] = {}
        entries: Counter[tuple[Any, ...]] = Counter()
        for job in jobs:
            # A large tensor has its own launch, at once: its sources can be released.
            if job.out.numel() > SMALL:
                self._launch_alone(job)
                continue
            packs.setdefault(job.kind, []).append(job)
            entries[job.kind] += job.out.numel()
            # A full pack is launched early, which bounds the memory for joining it.
            if entries[job.kind] >= PACK:
                del entries[job.kind]
                self._launch_pack(packs.pop(job.kind))
        # The rest, less than a pack of each kind.
        for pack in packs.values():
            self._launch_pack(pack)

    def _launch_alone(self, job: Job) -> None:
        # Base or one parent alone: a copy, which keeps signs of zeros and needs no arithmetic.
        owner = copy_source(job.plan)
        if owner is not None:
            self.launches += 1
            job.out.copy_((job.base, *job.parents)[owner])
            return
        flat = flattened(job)
        # Eager blocks are too small for several threads; a compiled kernel uses all of them.
        if self._compiler is None:
            with one_thread():
                self._launch_eager(job, flat)
        else:
            self._launch_compiled(job, flat, self._compiler)
        # A target with strides was merged beside it.
        if not job.out.is_contiguous():
            job.out.copy_(flat.out.view(job.out.shape))

    def _launch_eager(self, job: Job, flat: "Flat") -> None:
        kernel, device = make_kernel(job.plan), job.out.device
        floats = _row(float_rows(job.plan), np.float32, device)
        # Blocks keep the temporaries of elementwise steps in the cache.
        for run in blocks(flat.out.numel(), device):
            self.launches += 1
            kernel(*flat.cut(run), floats, *random_rows(job, run))

    def _launch_compiled(self, job: Job, flat: "Flat", compiler: Compiler) -> None:
        kernel, device = make_kernel(job.plan), job.out.device
        floats = _row(float_rows(job.plan), np.float32, device)
        # Random masks on a CPU read a table of one chunk; otherwise keys change with the region.
        step = CHUNK if job.is_random and device.type == "cpu" else REGION
        for start in range(0, flat.out.numel(), step):
            self.launches += 1
            run = slice(start, min(start + step, flat.out.numel()))
            arguments = (*flat.cut(run), floats, *random_rows(job, run))
            # Codes of rank maps are compared as floats.
            ranks = bool(job.maps) and job.is_random
            compiler.call(job.kind, kernel, arguments, converts_integers=ranks)

    def _launch_pack(self, pack: Sequence[Job]) -> None:
        first = pack[0]
        # One tensor per role, with the entries of all jobs behind each other.
        outs = [job.out for job in pack]
        sizes = tuple(out.numel() for out in outs)
        joined = _joined(pack)
        device = first.out.device
        # Scalars differ between jobs: one row per job, looked up by the job of each entry.
        floats = _row([float_rows(job.plan) for job in pack], np.float32, device)
        ints = _row([int_rows(job.plan, job.name, 0) for job in pack], np.int32, device)
        owner, places = _places(sizes, device)
        hashed = hashed_places(places) if first.is_random else None
        kernel = make_kernel(first.plan)
        # Eager: packs of every size would need kernels of their own.
        with one_thread():
            for run in blocks(sum(sizes), device):
                self.launches += 1
                of = owner[run]
                rows = (None, None) if hashed is None else (_PerEntry(ints, of), hashed[run])
                kernel(*joined.cut(run), _PerEntry(floats, of), *rows)
        # Back into the targets, in one call.
        pieces = [
            piece.view(out.shape) for piece, out in zip(joined.out.split(sizes), outs, strict=True)
        ]
        torch._foreach_copy_(outs, pieces)  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Flat:
    """Tensors of one launch, each (N,)."""

    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]

    def cut(self, run: slice) -> tuple[Any, ...]:
        """Return the arguments for a block of entries."""
        if run.stop - run.start == self.out.numel():
            return self.out, self.base, list(self.parents), list(self.maps)
        parents = [tensor[run] for tensor in self.parents]
        return self.out[run], self.base[run], parents, [one[run] for one in self.maps]


@dataclass(frozen=True)
class _PerEntry:
    """Rows of numbers, one value per entry: `table` (J, rows), `owner` (N,) in [0, J)."""

    table: Tensor
    owner: Tensor

    def __getitem__(self, row: int) -> Tensor:
        return self.table[:, row][self.owner]


def flattened(job: Job) -> Flat:
    """Return the tensors of a job, flat; `out` is a new one if the target is not contiguous."""
    out = job.out
    if not out.is_contiguous():
        out = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    parents = tuple(tensor.reshape(-1) for tensor in job.parents)
    maps = tuple(one.reshape(-1) for one in job.maps)
    return Flat(out.view(-1), job.base.reshape(-1), parents, maps)


def _joined(pack: Sequence[Job]) -> Flat:
    flats = [flattened(job) for job in pack]
    base = torch.cat([flat.base for flat in flats])
    parents = tuple(map(torch.cat, zip(*(flat.parents for flat in flats), strict=True)))
    maps = tuple(map(torch.cat, zip(*(flat.maps for flat in flats), strict=True)))
    out = torch.empty(base.numel(), dtype=flats[0].out.dtype, device=base.device)
    return Flat(out, base, parents, maps)


@lru_cache(maxsize=64)
def _places(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Per entry of a pack: its job, int64 (N,), and its flat index there, int32 (N,).
    lengths = torch.tensor(sizes, device=device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), lengths)
    starts = lengths.cumsum(0) - lengths
    index = torch.arange(int(sum(sizes)), device=device) - starts[owner]
    return owner, index.to(torch.int32)


def _row(numbers: Sequence[Any], dtype: type, device: torch.device) -> Tensor:
    # Via numpy, which reads a list several times as fast as torch.
    with np.errstate(over="ignore"):  # infinity is detected in the result
        row = torch.from_numpy(np.array(numbers, dtype=dtype))
    return row if device.type == "cpu" else row.to(device, non_blocking=True)


def random_rows(job: Job, run: slice) -> tuple[Tensor | None, Tensor | None]:
    """Return the integer rows and hashed places of a block; None if masks are not random.

    On a CPU a block is part of one chunk and places are read from a table, since Inductor would
    not vectorise them.
    """
    if not job.is_random:
        return None, None
    device = job.out.device
    start, stop = run.start % REGION, run.start % REGION + run.stop - run.start
    if device.type == "cpu":
        ints, hashed = int_rows(job.plan, job.name, run.start), _table()[start % CHUNK :]
        return _row(ints, np.int32, device), hashed[: stop - start]
    ints = _row(int_rows(job.plan, job.name, run.start - start), np.int32, device)
    if start == 0:
        return ints, None  # computed by the kernel
    return ints, hashed_places(torch.arange(start, stop, dtype=torch.int32, device=device))


@lru_cache(maxsize=1)
def _table() -> Tensor:
    return hashed_places(torch.arange(CHUNK, dtype=torch.int32))
