"""What is known of base and parents whatever the recipe: computed once, kept on disk, asked often.

Each kind of fact is a row of a table here; its formula stands in gram.py, quantiles.py, spread.py
or planes.py. A kind is computed for all tensors of a model at the first question about any of them,
and lies in the cache under the hashes of the models it is about, so that no later run computes it
again. Knows no recipes, no methods.

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
from ..parents.headers import ParentError
from ..parents.parent_set import BASE, ParentSet
from ..recipe.groups import LayerGroup, layer_group
from .cache import FactCache, FactFile
from .gram import DeltaStatistics, DeltaSums, delta_sums, describe_model, n_sums
from .importance import chosen_plane, rank_plane
from .quantiles import GRID, grid_step, magnitude_grid
from .variance import spread_table

__all__ = ["FreshFacts", "ParentFacts", "TensorFacts"]
log = logging.getLogger(__name__)
_PROGRESS = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Kind:
    """One kind of fact about one tensor of some models.

    ``compute`` takes that tensor of each model and leaves it unchanged. What it gives, on any
    device, has ``dtype`` and ``shape(number of models)``, or the tensor's shape where that is None.
    """

    name: str
    compute: Callable[[Sequence[Tensor]], Tensor]
    dtype: torch.dtype
    shape: Callable[[int], tuple[int, ...]] | None = None


def largest_value(tensor: Tensor) -> Tensor:
    """Largest |value| of a tensor, float32 (); NaN or infinity where it holds such, 0 if empty."""
    if tensor.numel() == 0:
        return torch.zeros(())
    low, high = tensor.aminmax()  # NaN goes through both; a third of the cost of isfinite
    return torch.maximum(low.abs(), high.abs()).float().cpu()


LARGEST = Kind("largest", lambda t: largest_value(t[0]), torch.float32, lambda _: ())
SUMS = Kind("sums", delta_sums, torch.float64, lambda n: (n_sums(n - 1),))
MAGNITUDES = Kind("magnitudes", lambda t: magnitude_grid(*t), torch.float32, lambda _: (GRID,))
SPREAD = Kind("spread", spread_table, torch.float64, lambda n: (n, GRID))
RANKS = Kind("ranks", lambda t: rank_plane(*t), torch.uint8)
CHOSEN = Kind("chosen", lambda t: chosen_plane(*t), torch.uint8)


class TensorFacts:
    """Facts about one tensor of the base and its parents; what methods see through `Facts`."""

    def __init__(
        self, parents: Sequence[str], fetch: Callable[[Kind, tuple[str, ...]], Tensor]
    ) -> None:
        """Take the names of all parents and what gives a fact about some models."""
        self._parents = tuple(parents)
        self._fetch = fetch
        self._fetched: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def gram(self, parents: Sequence[str]) -> list[list[float]]:
        """Inner products (1 + P, 1 + P) of [base, delta_1 .. delta_P], summed in float64.

        Products are exact and added in one fixed order, so the numbers are the same on any
        machine, whichever other parents there are.
        """
        places = [0, *(1 + self._parents.index(parent) for parent in parents)]
        return [[self._gram[i][j] for j in places] for i in places]

    def magnitude(self, parent: str, drop_rate: float) -> float:
        """Smallest |delta| kept where the smallest share is dropped, exact on a grid of 0.001.

        Args:
            parent: Its name.
            drop_rate: In ``[0, 1)``; rounded to the grid, at most 0.999. At 0 the answer is 0.
        """
        step = grid_step(drop_rate)
        return float(self._of(MAGNITUDES, BASE, parent).numpy()[step]) if step else 0.0

    def spread(self, parents: Sequence[str], select_topk: float) -> tuple[float, tuple[float, ...]]:
        """SCE: smallest variance over parents that is selected, and sums of selected delta_i^2.

        Args:
            parents: P names in the order in which the kernel adds them up.
            select_topk: Share of the entries of variance other than 0 that is selected, those of
                largest variance; in ``[0, 1]``, rounded to 0.001 and at least that. At 1 all
                entries are, from variance 0.

        Raises:
            ValueError: If ``select_topk`` is outside ``[0, 1]``.
        """
        if not 0.0 <= select_topk <= 1.0:
            raise ValueError(
                f"`select_topk` must be in [0, 1], got {select_topk}; use 1 to select all"
            )
        step = min(round((1.0 - select_topk) * GRID), GRID - 1)
        smallest, *squares = self._of(SPREAD, BASE, *parents).numpy()[:, step].tolist()
        return smallest, tuple(squares)

    def ranks(self, parent: str) -> Tensor:
        """Rank plane of a delta, uint8 of the tensor's shape (`rank_plane`); not to be written."""
        return self._of(RANKS, BASE, parent)

    def chosen(self, parent: str) -> Tensor:
        """Entries that arcee_fusion takes over, uint8 (`chosen_plane`); not to be written to."""
        return self._of(CHOSEN, BASE, parent)

    def largest(self, owner: str) -> float:
        """Largest |value| of "base" or of a parent.

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


class FreshFacts(TensorFacts):
    """Facts computed from tensors at hand, each at the first question; no files."""

    def __init__(self, name: str, base: Tensor, parents: Mapping[str, Tensor]) -> None:
        """Take one tensor of each model, on one device, and its name for messages."""
        tensors = {BASE: base, **parents}

        def fetch(kind: Kind, owners: tuple[str, ...]) -> Tensor:
            fact = kind.compute([tensors[owner] for owner in owners])
            if kind is LARGEST:
                _check_finite(fact, owners[0], f"tensor {name}")
            return fact

        super().__init__(sorted(parents), fetch)


class ParentFacts:
    """Facts about every floating tensor of a parent set.

    Lazy: nothing is read before the first question, and a question of one kind answers those about
    all tensors. Before any other fact of a model, its values are checked for NaN and infinity.
    """

    def __init__(
        self, parents: ParentSet, cache: Path | None, device: str | torch.device = "cpu"
    ) -> None:
        """Read and compute nothing yet.

        Args:
            parents: The base and its fine-tunes.
            cache: Folder of cached facts, `fact_cache.default_folder()` as a rule; None keeps
                all in memory, planes of one byte per entry included.
            device: Where facts are computed; they come out on the CPU, and the same to the bit
                (planes of arcee_fusion up to the device's exponentials).
        """
        self._parents = parents
        self._cache = None if cache is None else FactCache(cache)
        self._device = torch.device(device)
        # Asked now: whoever holds torch to one thread while merging may be the first to ask a fact.
        self._workers = torch.get_num_threads() if self._device.type == "cpu" else 1
        self._tables: dict[tuple[str, tuple[str, ...]], Mapping[str, Tensor]] = {}
        self._views: dict[str, TensorFacts] = {}
        infos = parents.tensors.items()
        self._shapes = {name: info.shape for name, info in infos if info.is_floating}

    def of(self, tensor: str) -> TensorFacts:
        """Facts about one floating tensor, by name."""
        if tensor not in self._views:
            assert tensor in self._shapes

            def fetch(kind: Kind, owners: tuple[str, ...]) -> Tensor:
                return self._table(kind, owners)[tensor]

            self._views[tensor] = TensorFacts(self._order, fetch)
        return self._views[tensor]

    def statistics(self, group: Callable[[str], LayerGroup] = layer_group) -> DeltaStatistics:
        """Sizes, cosines and sign conflicts of the deltas: in total, per tensor, per layer group.

        Args:
            group: Tensor name -> layer group, `Grouping.group` where a person has given rules.
        """
        table = self._table(SUMS, (BASE, *self._order))
        rows = {name: row.numpy() for name, row in table.items()}
        return describe_model(rows, self._order, lambda name: group(name).name)

    def check_values(self) -> None:
        """Refuse NaN and infinity in any model; each model's weights are read once, ever.

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
        # Parents in an order that their names do not enter where there are files to be found again.
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

    def _file(self, kind: Kind, owners: tuple[str, ...]) -> FactFile:
        # An adapter's values are made from the base's too, whose hash is therefore in every key.
        models = owners if owners[0] == BASE else (BASE, *owners)
        shapes = self._shapes
        if kind.shape is not None:
            shapes = dict.fromkeys(shapes, kind.shape(len(owners)))
        return FactFile(kind.name, tuple(self._digests[m] for m in models), shapes, kind.dtype)

    def _computed(self, kind: Kind, owners: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        whom = " and ".join(owners)
        log.info("computing facts: %s of %s, %d tensors", kind.name, whom, len(self._shapes))
        begun = said = time.monotonic()
        with closing(self._in_parallel(kind, owners)) as facts:
            for count, (name, fact) in enumerate(facts, start=1):
                if kind is LARGEST:
                    file = self._parents.infos(owners[0])[name].file
                    _check_finite(fact, owners[0], f"tensor {name} in {file}")
                yield name, fact
                if time.monotonic() - said >= _PROGRESS:
                    said = time.monotonic()
                    log.info("%s: %d of %d tensors", kind.name, count, len(self._shapes))
        log.info("%s of %s took %.1f s", kind.name, whom, time.monotonic() - begun)

    def _in_parallel(
        self, kind: Kind, owners: tuple[str, ...]
    ) -> Generator[tuple[str, Tensor], None, None]:
        # One tensor per thread: sorts and sums over blocks do not share threads well. Tensors are
        # fetched here, one at a time, and only as many as are worked on.
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
        who = BASE if owner == BASE else f"parent {owner}"
        raise ParentError(
            f"{who}: {what} holds NaN or infinity; the training run diverged or the file is "
            f"damaged, use another checkpoint"
        )
