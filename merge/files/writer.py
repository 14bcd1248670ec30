"""Write a model as a Hugging Face directory, atomically: weights, settings, tokenizer.

Weights are a list of names and sizes whose values are made one at a time, so that only one tensor
is in memory. Other files of the base's directory (tokenizer, chat template, generation settings,
licences) are copied byte for byte. Knows neither recipes nor resident models.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..parents.headers import INDEX, WEIGHTS, is_plain_name
from ..parents.parent_set import BASE, ParentSet

try:
    import fcntl
except ImportError:  # Windows: drafts of killed processes stay
    fcntl = None
__all__ = ["ExportError", "Weight", "check_goal", "shard_bytes", "tensor_digest", "write_model"]
CONFIG = "config.json"
# Files to copy from the base's directory if they exist, beside those of its tokenizer.
_KEPT = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("image_processor_config.json", "video_preprocessor_config.json"),
    *("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*"),
)
_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8"},
    torch.bool: "BOOL",
}
"""torch's dtypes and their names in safetensors files."""
FLOATS = {name: dtype for dtype, name in _DTYPES.items() if dtype.is_floating_point}
"""Floating dtypes by their names in safetensors files."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B", re.IGNORECASE)


class ExportError(ValueError):
    """A directory that cannot be written as requested; one line with the remedy."""


@dataclass(frozen=True)
class Weight:
    """A tensor to write, whose values are made later.

    ``make`` is called once and returns a tensor of this shape and dtype, on any device.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """Return the size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_model(
    goal: Path | str,
    weights: Sequence[Weight],
    parents: ParentSet,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    texts: Mapping[str, str] | None = None,
    record: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> Path:
    """Write a model directory that transformers and vLLM load.

    Files are written into a draft beside the goal, which is renamed when it is complete. Drafts of
    this goal by dead processes are removed.

    Args:
        goal: The directory to create; it may exist if it is empty.
        weights: In the order in which they are made and put into shards.
        parents: Its base gives the settings, the tokenizer and the licences.
        dtype: Dtype for config.json; None keeps the base's.
        max_shard_size: Largest weight file, as in transformers ("5GB", decimal).
        texts: File name -> text, written beside the weights; they replace files of the base.
        record: Takes tensor name -> SHA-256 of its bytes, hex, and returns more such texts.
        verify: Called with the complete draft; an exception cancels the export.

    Returns:
        The directory, absolute.

    Raises:
        ExportError: If ``goal`` is taken, the disk is too full, or a file name would leave it.
        OSError: If writing fails; ``goal`` is then as it was.
    """
    goal = Path(goal).absolute()
    limit = shard_bytes(max_shard_size)
    check_goal(goal)
    texts = dict(texts or {})
    _check_names(texts)
    with _draft(goal) as draft:
        _check_space(draft, sum(weight.n_bytes for weight in weights))
        digests = _write_weights(draft, weights, limit)
        _write_settings(draft, parents, dtype)
        _keep_files(draft, parents)
        more = dict(record(digests)) if record is not None else {}
        _check_names(more)
        for name, text in (texts | more).items():
            (draft / name).write_text(text, encoding="utf-8")
        _open_to_readers(draft)
        if verify is not None:
            verify(draft)
        draft.replace(goal)
    return goal


def check_goal(out: Path | str) -> None:
    """Refuse a directory that `write_model` would refuse, before anything is computed.

    Raises:
        ExportError: If `out` is a file, a link, a directory that is not empty, or inside one that
            cannot be written to.
    """
    goal = Path(out).absolute()
    root = next(path for path in goal.parents if os.access(path, os.F_OK))
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        raise ExportError(
            f"{goal} cannot be created: {root} is not a directory that can be written to; give "
            f"another name"
        )
    if goal.is_symlink():
        raise ExportError(f"{goal} is a symbolic link; give the directory's own path")
    if goal.exists() and not goal.is_dir():
        raise ExportError(f"{goal} is a file; give the name of a directory to create")
    if goal.is_dir() and any(goal.iterdir()):
        raise ExportError(
            f"{goal} exists and is not empty, nothing is overwritten; give another name or "
            f"remove it"
        )


def shard_bytes(size: str) -> int:
    """Return the bytes of a size as in transformers: "5GB" is 5e9, "5GiB" 5 * 2**30.

    Raises:
        ExportError: If it is not a size, or 0.
    """
    match = _SIZE.fullmatch(size.strip())
    if match is not None:
        number, unit, binary = match.groups()
        power = "KMGT".index(unit.upper()) + 1 if unit else 0
        n_bytes = round(float(number) * (1024 if binary else 1000) ** power)
        if n_bytes:
            return n_bytes
    raise ExportError(f"`max_shard_size` must be a size such as `5GB` or `500MB`, got `{size}`")


def _check_names(texts: Mapping[str, str]) -> None:
    for name in texts:
        if not is_plain_name(name) or name in (CONFIG, INDEX) or name.endswith(".safetensors"):
            raise ExportError(
                f"an extra file needs a plain name of its own, got {name!r}; rename it"
            )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"the weights take {needed / 1e9:.2f} GB, the disk of {folder.parent} has "
            f"{free / 1e9:.2f} GB free; make room or write elsewhere"
        )


@contextlib.contextmanager
def _draft(goal: Path) -> Iterator[Path]:
    """Yield a new folder beside the goal; remove it at the end unless it was renamed."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(goal)
    draft = Path(tempfile.mkdtemp(prefix=_prefix(goal), dir=goal.parent))
    lock = _lock(draft)
    try:
        draft.chmod(0o755)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _prefix(goal: Path) -> str:
    return f".{goal.name}.draft-"


def _lock(folder: Path) -> int | None:
    """Lock a folder for the lifetime of this process; None if it is locked or cannot be."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_stale(goal: Path) -> None:
    for path in goal.parent.iterdir():
        if path.name.startswith(_prefix(goal)) and path.is_dir() and not path.is_symlink():
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _write_weights(folder: Path, weights: Sequence[Weight], limit: int) -> dict[str, str]:
    """Write the weight files; return the SHA-256 of each tensor's bytes."""
    shards = _shards(weights, limit)
    if len(shards) == 1:
        return _write_shard(folder / WEIGHTS, shards[0])
    weight_map, digests = {}, {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        digests |= _write_shard(folder / name, shard)
        weight_map |= {weight.name: name for weight in shard}
    sizes = {
        "total_parameters": sum(torch.Size(weight.shape).numel() for weight in weights),
        "total_size": sum(weight.n_bytes for weight in weights),
    }
    index = {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return digests


def _shards(weights: Sequence[Weight], limit: int) -> list[list[Weight]]:
    """Fill shards in order; a tensor above the limit has its own shard."""
    shards: list[list[Weight]] = [[]]
    filled = 0
    for weight in weights:
        if shards[-1] and filled + weight.n_bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += weight.n_bytes
    return shards


def _write_shard(path: Path, weights: Sequence[Weight]) -> dict[str, str]:
    """One safetensors file (its README, "Format"): header length, header, data without gaps."""
    weights = sorted(weights, key=lambda weight: -weight.dtype.itemsize)  # keeps data aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        begin, end = end, end + weight.n_bytes
        header[weight.name] = {
            "dtype": _DTYPES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        digests = {weight.name: _write_tensor(file, weight) for weight in weights}
        file.flush()
        os.fsync(file.fileno())
    return digests


def _write_tensor(file: BinaryIO, weight: Weight) -> str:
    data = _bytes(weight)
    file.write(data)
    return hashlib.sha256(data).hexdigest()


def tensor_digest(weight: Weight) -> str:
    """Return the SHA-256, hex, of a tensor's bytes in a weight file."""
    return hashlib.sha256(_bytes(weight)).hexdigest()


def _bytes(weight: Weight) -> memoryview:
    tensor = weight.make()
    assert (tuple(tensor.shape), tensor.dtype) == (weight.shape, weight.dtype), weight
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _write_settings(folder: Path, parents: ParentSet, dtype: torch.dtype | None) -> None:
    settings = json.loads((parents.folders[BASE] / CONFIG).read_bytes())
    _set_vocabulary(settings, parents.config)
    if dtype is not None:
        _set_dtype(settings, str(dtype).removeprefix("torch."))
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _set_vocabulary(settings: dict[str, Any], merged: Mapping[str, Any]) -> None:
    # Multimodal models have the language model's settings in `text_config`.
    places = ((settings, merged), (settings.get("text_config"), merged.get("text_config")))
    for ours, theirs in places:
        if isinstance(ours, dict) and isinstance(theirs, Mapping) and "vocab_size" in theirs:
            size = theirs["vocab_size"]
            if ours.get("vocab_size", size) != size:
                ours["vocab_size"] = size


def _set_dtype(settings: dict[str, Any], dtype: str) -> None:
    # Before transformers 5 the key was `torch_dtype`; parts may have their own.
    keys = [key for key in ("dtype", "torch_dtype") if key in settings]
    settings.update(dict.fromkeys(keys or ["dtype"], dtype))
    for part in settings.values():
        if isinstance(part, dict):
            part.update({key: dtype for key in ("dtype", "torch_dtype") if key in part})


def _keep_files(folder: Path, parents: ParentSet) -> None:
    base = parents.folders[BASE]
    for pattern in _KEPT:
        for path in sorted(base.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    for name, content in parents.tokenizer_files().items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, folder / name)
        else:
            shutil.copyfile(content, folder / name)


def _open_to_readers(folder: Path) -> None:
    # Copies keep the mode of their source; all get that of an ordinary new file.
    mode = (folder / CONFIG).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
