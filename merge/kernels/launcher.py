"""Launches: one per large tensor, one for many small ones; compiled where that pays, else eager.

A job is a plan and the tensors it is carried out on. Compiled and eager give the same bits
(kernels.py), so the choice is one of speed alone. Knows plans and kernels; no files, no models.

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
from .arguments import DRAWN, copy_source, float_rows, int_rows, kernel_variant, make_kernel
from .compiler import Compiler, has_compiler
from .masks import CHUNK, REGION, hashed_places

SMALL = 1 << 13
"""Entries of a tensor that is packed with others: below it a launch costs more than the work."""
PACK = 1 << 20
"""Entries at which a pack is launched: bounds its workspace."""


@dataclass(frozen=True)
class Job:
    """One tensor to overwrite, ``out`` of any strides, and what the plan is carried out on.

    ``parents`` are those of the plan, in its order; ``maps`` one per parent where the plan keeps
    "ranked" or "important" entries, else none. All have the shape of ``out`` and lie on its device.
    """

    name: str
    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    plan: Plan
    maps: tuple[Tensor, ...] = ()

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """What a kernel is made for; jobs of one kind may share a launch."""
        tensors = (self.out, self.base, *self.parents, *self.maps)
        return (
            kernel_variant(self.plan),
            self.out.device,
            tuple([tensor.dtype for tensor in tensors]),
        )

    @cached_property
    def draws(self) -> bool:
        """Whether masks are drawn."""
        return isinstance(self.plan, Consensus) and self.plan.keep in DRAWN


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
        recipe: Gives methods, coefficients and mask_seed.
        name: Name of the tensor; decides its layer group and its random masks.
        base: Any shape ``(*S)``, floating point.
        parents: Parent name -> tensor ``(*S)``, any floating dtype, for all of the recipe's
            or those with a weight.
        dtype: Of the result; that of ``base`` by default.
        statistics: Of this tensor; computed here by default.
        launcher: Who carries it out; eager by default.

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
    """The maps that a plan looks at, one per parent, on a device; usually none."""
    keep = plan.keep if isinstance(plan, Consensus) else None
    lookup = {"ranked": statistics.ranks, "important": statistics.importance}.get(keep or "")
    return () if lookup is None else tuple(lookup(p).to(device) for p in plan.parents)


class Launcher:
    """Carries out jobs.

    Args:
        compile: Whether large tensors go through `torch.compile`; without a compiler they do not,
            which is said in the log once.
    """

    def __init__(self, compile: bool = False) -> None:
        self._compiler = Compiler() if compile and has_compiler() else None
        self.launches = 0
        """Kernels launched so far."""

    @property
    def is_compiling(self) -> bool:
        """Whether large tensors go through compiled kernels."""
        return self._compiler is not None

    @property
    def compiled(self) -> int:
        """Number of kernels compiled so far."""
        return len(self._compiler or ())

    @torch.no_grad()
    def run(self, jobs: Iterable[Job]) -> None:
        """Overwrite every job's tensor; small ones last, together.

        Jobs may come from an iterator that fetches their tensors: a large one is done before the
        next is asked for, small ones are kept until PACK entries of a kind are there.
        """
        packs: dict[tuple[Any, ...], list[Job]] = {}
        held: Counter[tuple[Any, ...]] = Counter()  # entries
        for job in jobs:
            if job.out.numel() > SMALL:
                self._launch_alone(job)
                continue
            packs.setdefault(job.kind, []).append(job)
            held[job.kind] += job.out.numel()
            if held[job.kind] >= PACK:
                del held[job.kind]
                self._launch_pack(packs.pop(job.kind))
        for pack in packs.values():
            self._launch_pack(pack)

    def _launch_alone(self, job: Job) -> None:
        owner = copy_source(job.plan)
        if owner is not None:
            self.launches += 1
            job.out.copy_((job.base, *job.parents)[owner])
            return
        flat = _flattened(job)
        if self._compiler is None:
            with one_thread():
                self._launch_eager(job, flat)
        else:
            self._launch_compiled(job, flat, self._compiler)
        if not job.out.is_contiguous():
            job.out.copy_(flat.out.view(job.out.shape))

    def _launch_eager(self, job: Job, flat: "_Flat") -> None:
        kernel, device = make_kernel(job.plan), job.out.device
        floats = _row(float_rows(job.plan), np.float32, device)
        for run in blocks(flat.n, device):
            self.launches += 1
            kernel(*flat.cut(run), floats, *_drawn(job, run))

    def _launch_compiled(self, job: Job, flat: "_Flat", compiler: Compiler) -> None:
        kernel, device = make_kernel(job.plan), job.out.device
        floats = _row(float_rows(job.plan), np.float32, device)
        step = CHUNK if job.draws and device.type == "cpu" else REGION
        for start in range(0, flat.n, step):
            self.launches += 1
            run = slice(start, min(start + step, flat.n))
            arguments = (*flat.cut(run), floats, *_drawn(job, run))
            ranks = bool(job.maps) and job.draws
            compiler.call(job.kind, kernel, arguments, converts_integers=ranks)

    def _launch_pack(self, pack: Sequence[Job]) -> None:
        first = pack[0]
        outs = [job.out for job in pack]
        sizes = tuple(out.numel() for out in outs)
        joined = _joined(pack)
        device = first.out.device
        floats = _row([float_rows(job.plan) for job in pack], np.float32, device)
        ints = _row([int_rows(job.plan, job.name, 0) for job in pack], np.int32, device)
        owner, places = _places(sizes, device)
        hashed = hashed_places(places) if first.draws else None
        kernel = make_kernel(first.plan)
        with one_thread():
            for run in blocks(sum(sizes), device):
                self.launches += 1
                of = owner[run]
                drawn = (None, None) if hashed is None else (_Spread(ints, of), hashed[run])
                kernel(*joined.cut(run), _Spread(floats, of), *drawn)
        pieces = [
            piece.view(out.shape) for piece, out in zip(joined.out.split(sizes), outs, strict=True)
        ]
        torch._foreach_copy_(outs, pieces)  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class _Flat:
    """Tensors of one launch, each (N,)."""

    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """Number of entries N."""
        return self.out.numel()

    def cut(self, run: slice) -> tuple[Any, ...]:
        """The same for a run of the entries."""
        if run.stop - run.start == self.n:
            return self.out, self.base, list(self.parents), list(self.maps)
        parents = [tensor[run] for tensor in self.parents]
        return self.out[run], self.base[run], parents, [one[run] for one in self.maps]


@dataclass(frozen=True)
class _Spread:
    """Rows of numbers, one value per entry: `table` (J, rows), `owner` (N,) in [0, J)."""

    table: Tensor
    owner: Tensor

    def __getitem__(self, row: int) -> Tensor:
        return self.table[:, row][self.owner]


def _flattened(job: Job) -> _Flat:
    # Where the target is a slice of a larger weight, `out` is a tensor beside it.
    is_whole = job.out.is_contiguous()
    out = (
        job.out
        if is_whole
        else torch.empty(job.out.shape, dtype=job.out.dtype, device=job.out.device)
    )
    parents = tuple(tensor.reshape(-1) for tensor in job.parents)
    maps = tuple(one.reshape(-1) for one in job.maps)
    return _Flat(out.view(-1), job.base.reshape(-1), parents, maps)


def _joined(pack: Sequence[Job]) -> _Flat:
    flats = [_flattened(job) for job in pack]
    base = torch.cat([flat.base for flat in flats])
    parents = tuple(map(torch.cat, zip(*(flat.parents for flat in flats), strict=True)))
    maps = tuple(map(torch.cat, zip(*(flat.maps for flat in flats), strict=True)))
    out = torch.empty(base.numel(), dtype=flats[0].out.dtype, device=base.device)
    return _Flat(out, base, parents, maps)


@lru_cache(maxsize=64)
def _places(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Of each entry of a pack: its job, int64 (N,), and its flat index in it, int32 (N,).
    lengths = torch.tensor(sizes, device=device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), lengths)
    starts = lengths.cumsum(0) - lengths
    index = torch.arange(int(sum(sizes)), device=device) - starts[owner]
    return owner, index.to(torch.int32)


def _row(numbers: Sequence[Any], dtype: type, device: torch.device) -> Tensor:
    # Through numpy, which reads a list several times as fast as torch does.
    with np.errstate(over="ignore"):  # infinity is found in the result
        row = torch.from_numpy(np.array(numbers, dtype=dtype))
    return row if device.type == "cpu" else row.to(device, non_blocking=True)


def _drawn(job: Job, run: slice) -> tuple[Tensor | None, Tensor | None]:
    # Rows of integers of a run and its hashed places, where masks are drawn. On a CPU a run lies in
    # one chunk and places are read from a table, which Inductor would make one by one.
    if not job.draws:
        return None, None
    device = job.out.device
    start, stop = run.start % REGION, run.start % REGION + run.stop - run.start
    if device.type == "cpu":
        ints, hashed = int_rows(job.plan, job.name, run.start), _table()[start % CHUNK :]
        return _row(ints, np.int32, device), hashed[: stop - start]
    ints = _row(int_rows(job.plan, job.name, run.start - start), np.int32, device)
    if start == 0:
        return ints, None  # made by the kernel
    return ints, hashed_places(torch.arange(start, stop, dtype=torch.int32, device=device))


@lru_cache(maxsize=1)
def _table() -> Tensor:
    return hashed_places(torch.arange(CHUNK, dtype=torch.int32))
