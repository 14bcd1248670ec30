"""Placement of base and parents during a search, and the memory that it takes.

Placements are rows of a table: on the device, in pinned host memory streamed to it, or memory-
mapped from disk. A plan is made before anything large is built; the process keeps to it within 5 %
(see `MemoryPlan`). Knows no recipes and no methods.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..blocks import GPU_BLOCK
from ..parents.checkpoint import LowRank
from ..parents.parent_set import BASE, ParentSet
from ..recipe.groups import layer_group
from .devices import DeviceMap
from .memory import Tidy, device_free, give_back, process_bytes
from .resident import Outline, outline
from .streaming import Stream, Wanted, held_bytes, layer_bytes, stored

__all__ = ["PLACEMENTS", "MemoryPlan", "Place", "Sources", "plan_memory"]
PLACEMENTS = {
    "device": "base and parents are held on the device",
    "pinned": "base and parents are held in pinned host memory and streamed to the device",
    "mapped": "base and parents are memory-mapped from disk",
}
HEADROOM = 0.1
"""Share of an accelerator's free memory that "auto" reserves for scoring: the activations of a
batch, which the scorer makes smaller when memory runs out."""
COMPILER = 75_000_000
"""Bytes that torch.compile keeps: Inductor's modules and the first kernel 66 MB, two more
kernels 12 MB (measured on a CPU, torch 2.13); Triton's share on a GPU has not been measured."""
CPU_WORKSPACE = 12_000_000
"""Bytes that merging takes on a CPU, for any model: blocks, packs, and what `Tidy` leaves in the
heap (measured, eager)."""
GPU_PACK = 64 << 20
"""Bytes of a pack of small tensors on an accelerator: 2**20 entries, some 16 numbers each."""
GPU_TEMPORARIES = 8
"""Simultaneous temporaries of one block in eager kernels."""
STATISTICS = dict.fromkeys(("gram", "magnitudes", "variances", "importance"), 40 << 20) | {
    "ranks": 50 << 20
}
"""Bytes per thread while a kind of statistics is computed, once (quantiles.py, maps.py)."""
MAPS = frozenset({"ranks", "importance"})
"""Statistics with one byte per entry and parent."""
TIDY_EVERY = 1 << 22
"""Entries of the base that are served between two checks of the heap."""
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Bytes at one place: free now, held by the search, held for a moment."""

    free: int
    now: int
    """Bytes of the process before the search: libraries, compiled kernels, tokenised tasks."""
    held: Mapping[str, int]
    """Purpose -> bytes held from the build on."""
    passing: Mapping[str, int]
    """Purpose -> bytes held for a moment, one at a time."""

    @property
    def needed(self) -> int:
        """Return the bytes needed at the peak, in addition to those in use now."""
        return sum(self.held.values()) + max(self.passing.values(), default=0)

    @property
    def peak(self) -> int:
        """Return the bytes of the process at the peak."""
        return self.now + self.needed


@dataclass(frozen=True)
class MemoryPlan:
    """Memory use of a search by place, while it builds the resident model and loads recipes.

    The peak of the host is anonymous memory (`memory.process_bytes`) of this process alone. File
    pages that are mapped for reading (``mapped``: safetensors, cached statistics) are separate: the
    kernel drops them when memory is short, which only costs speed. The plan does not include the
    memory of scoring.
    """

    placement: str
    places: Mapping[torch.device, Place]
    """The host ("cpu") and each device of the resident model."""
    mapped: int
    """Bytes of files that are read by memory map at every load."""

    def lines(self) -> list[str]:
        """Return the plan as text, one line per place, sizes in MB (10**6 bytes)."""
        lines = [f"placement {self.placement}: {PLACEMENTS[self.placement]}"]
        for device, place in self.places.items():
            parts = [f"{_mb(size)} {what}" for what, size in _parts(place) if size]
            name = "host memory" if device == HOST else str(device)
            lines.append(
                f"{name}: {_mb(place.peak)} at the peak ({', '.join(parts)}); {_mb(place.free)} "
                f"free now"
            )
        if self.mapped:
            lines.append(f"mapped files: {_mb(self.mapped)}, kept in memory while there is room")
        return lines

    def shortage(self, headroom: float = 0.0) -> torch.device | None:
        """Return the first place where the plan does not fit, or None.

        Args:
            headroom: Share of an accelerator's free memory that must stay free, in ``[0, 1)``.
        """
        for device, place in self.places.items():
            share = 0.0 if device == HOST else headroom
            if place.needed > place.free * (1.0 - share):
                return device
        return None


def plan_memory(
    parents: ParentSet,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device = "cpu",
    device_map: DeviceMap | None = None,
    placement: str = "auto",
    needs: Collection[str] = (),
    is_compiling: bool = False,
    are_statistics_on_disk: bool = True,
) -> MemoryPlan:
    """Measure free memory, plan the use of a search, and choose the placement of base and parents.

    Args:
        parents: The base and its fine-tunes.
        dtype: Dtype of the resident model.
        device: Device of the resident model.
        device_map: Module name -> device, or "auto", instead of ``device``.
        placement: "auto", or one of `PLACEMENTS`, which is used or refused.
        needs: Statistics that the methods of the search use (`Method.needs` of all).
        is_compiling: Whether kernels are compiled.
        are_statistics_on_disk: Whether statistics are memory-mapped from the cache.

    Raises:
        ValueError: Unknown placement or device, or too little memory for the search; with the
            figures.
        ParentError: A base that cannot be built (`resident.outline`).
    """
    if placement not in ("auto", *PLACEMENTS):
        raise ValueError(
            f"`placement` must be one of auto, {', '.join(PLACEMENTS)}, got {placement!r}"
        )
    shape = outline(parents, dtype=dtype, device=device, device_map=device_map)
    give_back()  # freed memory would count as used
    sizes = _Sizes(parents, shape, frozenset(needs), is_compiling, are_statistics_on_disk)
    is_host = set(shape.targets.values()) == {HOST}
    if placement == "pinned" and is_host:
        raise ValueError(
            "`placement: pinned` streams base and parents to an accelerator, the resident model "
            "is on the cpu; use mapped or device"
        )
    options = [placement] if placement != "auto" else ["mapped"] if is_host else list(PLACEMENTS)
    plans = [sizes.plan(option) for option in options]
    headroom = HEADROOM if placement == "auto" else 0.0
    for plan in plans:
        if plan.shortage(headroom) is None:
            return plan
    return _least(plans)


def _least(plans: list[MemoryPlan]) -> MemoryPlan:
    # The smallest plan without headroom; refused with its figures if it does not fit either.
    plan = plans[-1]
    short = plan.shortage()
    if short is None:
        return plan
    place = plan.places[short]
    parts = ", ".join(f"{_mb(size)} {what}" for what, size in _parts(place)[1:] if size)
    raise ValueError(
        f"a search must fit into memory, with placement {plan.placement} it takes "
        f"{_mb(place.needed)} on {short} ({parts}) and {_mb(place.free)} are free; use a smaller "
        f"dtype or model, another placement, or a `device_map` over more devices"
    )


def _parts(place: Place) -> list[tuple[str, int]]:
    largest = sorted(place.passing.items(), key=lambda item: -item[1])[:1]
    return [("in use now", place.now), *place.held.items(), *largest]


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


class _Sizes:
    """Sizes of base and parents by tensor, from which plans are made."""

    def __init__(
        self,
        parents: ParentSet,
        shape: Outline,
        needs: frozenset[str],
        is_compiling: bool,
        are_statistics_on_disk: bool,
    ) -> None:
        self._shape, self._is_compiling = shape, is_compiling
        owners = (BASE, *parents.names)

        def summed(size: Callable[[ParentSet, str, str], int]) -> dict[str, int]:
            return {n: sum(size(parents, owner, n) for owner in owners) for n in shape.targets}

        self._held, self._added, self._moved = map(summed, (held_bytes, _added_bytes, _moved_bytes))
        entries = {name: parents.tensors[name].n_entries for name in shape.targets}
        bytes_per_entry = len(needs & MAPS) * len(parents.names)
        self._maps = {name: bytes_per_entry * n for name, n in entries.items()}
        self._largest = max(entries.values(), default=0)
        self._statistics = max((STATISTICS[need] for need in needs), default=0)
        self._are_facts_on_disk = are_statistics_on_disk

    def plan(self, placement: str) -> MemoryPlan:
        """Return the memory plan of one placement."""
        devices = {HOST, *self._shape.targets.values(), *self._shape.devices}
        places = {
            device: self._host(placement) if device == HOST else self._device(placement, device)
            for device in sorted(devices, key=str)
        }
        mapped = sum(self._held.values()) if placement == "mapped" else 0
        maps = sum(self._maps.values()) if self._are_facts_on_disk else 0
        return MemoryPlan(placement, places, mapped + maps)

    def _host(self, placement: str) -> Place:
        here = [name for name, device in self._shape.targets.items() if device == HOST]
        kept = {"pinned": list(self._shape.targets), "device": here, "mapped": []}[placement]
        held = {
            "resident model": self._shape.devices.get(HOST, 0),
            "base and parents": sum(self._held[name] for name in kept),
            "rank and importance maps": 0 if self._are_facts_on_disk else sum(self._maps.values()),
            "compiler": COMPILER if self._is_compiling else 0,
        }
        moved = max(self._moved.values(), default=0)
        passing = {
            "building": moved + (0 if here else self._shape.sample),
            "statistics": self._statistics * torch.get_num_threads() if here else 0,
            "merging": (CPU_WORKSPACE if here else 0) + self._made(placement, here),
        }
        return Place(device_free(HOST), process_bytes(), held, passing)

    def _device(self, placement: str, device: torch.device) -> Place:
        here = [name for name, home in self._shape.targets.items() if home == device]
        held = {"resident model": self._shape.devices.get(device, 0)}
        merging = self._workspace() + max((self._maps[name] for name in here), default=0)
        if placement == "device":
            held["base and parents"] = sum(self._held[name] for name in here)
        elif placement == "pinned":
            merging += 2 * layer_bytes(self._held, here)  # in use, and in transfer
        else:
            merging += max((self._held[name] for name in here), default=0)
        merging += max((self._added[name] for name in here), default=0)
        passing = {"statistics": self._statistics, "merging": merging}
        return Place(device_free(device), _device_bytes(device), held, passing)

    def _workspace(self) -> int:
        # On an accelerator: packs, and float32 temporaries of a block if kernels run eager.
        eager = 0 if self._is_compiling else min(self._largest, GPU_BLOCK)
        return GPU_PACK + 4 * GPU_TEMPORARIES * eager

    def _made(self, placement: str, names: list[str]) -> int:
        # Tensors computed on the host to merge one tensor.
        moved = self._moved if placement == "mapped" else {}
        return max((self._added[name] + moved.get(name, 0) for name in names), default=0)


def _added_bytes(parents: ParentSet, owner: str, name: str) -> int:
    # The float32 sum of an adapter, computed at each fetch.
    is_added = owner != BASE and parents.low_rank(owner, name) is not None
    return 4 * parents.tensors[name].n_entries if is_added else 0


def _moved_bytes(parents: ParentSet, owner: str, name: str) -> int:
    # Tensors whose rows are reordered for another vocabulary are computed at each read.
    is_base = owner != BASE and parents.is_base(owner, name)
    if layer_group(name).layer is not None or is_base or _added_bytes(parents, owner, name):
        return 0
    tensor = parents.tensor(owner, name)
    return tensor.nbytes if tensor.untyped_storage().resizable() else 0  # mapped ones are not


def _device_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


class Sources:
    """Serves tensors of base and parents from their placement; they are read-only."""

    def __init__(self, parents: ParentSet, placement: str, names: Iterable[str]) -> None:
        """Take what to serve; "pinned" reads everything now, "device" at the first use.

        Args:
            parents: The base and its fine-tunes.
            placement: One of `PLACEMENTS`.
            names: The tensors to serve: those of the resident model's targets.
        """
        assert placement in PLACEMENTS
        self._parents, self._placement = parents, placement
        self._held: dict[Wanted, tuple[Tensor, ...]] = {}
        self._stream = Stream(parents, list(names)) if placement == "pinned" else None
        self._base: tuple[Wanted, Tensor] | None = None  # the last one, to which adapters add
        self._tidy, self._n_served = Tidy(), 0

    def order(self, wanted: Iterable[Wanted]) -> None:
        """Announce the next fetches, in this order; if tensors are streamed, transfers start now.

        Earlier orders that were not fetched are cancelled. Other tensors can be fetched as well.
        """
        self._base = None
        if self._stream is not None:
            self._stream.order(wanted)

    def fetch(self, owner: str, name: str, device: torch.device) -> Tensor:
        """Return a tensor of "base" or a parent, on a device; float32 if an adapter computes it."""
        key = (owner, name, device)
        if owner == BASE:
            if self._base is None or self._base[0] != key:
                self._base = (key, self._stored(key)[0])
                self._count(self._base[1])
            return self._base[1]
        if self._parents.is_base(owner, name):
            return self.fetch(BASE, name, device)
        low_rank = self.low_rank(owner, name, device)
        if low_rank is None:
            return self._stored(key)[0]
        return low_rank.added_to(self.fetch(BASE, name, device))

    def low_rank(self, parent: str, name: str, device: torch.device) -> LowRank | None:
        """Return the factors of a parent's change, on a device; None if it is no product."""
        low_rank = self._parents.low_rank(parent, name)
        if low_rank is None:
            return None
        a, b = self._stored((parent, name, device))
        return replace(low_rank, a=a, b=b)

    def is_base(self, parent: str, name: str) -> bool:
        """Return whether a parent's tensor is known to be the base's."""
        return self._parents.is_base(parent, name)

    def _count(self, base: Tensor) -> None:
        self._n_served += base.numel()
        if self._n_served >= TIDY_EVERY:
            self._n_served = 0
            self._tidy()

    def _stored(self, key: Wanted) -> tuple[Tensor, ...]:
        owner, name, device = key
        if self._stream is not None:
            return self._stream.fetch(key)
        if self._placement == "mapped":
            return tuple(tensor.to(device) for tensor in stored(self._parents, owner, name))
        if key not in self._held:
            tensors = stored(self._parents, owner, name)
            self._held[key] = tuple(tensor.to(device, copy=True) for tensor in tensors)
        return self._held[key]
