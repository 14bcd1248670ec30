"""Launches: one per large tensor, one for many small ones; compiled where that pays, else eager.

A job is a plan and the tensors it is carried out on. Compiled and eager give the same bits
(kernels.py), so the choice is one of speed alone. Knows plans and kernels; no files, no models.

Shapes: P parents that take part, N entries, J jobs of a pack.
"""

import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from .blocks import blocks, one_thread
from .facts import FreshFacts, TensorFacts
from .kernels import (
    UNIT,
    Scalars,
    rank_window,
    write_combination,
    write_consensus,
)
from .masks import stream_keys, threshold
from .methods import plan_tensor
from .plans import Combination, Consensus, Plan
from .recipe import Recipe

log = logging.getLogger(__name__)

SMALL = 1 << 16
"""Entries of a tensor that is packed with others: below it a launch costs more than the work."""
PACK = 1 << 20
"""Entries at which a pack is launched: bounds its workspace."""
CHUNK = 1 << 30
"""Most entries of one launch: indices stay below 2**31."""


@dataclass(frozen=True)
class Job:
    """One tensor to overwrite, ``out`` of any strides, and what the plan is carried out on.

    ``parents`` are those of the plan, in its order; ``planes`` one per parent where the plan keeps
    "ranked" or "chosen" entries, else none. All have the shape of ``out`` and lie on its device.
    """

    name: str
    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    plan: Plan
    planes: tuple[Tensor, ...] = ()

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a kernel is made for; jobs of one kind may share a launch."""
        plan = self.plan
        if isinstance(plan, Combination):
            words: tuple[Any, ...] = (plan.base_share != 0.0,)
        else:
            words = (plan.keep, plan.combine, bool(plan.shares), _has_high(plan))
        tensors = (self.out, self.base, *self.parents, *self.planes)
        return (*words, str(self.out.device), *(tensor.dtype for tensor in tensors))


def merge_tensors(
    recipe: Recipe,
    name: str,
    base: Tensor,
    parents: Mapping[str, Tensor],
    *,
    facts: TensorFacts | None = None,
    launcher: "Launcher | None" = None,
) -> Tensor:
    """Merge one tensor into a new one; base and parents are left unchanged.

    Args:
        recipe: Gives methods, coefficients and mask_seed.
        name: Name of the tensor; decides its layer group and its random masks.
        base: Any shape ``(*S)``, floating point.
        parents: Parent name -> tensor ``(*S)``, any floating dtype, for all of the recipe's.
        facts: Of this tensor; computed here by default.
        launcher: Who carries it out; eager by default.

    Returns:
        New tensor ``(*S)`` with the dtype and device of ``base``.
    """
    facts = FreshFacts(name, base, parents) if facts is None else facts
    out = torch.empty_like(base, memory_format=torch.contiguous_format)
    plan = plan_tensor(recipe, name, facts)
    sources = tuple(parents[parent] for parent in plan.parents)
    job = Job(name, out, base, sources, plan, planes_of(plan, facts, base.device))
    (launcher or Launcher(compile=False)).run([job])
    return out


def planes_of(plan: Plan, facts: TensorFacts, device: torch.device) -> tuple[Tensor, ...]:
    """The planes that a plan looks at, one per parent, on a device; usually none."""
    keep = plan.keep if isinstance(plan, Consensus) else None
    plane = {"ranked": facts.ranks, "chosen": facts.chosen}.get(keep or "")
    return () if plane is None else tuple(plane(p).to(device) for p in plan.parents)


class Launcher:
    """Carries out jobs.

    Args:
        compile: Whether large tensors go through `torch.compile`; without a compiler they do not,
            which is said in the log once.
    """

    def __init__(self, compile: bool = False) -> None:
        self.is_compiling = compile and _has_compiler()
        self._compiled: dict[tuple[Any, ...], Callable[..., None]] = {}
        self.launches = 0
        """Kernels launched so far."""

    @torch.no_grad()
    def run(self, jobs: Iterable[Job]) -> None:
        """Overwrite every job's tensor; small ones last, together.

        Jobs may come from an iterator that fetches their tensors: a large one is done before the
        next is asked for, small ones are kept until PACK entries of a kind are there.
        """
        packs: dict[tuple[Any, ...], list[Job]] = {}
        for job in jobs:
            if job.out.numel() > SMALL:
                self._launch_alone(job)
                continue
            pack = packs.setdefault(job.kind, [])
            pack.append(job)
            if sum(j.out.numel() for j in pack) >= PACK:
                self._launch_pack(packs.pop(job.kind))
        for pack in packs.values():
            self._launch_pack(pack)

    def _launch_alone(self, job: Job) -> None:
        flat = _flattened(job)
        n = job.out.numel()
        if self.is_compiling:
            for start in range(0, n, CHUNK):
                self._launch_compiled(job, flat, slice(start, min(start + CHUNK, n)))
        else:
            with one_thread():
                for run in blocks(n, job.out.device):
                    self._launch_eager(job, flat, run)
        if not job.out.is_contiguous():
            job.out.copy_(flat.out.view(job.out.shape))

    def _launch_eager(self, job: Job, flat: "_Flat", run: slice) -> None:
        self.launches += 1
        floats, ints = _scalars(job, run.start)
        _kernel(job.plan)(*flat.cut(run), floats, ints, None)

    def _launch_compiled(self, job: Job, flat: "_Flat", run: slice) -> None:
        key = (*job.kind, torch.get_num_threads())
        arguments = (*flat.cut(run), *_scalars(job, run.start), None)
        self.launches += 1
        if key in self._compiled:
            self._compiled[key](*arguments)
        else:
            self._compiled[key] = self._first_call(_kernel(job.plan), arguments)

    def _first_call(
        self, kernel: Callable[..., None], arguments: tuple[Any, ...]
    ) -> Callable[..., None]:
        # Compiles, runs, and returns what to call from now on: the kernel itself where that fails.
        compiled = _compile(kernel)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about its own habits
                compiled(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            log.warning("a kernel cannot be compiled (%s): it runs eager, but slower", reason)
            kernel(*arguments)
            return kernel
        return compiled

    def _launch_pack(self, pack: Sequence[Job]) -> None:
        first = pack[0]
        outs = [job.out for job in pack]
        sizes = tuple(out.numel() for out in outs)
        joined = _joined(pack)
        rows = [_numbers(job, 0) for job in pack]
        device = first.out.device
        floats = torch.tensor([row[0] for row in rows], dtype=torch.float32, device=device)
        ints = torch.tensor([row[1] for row in rows], dtype=torch.int32, device=device)
        owner, index = _places(sizes, device)
        kernel = _kernel(first.plan)
        with one_thread():
            for run in blocks(sum(sizes), device):
                self.launches += 1
                of = owner[run]
                kernel(*joined.cut(run), _Spread(floats, of), _Spread(ints, of), index[run])
        pieces = [
            piece.view(out.shape) for piece, out in zip(joined.out.split(sizes), outs, strict=True)
        ]
        torch._foreach_copy_(outs, pieces)


@dataclass(frozen=True)
class _Flat:
    """Tensors of one launch, each (N,)."""

    out: Tensor
    base: Tensor
    parents: tuple[Tensor, ...]
    planes: tuple[Tensor, ...]

    def cut(self, run: slice) -> tuple[Any, ...]:
        """The same for a run of the entries."""
        parents = [tensor[run] for tensor in self.parents]
        return self.out[run], self.base[run], parents, [plane[run] for plane in self.planes]


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
    planes = tuple(plane.reshape(-1) for plane in job.planes)
    return _Flat(out.view(-1), job.base.reshape(-1), parents, planes)


def _joined(pack: Sequence[Job]) -> _Flat:
    flats = [_flattened(job) for job in pack]
    base = torch.cat([flat.base for flat in flats])
    parents = tuple(map(torch.cat, zip(*(flat.parents for flat in flats), strict=True)))
    planes = tuple(map(torch.cat, zip(*(flat.planes for flat in flats), strict=True)))
    out = torch.empty(base.numel(), dtype=flats[0].out.dtype, device=base.device)
    return _Flat(out, base, parents, planes)


@lru_cache(maxsize=64)
def _places(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Of each entry of a pack: its job, int64 (N,), and its flat index in it, int32 (N,).
    lengths = torch.tensor(sizes, device=device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), lengths)
    starts = lengths.cumsum(0) - lengths
    index = torch.arange(int(sum(sizes)), device=device) - starts[owner]
    return owner, index.to(torch.int32)


def _kernel(plan: Plan) -> Callable[..., None]:
    # The kernel of a plan's kind: (out, base, parents, planes, floats, ints, index).
    if isinstance(plan, Combination):
        has_base = plan.base_share != 0.0

        def combination(
            out: Tensor,
            base: Tensor,
            parents: list[Tensor],
            planes: list[Tensor],  # noqa: ARG001 - both kernels are called alike
            floats: Scalars,
            ints: Scalars,  # noqa: ARG001
            index: Tensor | None,  # noqa: ARG001
        ) -> None:
            write_combination(out, base if has_base else None, parents, floats)

        return combination
    words = plan.keep, plan.combine, bool(plan.shares), _has_high(plan)

    def consensus(
        out: Tensor,
        base: Tensor,
        parents: list[Tensor],
        planes: list[Tensor],
        floats: Scalars,
        ints: Scalars,
        index: Tensor | None,
    ) -> None:
        write_consensus(out, base, parents, planes, floats, ints, index, *words)

    return consensus


def _has_high(plan: Consensus) -> bool:
    return plan.keep == "band" and min(plan.high) < math.inf


def _scalars(job: Job, start: int) -> tuple[Tensor, Tensor]:
    floats, ints = _numbers(job, start)
    device = job.out.device
    return (
        torch.tensor(floats, dtype=torch.float32, device=device),
        torch.tensor(ints, dtype=torch.int32, device=device),
    )


def _numbers(job: Job, start: int) -> tuple[list[float], list[int]]:
    # Rows of floats and ints as kernels.py lays them out, for entries from `start` on.
    plan = job.plan
    if isinstance(plan, Combination):
        return [plan.base_share, *plan.coefficients], []
    return list(_floats(plan)), list(_ints(plan, job.name, start))


def _floats(plan: Consensus) -> Iterator[float]:
    zeros = (0.0,) * len(plan.parents)
    weights = plan.weights or zeros
    is_pair = plan.combine == "elect_mean" and len(weights) == 2 and not plan.shares
    yield from (plan.factor, 1.0 / sum(weights) if is_pair else 0.0)
    low, high = plan.low or zeros, plan.high or zeros
    if plan.keep == "common":
        low = low[:1] * len(zeros)
    for i, scale in enumerate(plan.scales):
        first, last = low[i], high[i]
        if plan.keep == "ranked":
            scale, (first, last) = scale * UNIT, rank_window(first, last)
        weight = 1.0 / weights[i] if is_pair else weights[i]
        yield from (scale, weight, first, last, (plan.shares or zeros)[i])


def _ints(plan: Consensus, name: str, start: int) -> Iterator[int]:
    high, place = divmod(start, 1 << 32)
    yield place - (1 << 32 if place >= 1 << 31 else 0)
    for i, parent in enumerate(plan.parents):
        if plan.mask_seed is None:
            yield from (0, 0, 0)
            continue
        rate = plan.low[i] if plan.keep == "random" else 0.0
        yield from (*stream_keys(plan.mask_seed, name, parent, high), threshold(rate))


def _compile(kernel: Callable[..., None]) -> Callable[..., None]:
    # Guards are left out (they cost more than a small launch): one callable per kind of job.
    return torch.compile(
        kernel,
        dynamic=True,
        fullgraph=True,
        options={"guard_filter_fn": lambda guards: [False for _ in guards]},
    )


@lru_cache(maxsize=1)
def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        found = False
    if not found:
        log.warning("no C++ compiler found: kernels run eager, with the same bits but slower")
    return found
