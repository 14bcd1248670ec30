"""Base and parents in pinned host memory, transferred to the device ahead of their use.

Of an adapter, the factors are held instead of their product. Knows no recipes and no plans; callers
order the tensors that they need.
"""

import weakref
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..parents.adapters import LowRank
from ..parents.parent_set import BASE, ParentSet
from ..recipe.groups import layer_group

__all__ = ["Stream", "Wanted", "held_bytes", "layer_bytes", "stored"]
Wanted = tuple[str, str, torch.device]
"""A tensor to transfer: "base" or a parent, its name, its device."""


def stored(parents: ParentSet, owner: str, name: str) -> tuple[Tensor, ...]:
    """Return what is held of a tensor: itself, or the two factors of an adapter."""
    low_rank: LowRank | None = None if owner == BASE else parents.low_rank(owner, name)
    if low_rank is not None:
        return low_rank.a, low_rank.b
    return (parents.tensor(owner, name),)


def held_bytes(parents: ParentSet, owner: str, name: str) -> int:
    """Return the bytes of `stored`; 0 if a parent's tensor is known to be the base's."""
    low_rank = None if owner == BASE else parents.low_rank(owner, name)
    if low_rank is not None:
        return low_rank.a.nbytes + low_rank.b.nbytes
    is_base = owner != BASE and parents.is_base(owner, name)
    return 0 if is_base else parents.infos(owner)[name].n_bytes


def layer_bytes(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    """Return the bytes of the largest layer, or of the largest tensor outside the layers."""
    layers: Counter[Any] = Counter()
    for name in names:
        layer = layer_group(name).layer
        layers[name if layer is None else layer] += sizes[name]
    return max(layers.values(), default=0)


class Stream:
    """Base and parents in one block of pinned host memory, transferred one layer ahead."""

    def __init__(self, parents: ParentSet, names: list[str]) -> None:
        owners = (BASE, *parents.names)
        sizes = {n: sum(held_bytes(parents, owner, n) for owner in owners) for n in names}
        self._window = layer_bytes(sizes, names)
        self._queue: deque[Wanted] = deque()
        self._coming: dict[Wanted, _Transfer] = {}
        self._sides: dict[torch.device, torch.cuda.Stream] = {}
        keys = [(o, n) for n in names for o in owners if o == BASE or not parents.is_base(o, n)]
        n_bytes = sum(_aligned(t.nbytes) for key in keys for t in stored(parents, *key))
        # One block, since torch's pinned allocator rounds each size up to a power of two.
        memory = torch.empty(n_bytes, dtype=torch.uint8)
        if torch.cuda.is_available():
            _pin(self, memory)
        self._tensors: dict[tuple[str, str], tuple[Tensor, ...]] = {}
        start = 0
        for key in keys:
            kept = []
            for tensor in stored(parents, *key):
                room = memory[start : start + tensor.nbytes].view(tensor.dtype)
                kept.append(room.view(tensor.shape).copy_(tensor))
                start += _aligned(tensor.nbytes)
            self._tensors[key] = tuple(kept)

    def order(self, wanted: Iterable[Wanted]) -> None:
        """Cancel earlier orders and start the transfer of the first tensors."""
        self._coming.clear()
        self._queue = deque(key for key in wanted if key[:2] in self._tensors)
        self._send_ahead()

    def fetch(self, key: Wanted) -> tuple[Tensor, ...]:
        """Return what is stored of a tensor, on its device; start the next transfers."""
        transfer = self._coming.pop(key, None)
        if transfer is None:
            if key in self._queue:
                self._queue.remove(key)
            transfer = self._sent(key)
        tensors = transfer.arrived()
        self._send_ahead()
        return tensors

    def _send_ahead(self) -> None:
        on_the_way = sum(transfer.n_bytes for transfer in self._coming.values())
        while self._queue and on_the_way < self._window:
            key = self._queue.popleft()
            self._coming[key] = self._sent(key)
            on_the_way += self._coming[key].n_bytes

    def _sent(self, key: Wanted) -> "_Transfer":
        owner, name, device = key
        if device.type == "cuda" and device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)
        return _Transfer(self._tensors[owner, name], device, self._sides.get(device))


class _Transfer:
    """Transfer of tensors to a device, concurrent with the work that is queued there."""

    def __init__(
        self, tensors: tuple[Tensor, ...], device: torch.device, side: torch.cuda.Stream | None
    ) -> None:
        self.n_bytes = sum(tensor.nbytes for tensor in tensors)
        self._device = device
        with torch.cuda.stream(side):  # does nothing for None
            self._tensors = tuple(t.to(device, non_blocking=True, copy=True) for t in tensors)
            self._done = None if side is None else side.record_event()

    def arrived(self) -> tuple[Tensor, ...]:
        """Return the tensors, for work that is queued from now on."""
        if self._done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._done)
            for tensor in self._tensors:
                tensor.record_stream(current)  # else their memory could be reused before it is read
        return self._tensors


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64  # a cache line


def _pin(owner: object, memory: Tensor) -> None:
    # Locks the pages during the lifetime of the owner.
    cudart: Any = torch.cuda.cudart()
    code = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if code != cudart.cudaError.success:
        raise ValueError(
            f"`placement: pinned` locks {memory.nbytes / 1e6:,.1f} MB of host memory, which the "
            f"driver refused ({code}); use `placement: mapped`"
        )
    weakref.finalize(owner, _unpin, memory)


def _unpin(memory: Tensor) -> None:
    torch.cuda.synchronize()
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(memory.data_ptr())
