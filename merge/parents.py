"""The base and its fine-tunes on disk: checked by name, read by memory map.

Opening reads headers, config.json and tokenizer files only, so that a mismatch is refused in
milliseconds. Weights are read when asked for. Knows nothing of recipes.

Shapes: P parents, N entries of a tensor.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .blocks import blocks, one_thread
from .compatibility import check_config, check_tensors, check_vocabulary, read_config
from .groups import layer_group
from .headers import WEIGHTS, ParentError, TensorInfo, read_tensors

__all__ = ["BASE", "DeltaStatistics", "ParentError", "ParentSet", "TensorInfo"]


BASE = "base"
"""The name of the base in digests and messages; no parent may have it."""

_digests: dict[tuple[str, int, int], str] = {}  # (path, size, mtime_ns) -> SHA-256, this process


@dataclass(frozen=True)
class DeltaStatistics:
    """How far the parents are from the base, and from each other, over all floating entries.

    ``relative_norm`` is |delta| / |base| (L2), ``mean_abs_delta`` the mean of |delta|, per parent.
    ``cosine`` of the deltas and ``sign_conflict`` (share of the entries changed by both whose
    signs differ) are per pair of parents, names sorted.
    """

    relative_norm: Mapping[str, float]
    mean_abs_delta: Mapping[str, float]
    cosine: Mapping[tuple[str, str], float]
    sign_conflict: Mapping[tuple[str, str], float]


class ParentSet:
    """A base and P named fine-tunes of it that are known to fit together. Make it with `open`."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        tensors: Mapping[str, Mapping[str, TensorInfo]],
        config: Mapping[str, Any],
    ) -> None:
        """Take what `open` has checked; both mappings hold "base" first, then the parents."""
        self.folders: Mapping[str, Path] = MappingProxyType(dict(folders))
        self.config: Mapping[str, Any] = MappingProxyType(dict(config))
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors[BASE]))
        """Every tensor of the base: name -> shape, dtype, file."""
        self._tensors = tensors
        self._files: dict[Path, Any] = {}

    @classmethod
    def open(cls, base: Path | str, parents: Mapping[str, Path | str]) -> "ParentSet":
        """Check a base and its parents against each other, reading headers and settings only.

        Args:
            base: Hugging Face model directory with safetensors.
            parents: Name -> directory of a fine-tune of `base`. The name enters random masks.

        Raises:
            ParentError: The first mismatch, in one line: which parent, which tensor or file, and
                the remedy.
        """
        _check_names(parents)
        folders = {BASE: Path(base).absolute()}
        folders |= {name: Path(path).absolute() for name, path in parents.items()}
        tensors, base_config = {}, {}
        for name, folder in folders.items():
            who = BASE if name == BASE else f"parent {name}"
            tensors[name] = read_tensors(who, folder)
            config = read_config(who, folder)
            if name == BASE:
                base_config = config
                continue
            check_config(who, config, base_config)
            check_vocabulary(who, folder, folders[BASE])
            check_tensors(who, tensors[name], tensors[BASE])
        opened = cls(folders, tensors, base_config)
        opened._check_whole_tensors()
        return opened

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parents, in the order given."""
        return tuple(name for name in self.folders if name != BASE)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the layer groups that hold floating tensors, in model order."""
        floating = [name for name, info in self._tensors[BASE].items() if info.is_floating]
        found = {layer_group(name) for name in floating}
        return tuple(group.name for group in sorted(found, key=lambda group: group.order))

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks: the highest layer index plus one, 0 without blocks."""
        layers = [layer_group(name).layer for name in self._tensors[BASE]]
        return max((layer + 1 for layer in layers if layer is not None), default=0)

    @property
    def bytes_per_model(self) -> int:
        """Size in bytes of the largest of base and parents, as saved."""
        return max(
            sum(path.stat().st_size for path in self._weight_files(name)) for name in self.folders
        )

    def base_tensor(self, name: str) -> Tensor:
        """A tensor of the base as saved, memory-mapped; not to be written to."""
        return self._tensor(BASE, name)

    def parent_tensor(self, parent: str, name: str) -> Tensor:
        """A tensor of a parent as saved, memory-mapped; not to be written to."""
        return self._tensor(parent, name)

    def digests(self) -> dict[str, str]:
        """SHA-256, hex, of the weights of the base and of each parent.

        One file: its SHA-256. Shards: SHA-256 over lines of shard name and shard SHA-256. A file is
        read again only if its path, size or modification time changes.
        """
        return {name: self._digest(name) for name in self.folders}

    def check_values(self) -> None:
        """Read every weight once and refuse NaN and infinity.

        Raises:
            ParentError: Naming the model and the tensor.
        """
        with one_thread():
            for owner in self.folders:
                for name, info in self._tensors[owner].items():
                    if info.is_floating and not _is_finite(self._tensor(owner, name)):
                        who = BASE if owner == BASE else f"parent {owner}"
                        raise ParentError(
                            f"{who}: tensor {name} in {info.file} holds NaN or infinity; the "
                            f"training run diverged or the file is damaged, use another checkpoint"
                        )

    def delta_statistics(self) -> DeltaStatistics:
        """Norms, cosines and sign conflicts of the deltas; reads every weight once, in blocks."""
        names = sorted(self.names)
        sums = _DeltaSums(names)
        with one_thread():
            for name, info in self._tensors[BASE].items():
                if info.is_floating:
                    base = self.base_tensor(name).reshape(-1)
                    tuned = [self.parent_tensor(p, name).reshape(-1) for p in names]
                    for run in blocks(base.numel(), base.device):
                        sums.add(base[run].float(), [t[run].float() for t in tuned])
        return sums.statistics()

    def _tensor(self, owner: str, name: str) -> Tensor:
        info = self._tensors[owner][name]
        try:
            if info.file not in self._files:
                self._files[info.file] = safe_open(info.file, framework="pt")
            return self._files[info.file].get_tensor(name)
        except SafetensorError as error:
            who = BASE if owner == BASE else f"parent {owner}"
            raise ParentError(
                f"{who}: cannot read tensor {name} in {info.file} "
                f"({str(error).splitlines()[0]}); fetch it again"
            ) from None

    def _weight_files(self, owner: str) -> list[Path]:
        return sorted({info.file for info in self._tensors[owner].values()})

    def _digest(self, owner: str) -> str:
        files = self._weight_files(owner)
        if [file.name for file in files] == [WEIGHTS]:
            return _file_digest(files[0])
        lines = "".join(f"{file.name} {_file_digest(file)}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def _check_whole_tensors(self) -> None:
        whole = [name for name, info in self._tensors[BASE].items() if not info.is_floating]
        for parent, name in itertools.product(self.names, whole):
            if not torch.equal(self.base_tensor(name), self.parent_tensor(parent, name)):
                raise ParentError(
                    f"parent {parent}: tensor {name} holds whole numbers that differ from the "
                    f"base's and cannot be merged; use a fine-tune that kept them"
                )


class _DeltaSums:
    """Running sums behind DeltaStatistics; float32 within a block, float64 across blocks."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.pairs = list(itertools.combinations(range(len(names)), 2))
        self.n_entries = 0
        self.base_square = 0.0
        self.squares = [0.0] * len(names)
        self.absolutes = [0.0] * len(names)
        self.products = [0.0] * len(self.pairs)
        self.balances = [0.0] * len(self.pairs)  # agreeing minus opposed entries
        self.shared = [0.0] * len(self.pairs)  # entries that both change

    def add(self, base: Tensor, tuned: list[Tensor]) -> None:
        """Take in one block: base (N,), P parents of (N,)."""
        deltas = [parent - base for parent in tuned]
        signs = [delta.sign() for delta in deltas]
        self.n_entries += base.numel()
        self.base_square += float(base.dot(base))
        for i, delta in enumerate(deltas):
            self.squares[i] += float(delta.dot(delta))
            self.absolutes[i] += float(delta.abs().sum())
        for k, (i, j) in enumerate(self.pairs):
            self.products[k] += float(deltas[i].dot(deltas[j]))
            self.balances[k] += float(signs[i].dot(signs[j]))
            self.shared[k] += float(signs[i].abs().dot(signs[j].abs()))

    def statistics(self) -> DeltaStatistics:
        """Ratios of the sums; 0 where a denominator is 0."""
        n = max(self.n_entries, 1)
        base_norm = self.base_square**0.5
        norms = [square**0.5 for square in self.squares]
        pairs = [(self.names[i], self.names[j]) for i, j in self.pairs]
        lengths = [norms[i] * norms[j] for i, j in self.pairs]
        opposed = [(s - b) / 2.0 for s, b in zip(self.shared, self.balances, strict=True)]
        return DeltaStatistics(
            {name: _ratio(norms[i], base_norm) for i, name in enumerate(self.names)},
            {name: self.absolutes[i] / n for i, name in enumerate(self.names)},
            dict(zip(pairs, map(_ratio, self.products, lengths), strict=True)),
            dict(zip(pairs, map(_ratio, opposed, self.shared), strict=True)),
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()  # NaN goes through both; a third of the cost of isfinite
    return bool(torch.isfinite(torch.stack([low, high])).all())


def _file_digest(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def _check_names(parents: Mapping[str, Any]) -> None:
    if not parents:
        raise ParentError("a merge needs at least one parent, got none; name the fine-tunes")
    for name in parents:
        if not name or name == BASE or "\0" in name:
            raise ParentError(
                f"a parent's name must be non-empty and not `{BASE}`, got {name!r}; rename it"
            )
