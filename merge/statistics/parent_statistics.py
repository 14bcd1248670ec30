"""Statistics of base and parents that no recipe changes: computed once, cached on disk.

Each kind is one row of a table; its formula is in gram.py, quantiles.py, variance.py or
importance.py. The first query of a kind computes it for all tensors of the models in question. It
is cached under the hashes of these models, so later runs do not compute it again. Knows no recipes
and no methods.

Shapes: P parents, N entries of a tensor.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ..blocks import one_thread
from ..parents.headers import ParentError, who_is
from ..parents.parent_set import BASE, ParentSet
from ..recipe.groups import LayerGroup, layer_group
from .cache import StatisticsCache, StatisticsFile
from .gram import DeltaStatistics, DeltaSums, delta_sums, describe_model, n_sums
from .importance import importance_mask, rank_map
from .quantiles import GRID, grid_step, magnitude_grid
from .variance import variance_table

__all__ = ["ParentStatistics", "TensorStatistics", "UncachedStatistics"]
log = logging.getLogger(__name__)
_PROGRESS = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Kind:
    """One kind of statistics of one tensor of some models.

    ``name`` is part of file names and log lines. ``compute`` takes the tensor of each model and
    leaves it unchanged. Its result, on any device, has ``dtype`` and ``shape(number of models)``,
    or the tensor's shape if ``shape`` is None.
    """

    name: str
    compute: Callable[[Sequence[Tensor]], Tensor]
    dtype: torch.dtype
    shape: Callable[[int], tuple[int, ...]] | None = None


def largest_value(tensor: Tensor) -> Tensor:
    """Return the largest |value|, float32 (); NaN or infinity if there are any, 0 if empty."""
    if tensor.numel() == 0:
        return torch.zeros(())
    low, high = tensor.aminmax()  # NaN goes through both; a third of the cost of isfinite
    return torch.maximum(low.abs(), high.abs()).float().cpu()


LARGEST = Kind("largest", lambda t: largest_value(t[0]), torch.float32, lambda _: ())
SUMS = Kind("sums", delta_sums, torch.float64, lambda n: (n_sums(n - 1),))
MAGNITUDES = Kind("magnitudes", lambda t: magnitude_grid(*t), torch.float32, lambda _: (GRID,))
VARIANCES = Kind("spread", variance_table, torch.float64, lambda n: (n, GRID))  # name of old files
RANKS = Kind("ranks", lambda t: rank_map(*t), torch.uint8)
IMPORTANCE = Kind("chosen", lambda t: importance_mask(*t), torch.uint8)


class TensorStatistics:
    """Statistics of one tensor of the base and its parents (the protocol `Statistics`)."""

    def __init__(
        self, parents: Sequence[str], fetch: Callable[[Kind, tuple[str, ...]], Tensor]
    ) -> None:
        """Take the names of all parents and a function that returns one kind for some models."""
        self._parents = tuple(parents)
        self._fetch = fetch
        self._fetched: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def gram(self, parents: Sequence[str]) -> list[list[float]]:
        """Return inner products (1 + P, 1 + P) of [base, delta_1 .. delta_P], summed in float64.

        Products are exact and added in a fixed order, so the numbers are the same on any machine
        and do not depend on other parents.
        """
        places = [0, *(1 + self._parents.index(parent) for parent in parents)]
        return [[self._gram[i][j] for j in places] for i in places]

    def magnitude(self, parent: str, drop_rate: float) -> float:
        """Return the smallest |delta| kept at a drop rate, exact on a grid of 0.001.

        Args:
            parent: Its name.
            drop_rate: In ``[0, 1)``; rounded to the grid, at most 0.999. The result at 0 is 0.
        """
        step = grid_step(drop_rate)
        return float(self._of(MAGNITUDES, BASE, parent).numpy()[step]) if step else 0.0

    def variance(
        self, parents: Sequence[str], select_topk: float
    ) -> tuple[float, tuple[float, ...]]:
        """Return the smallest variance that SCE selects, and per parent the sum of selected
        delta^2.

        Args:
            parents: P names in the order in which the kernel adds them up.
            select_topk: Share of the entries with nonzero variance to select, largest variance
                first; in ``[0, 1]``, rounded to 0.001 and at least 0.001. 1 selects all entries,
                from variance 0.

        Raises:
            ValueError: If ``select_topk`` is outside ``[0, 1]``.
        """
        if not 0.0 <= select_topk <= 1.0:
            raise ValueError(
                f"`select_topk` must be in [0, 1], got {select_topk}; use 1 to select all"
            )
        step = min(round((1.0 - select_topk) * GRID), GRID - 1)
        smallest, *squares = self._of(VARIANCES, BASE, *parents).numpy()[:, step].tolist()
        return smallest, tuple(squares)

    def ranks(self, parent: str) -> Tensor:
        """Return the rank map of a delta, uint8 of the tensor's shape (`rank_map`); read-only."""
        return self._of(RANKS, BASE, parent)

    def importance(self, parent: str) -> Tensor:
        """Return the mask of entries that arcee_fusion takes, uint8; read-only."""
        return self._of(IMPORTANCE, BASE, parent)

    def largest(self, owner: str) -> float:
        """Return the largest |value| of "base" or of a parent.

        Raises:
            ParentError: If there is NaN or infinity among the values.
        """
        return float(self._of(LARGEST, owner))

    @cached_property
    def _gram(self) -> list[list[float]]:
        row = self._of(SUMS, BASE, *self._parents).numpy()
        return DeltaSums.unpack(row, len(self._parents)).gram.tolist()

    def _of(self, kind: Kind, *owners: str) -> Tensor:
        key = kind.name, owners
        if key not in self._fetched:
            self._fetched[key] = self._fetch(kind, owners)
        return self._fetched[key]


class UncachedStatistics(TensorStatistics):
    """Statistics of given tensors, computed at the first query and not cached on disk."""

    def __init__(self, name: str, base: Tensor, parents: Mapping[str, Tensor]) -> None:
        """Take one tensor of each model, on one device, and its name for messages."""
        tensors = {BASE: base, **parents}

        def fetch(kind: Kind, owners: tuple[str, ...]) -> Tensor:
            values = kind.compute([tensors[owner] for owner in owners])
            if kind is LARGEST:
                _check_finite(values, owners[0], f"tensor {name}")
            return values

        super().__init__(sorted(parents), fetch)


class ParentStatistics:
    """Statistics of every floating tensor of a parent set.

    Lazy: the first query of a kind computes it for all tensors. A model's values are checked for
    NaN and infinity before any other statistics of it are computed.
    """

    def __init__(
        self, parents: ParentSet, cache: Path | None, device: str | torch.device = "cpu"
    ) -> None:
        """Read and compute nothing yet.

        Args:
            parents: The base and its fine-tunes.
            cache: Folder of cached statistics, usually `cache.default_folder()`; None keeps all in
                memory, including the rank and importance maps.
            device: Where statistics are computed. Results are on the CPU and bitwise independent of
                the device (importance masks: up to the device's exponentials).
        """
        self._parents = parents
        self._cache = None if cache is None else StatisticsCache(cache)
        self._device = torch.device(device)
        # Read now: the first query may come while merging limits torch to one thread.
        self._workers = torch.get_num_threads() if self._device.type == "cpu" else 1
        self._tables: dict[tuple[str, tuple[str, ...]], Mapping[str, Tensor]] = {}
        self._views: dict[str, TensorStatistics] = {}
        infos = parents.tensors.items()
        self._shapes = {name: info.shape for name, info in infos if info.is_floating}

    def of(self, tensor: str) -> TensorStatistics:
        """Return the statistics of one floating tensor, by name."""
        if tensor not in self._views:
            assert tensor in self._shapes

            def fetch(kind: Kind, owners: tuple[str, ...]) -> Tensor:
                return self._table(kind, owners)[tensor]

            self._views[tensor] = TensorStatistics(self._order, fetch)
        return self._views[tensor]

    def deltas(self, group: Callable[[str], LayerGroup] = layer_group) -> DeltaStatistics:
        """Describe the deltas in total, per tensor and per layer group: sizes, cosines, conflicts.

        Args:
            group: Tensor name -> layer group; `Grouping.group` if the user has given rules.
        """
        table = self._table(SUMS, (BASE, *self._order))
        rows = {name: row.numpy() for name, row in table.items()}
        return describe_model(rows, self._order, lambda name: group(name).name)

    def check_values(self) -> None:
        """Refuse NaN and infinity in any model; each model's weights are read only once.

        Raises:
            ParentError: Naming the model, the tensor, its file and the remedy.
        """
        for owner in self._parents.folders:
            self._table(LARGEST, (owner,))

    @cached_property
    def _digests(self) -> dict[str, str]:
        return self._parents.digests()

    @cached_property
    def _order(self) -> tuple[str, ...]:
        # With a cache, sorted by hash, so that cached files are found again under other names.
        names = sorted(self._parents.names)
        if self._cache is not None:
            names.sort(key=lambda name: self._digests[name])
        return tuple(names)

    def _table(self, kind: Kind, owners: tuple[str, ...]) -> Mapping[str, Tensor]:
        key = kind.name, owners
        if key not in self._tables:
            if kind is not LARGEST:
                for owner in owners:
                    self._table(LARGEST, (owner,))
            compute = partial(self._computed, kind, owners)
            on_disk = self._cache and self._cache.get(self._file(kind, owners), compute)
            self._tables[key] = dict(compute()) if on_disk is None else on_disk
        return self._tables[key]

    def _file(self, kind: Kind, owners: tuple[str, ...]) -> StatisticsFile:
        # An adapter's values are made from the base's too, whose hash is therefore in every key.
        models = owners if owners[0] == BASE else (BASE, *owners)
        shapes = self._shapes
        if kind.shape is not None:
            shapes = dict.fromkeys(shapes, kind.shape(len(owners)))
        return StatisticsFile(
            kind.name, tuple(self._digests[m] for m in models), shapes, kind.dtype
        )

    def _computed(self, kind: Kind, owners: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        models = " and ".join(owners)
        log.info("computing statistics: %s of %s, %d tensors", kind.name, models, len(self._shapes))
        start = logged = time.monotonic()
        with closing(self._in_parallel(kind, owners)) as results:
            for count, (name, values) in enumerate(results, start=1):
                if kind is LARGEST:
                    file = self._parents.infos(owners[0])[name].file
                    _check_finite(values, owners[0], f"tensor {name} in {file}")
                yield name, values
                if time.monotonic() - logged >= _PROGRESS:
                    logged = time.monotonic()
                    log.info("%s: %d of %d tensors", kind.name, count, len(self._shapes))
        log.info("%s of %s took %.1f s", kind.name, models, time.monotonic() - start)

    def _in_parallel(
        self, kind: Kind, owners: tuple[str, ...]
    ) -> Generator[tuple[str, Tensor], None, None]:
        # One tensor per thread: sorts and sums over blocks do not share threads well. Tensors are
        # fetched here one at a time, only as many as the workers need.
        waiting: deque = deque()
        with one_thread(), ThreadPoolExecutor(self._workers) as pool:
            for name in self._shapes:
                tensors = [self._parents.tensor(o, name).to(self._device) for o in owners]
                waiting.append((name, pool.submit(kind.compute, tensors)))
                if len(waiting) > self._workers:
                    done, future = waiting.popleft()
                    yield done, future.result().cpu()
            for name, future in waiting:
                yield name, future.result().cpu()


def _check_finite(largest: Tensor, owner: str, what: str) -> None:
    if not bool(largest.isfinite()):
        raise ParentError(
            f"{who_is(owner)}: {what} holds NaN or infinity; the training run diverged or the file "
            f"is damaged, use another checkpoint"
        )
