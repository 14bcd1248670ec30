"""Safetensors headers: where the tensors of a model directory lie, checked before any is read.

Only headers are read here, never weights and never pickle. Every fault is one line that names the
file and the remedy. Source of the format: the safetensors README, "Format".
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library itself."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

FLOAT_DTYPES = MappingProxyType({"F16": 2, "BF16": 2, "F32": 4, "F64": 8})
"""Dtypes that can be merged, with bytes per entry."""

WHOLE_DTYPES = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
)
"""Dtypes that are copied and must be equal in base and parents, with bytes per entry."""


class ParentError(ValueError):
    """A base or parent that cannot be merged; one line: who, which tensor or file, what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and safetensors dtype of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def n_entries(self) -> int:
        """Number of entries N."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether the tensor is merged (floating point) rather than copied."""
        return self.dtype in FLOAT_DTYPES


def read_tensors(who: str, folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model directory, sharded or not, by name.

    Args:
        who: "base" or "parent <name>", for messages.
        folder: A Hugging Face model directory.

    Raises:
        ParentError: No such directory, no safetensors, or files that contradict each other.
    """
    if not folder.is_dir():
        raise ParentError(
            f"{who}: no directory {folder}; give the path of a Hugging Face model directory"
        )
    if (folder / WEIGHTS).is_file():
        return read_header(who, folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise ParentError(_no_weights(who, folder))
    weight_map = _read_index(who, folder)
    headers = {name: read_header(who, folder / name) for name in sorted(set(weight_map.values()))}
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise ParentError(
                f"{who}: {INDEX} puts tensor {tensor} in {name}, which does not hold it; "
                f"fetch the directory again"
            )
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _no_weights(who: str, folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            f"{who}: {folder} holds a LoRA adapter, not a model; merge it into its base first "
            f"(peft's merge_and_unload) and save that"
        )
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
        p.name for p in folder.glob("*.pt*")
    )
    if pickles:
        return (
            f"{who}: {folder} has only pickled weights ({pickles[0]}), which are never read since "
            f"they can run code; save it again with save_pretrained, which writes {WEIGHTS}"
        )
    return f"{who}: no {WEIGHTS} nor {INDEX} in {folder}; save the model there with save_pretrained"


def _read_index(who: str, folder: Path) -> dict[str, str]:
    index = read_json(who, folder / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ParentError(f"{who}: {INDEX} has no weight_map; fetch the directory again")
    for tensor, name in weight_map.items():
        # Lexical: shards may be links (the hub's cache is made of them), names may not leave.
        if not isinstance(name, str) or not is_plain_name(name):
            raise ParentError(
                f"{who}: {INDEX} puts tensor {tensor} in {str(name)!r}, outside its directory; "
                f"do not trust this model, or fetch it again from its source"
            )
        if not (folder / name).is_file():
            raise ParentError(f"{who}: shard {name} is missing in {folder}; fetch it again")
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether a file name stays in the directory it is joined to."""
    return name not in ("", "..") and PurePath(name).name == name and "\\" not in name


def read_json(who: str, path: Path) -> dict[str, Any]:
    """A JSON object from a model directory; ParentError where it is missing or broken."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ParentError(
            f"{who}: no {path.name} in {path.parent}; fetch the directory again"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ParentError(
            f"{who}: {path} is not valid JSON ({reason}); fetch the directory again"
        ) from None
    if not isinstance(data, dict):
        raise ParentError(f"{who}: {path} must hold a JSON object; fetch the directory again")
    return data


def read_header(who: str, path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, from its header alone.

    Raises:
        ParentError: Truncated file, broken or huge header, sizes that contradict shapes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if length < 2 or length > MAX_HEADER_BYTES or length > size - 8:
            raise ParentError(
                f"{who}: {path} is no complete safetensors file (header of {length} bytes in a "
                f"file of {size}); fetch it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return _parse_entries(who, path, header, size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ParentError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ParentError(
            f"{who}: {path} has a corrupt header ({reason}); fetch it again"
        ) from None


def _parse_entries(
    who: str, path: Path, header: Mapping[str, Any], data_bytes: int
) -> dict[str, TensorInfo]:
    tensors = {}
    end_of_data = 0
    for name, entry in header.items():
        info = TensorInfo(tuple(int(n) for n in entry["shape"]), str(entry["dtype"]), path)
        begin, end = (int(n) for n in entry["data_offsets"])
        width = {**FLOAT_DTYPES, **WHOLE_DTYPES}.get(info.dtype)
        if width is None:
            raise ParentError(
                f"{who}: tensor {name} in {path} has dtype {info.dtype}, which cannot be merged; "
                f"save the model in bfloat16, float16 or float32"
            )
        if begin < 0 or end - begin != info.n_entries * width or min(info.shape, default=0) < 0:
            raise ParentError(
                f"{who}: tensor {name} in {path} claims shape {info.shape} {info.dtype} but "
                f"{end - begin} bytes; fetch the file again"
            )
        end_of_data = max(end_of_data, end)
        tensors[name] = info
    if end_of_data > data_bytes:
        raise ParentError(
            f"{who}: {path} is truncated: its header promises {end_of_data} bytes of weights, "
            f"{data_bytes} are there; fetch it again"
        )
    return tensors
