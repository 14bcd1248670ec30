"""One model directory of safetensors: its tensors and their SHA-256.

A parent set consists of `Source`s: a checkpoint (here), an adapter over the base (adapters.py), or
either with rows in the order of another vocabulary (vocabulary.py). Knows nothing of other models.

Shapes: R rank, I inputs, O outputs of a layer.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..blocks import one_thread
from ..hints import reason
from .headers import WEIGHTS, ParentError, TensorInfo, read_tensors

_digests: dict[tuple[str, int, int], str] = {}  # (path, size, mtime_ns) -> SHA-256, this process


@dataclass(frozen=True)
class LowRank:
    """Change of one weight by a LoRA adapter: ``scale * B @ A``.

    ``a`` is (R, I), ``b`` is (O, R), any floating dtype. The weight is (O, I), or (I, O) if
    ``is_transposed`` (GPT-2's Conv1D layers, embeddings).
    """

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scale: float
    is_transposed: bool

    def to(self, device: torch.device | str) -> "LowRank":
        """Return the change with its factors on a device."""
        return replace(self, a=self.a.to(device), b=self.b.to(device))

    def added_to(self, weight: Float[Tensor, "rows columns"]) -> Float32[Tensor, "rows columns"]:
        """Return a new float32 tensor ``weight + scale * B @ A``, on the factors' device.

        One thread computes the product, so that its bits do not depend on the number of threads.
        """
        a, b = self.a.float(), self.b.float()
        with one_thread():
            product = a.T @ b.T if self.is_transposed else b @ a
        return product.mul_(self.scale).add_(weight.to(product.device, torch.float32))

    def inner(self, matrix: Float[Tensor, "rows columns"]) -> Float32[Tensor, ""]:
        """Return the inner product of the change with a matrix, without forming the product.

        <M, s B A> = s <B^T M, A>: the largest temporary has R rows.
        """
        a, b = self.a.float(), self.b.float()
        if self.is_transposed:
            return ((a @ matrix.float()) * b.T).sum() * self.scale
        return ((b.T @ matrix.float()) * a).sum() * self.scale


class Source(Protocol):
    """The tensors of one model, read on request."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Return every tensor: name -> shape and dtype as returned by `read`, and its file."""
        ...

    def read(self, name: str) -> Tensor:
        """Read one tensor, on the CPU; read-only."""
        ...

    def bytes_of(self, name: str) -> int:
        """Return the bytes that one tensor of this model takes in addition to the base's."""
        ...

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of a tensor that is the base's plus a product; None for any other."""
        ...

    def is_base(self, name: str) -> bool:
        """Return whether a tensor is known, without reading it, to be that of the base."""
        ...

    def digest(self) -> str:
        """Return the SHA-256, hex, of all that determines `read`, except for the base."""
        ...


class Files:
    """Safetensors files of one model, opened at the first read and kept memory-mapped.

    Tensors are views of the mapping and are kept too: they take no memory, and creating them at
    each load would take a fifth of the time of a small model's merge.
    """

    def __init__(self, who: str) -> None:
        """Take the model's name for messages."""
        self._who = who
        self._open: dict[Path, Any] = {}
        self._views: dict[tuple[Path, str], Tensor] = {}

    def read(self, path: Path, name: str) -> Tensor:
        """Read a tensor as saved, memory-mapped.

        Raises:
            ParentError: If the file was damaged after its header was read.
        """
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            if (path, name) not in self._views:
                self._views[path, name] = self._open[path].get_tensor(name)
            return self._views[path, name]
        except (SafetensorError, OSError) as error:
            raise ParentError(
                f"{self._who}: cannot read tensor {name} in {path} "
                f"({reason(error)}); fetch it again"
            ) from None


class Checkpoint:
    """A full model: one safetensors file, or shards and their index."""

    def __init__(self, who: str, folder: Path) -> None:
        """Read the headers.

        Args:
            who: "base" or "parent <name>", for messages.
            folder: A Hugging Face model directory.

        Raises:
            ParentError: No such directory, no safetensors, or files that contradict each other.
        """
        self.tensors: Mapping[str, TensorInfo] = read_tensors(who, folder)
        self._files = Files(who)

    def read(self, name: str) -> Tensor:
        """Read a tensor as saved, memory-mapped; read-only."""
        return self._files.read(self.tensors[name].file, name)

    def bytes_of(self, name: str) -> int:
        """Return the size of a tensor as saved."""
        return self.tensors[name].n_bytes

    def low_rank(self, name: str) -> None:
        """Return None: no tensor of a full model is known to be a product."""

    def is_base(self, name: str) -> bool:  # noqa: ARG002 - as a Source has it
        """Return False: no tensor of a full model is known to be that of the base."""
        return False

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the safetensors files, sorted."""
        return tuple(sorted({info.file for info in self.tensors.values()}))

    def digest(self) -> str:
        """Return the SHA-256 of the file; for shards, over lines of shard name and SHA-256."""
        if [file.name for file in self.weight_files] == [WEIGHTS]:
            return file_digest(self.weight_files[0])
        return digest_of_files(self.weight_files)


def digest_of_files(paths: tuple[Path, ...]) -> str:
    """Return the SHA-256 over one line per file: its name and its SHA-256."""
    lines = "".join(f"{path.name} {file_digest(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read again only if path, size or modification time changes."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
