"""Read safetensors headers and JSON files of a model directory, before any weight.

Files are untrusted: sizes are bounded, names may not leave the directory, pickles are never read.
Every error is one line that names the file and the remedy. Source of the format: the safetensors
README, "Format". Knows no architectures.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open

from ..hints import reason

MAX_JSON_BYTES = 100_000_000
"""Largest JSON file or header that is read: the header limit of the safetensors library, and three
times the largest tokenizer.json in use (Gemma 3: 33 MB)."""
MAX_MESSAGE = 1000
"""Characters of one error line: tensor names come from the file and may be megabytes long."""
BASE = "base"
"""The name of the base in digests and messages; no parent may have it."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_DTYPES = MappingProxyType({"F16": 2, "BF16": 2, "F32": 4, "F64": 8})
"""Dtypes that can be merged, with bytes per entry."""
WHOLE_DTYPES = MappingProxyType(
    {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
)
"""Dtypes that are copied and must be equal in base and parents, with bytes per entry."""
_WIDTHS = {**FLOAT_DTYPES, **WHOLE_DTYPES}


class ParentError(ValueError):
    """A base or parent that cannot be merged; one line: who, which tensor or file, what to do."""

    def __init__(self, message: str) -> None:
        """Escape line ends and control characters of hostile names, and limit the length."""
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in message
        )
        if len(line) > MAX_MESSAGE:
            line = f"{line[: MAX_MESSAGE * 2 // 3]} ... {line[-MAX_MESSAGE // 3 :]}"
        super().__init__(line)


@dataclass(frozen=True)
class TensorInfo:
    """Shape and safetensors dtype of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def n_entries(self) -> int:
        """Return the number of entries N."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Return the size of the tensor in bytes."""
        return self.n_entries * _WIDTHS[self.dtype]

    @property
    def is_floating(self) -> bool:
        """Whether the tensor is merged (floating point) rather than copied."""
        return self.dtype in FLOAT_DTYPES


def who_is(owner: str) -> str:
    """Return how messages name the base or a parent."""
    return owner if owner == BASE else f"parent {owner}"


def read_tensors(who: str, folder: Path) -> dict[str, TensorInfo]:
    """Read the tensors of a model directory, sharded or not, by name.

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
    _check_index(who, weight_map, headers)
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _no_weights(who: str, folder: Path) -> str:
    pickles = [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]
    if pickles:
        return (
            f"{who}: {folder} has only pickled weights ({pickles[0].name}), which are never read "
            f"since they can run code; save it again with save_pretrained, which writes {WEIGHTS}"
        )
    return f"{who}: no {WEIGHTS} nor {INDEX} in {folder}; save the model there with save_pretrained"


def _read_index(who: str, folder: Path) -> dict[str, str]:
    index = read_json(who, folder / INDEX, is_strict=True)
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
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise ParentError(f"{who}: shard {name} is missing in {folder}; fetch it again")
    return weight_map


def _check_index(
    who: str, weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, TensorInfo]]
) -> None:
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise ParentError(
                f"{who}: {INDEX} puts tensor {tensor} in {name}, which does not hold it; "
                f"fetch the directory again"
            )
    for name, header in headers.items():
        for tensor in header:
            if weight_map.get(tensor) != name:
                where = f"puts it in {weight_map[tensor]}" if tensor in weight_map else "omits it"
                raise ParentError(
                    f"{who}: shard {name} holds tensor {tensor}, but {INDEX} {where}; fetch the "
                    f"directory again"
                )


def is_plain_name(name: str) -> bool:
    """Return whether a file name stays in the directory to which it is joined."""
    return name not in ("", "..") and PurePath(name).name == name and not {"\\", "\0"} & set(name)


def read_json(who: str, path: Path, *, is_strict: bool = False) -> dict[str, Any]:
    """Read a JSON object from a model directory.

    Args:
        who: "base" or "parent <name>", for messages.
        path: The file, of `MAX_JSON_BYTES` at most.
        is_strict: Also refuse what JSON forbids but Python reads: duplicate names, NaN, not UTF-8.

    Raises:
        ParentError: The file is missing, unreadable, too large or not a JSON object.
    """
    again = "fetch the directory again"
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ParentError(
                f"{who}: {path} has {size} bytes, at most {MAX_JSON_BYTES} are read; {again}"
            )
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ParentError(f"{who}: no {path.name} in {path.parent}; {again}") from None
    except OSError as error:
        raise ParentError(f"{who}: cannot read {path} ({error.strerror}); {again}") from None
    try:
        data = _strict_json(raw) if is_strict else json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ParentError(f"{who}: {path} is not valid JSON ({reason(error)}); {again}") from None
    if not isinstance(data, dict):
        raise ParentError(f"{who}: {path} must hold a JSON object; {again}")
    return data


def _strict_json(raw: bytes) -> Any:
    return json.loads(
        raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"duplicate name {name[:80]!r}")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON value")


def read_header(who: str, path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of one safetensors file from its header.

    The library checks lengths, offsets, shapes and that tensors cover the file without holes or
    overlaps; it also bounds the header. Of duplicate names it keeps the last, so these
    are checked here.

    Raises:
        ParentError: Not a valid safetensors file, or a dtype that cannot be merged.
    """
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = _strict_json(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ParentError(f"{who}: {path} {_fault(path, error)}; fetch it again") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _WIDTHS:
            raise ParentError(
                f"{who}: tensor {name} in {path} has dtype {entry['dtype']}, which cannot be "
                f"merged; save the model in bfloat16, float16 or float32"
            )
    return {n: TensorInfo(tuple(e["shape"]), e["dtype"], path) for n, e in header.items()}


def _fault(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that safetensors refuses, with its size in bytes."""
    try:
        size, promised = path.stat().st_size, _promised_size(path)
    except OSError:
        return f"is not a valid safetensors file ({reason(error)})"
    if promised is not None and size < promised:
        return f"is truncated: its header promises {promised} bytes, {size} are there"
    sizes = [] if size == promised else [f"{size} bytes are there"]
    if promised is not None and promised < size:
        sizes.append(f"its header promises {promised}")
    return f"is not a valid safetensors file ({', '.join([reason(error), *sizes])})"


def _promised_size(path: Path) -> int | None:
    """Return the size in bytes that a safetensors header promises, None if it cannot be read.

    Of a file cut in its header it is the size up to the header's end.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_JSON_BYTES:
            return None
        header = file.read(length)
    if len(header) < length:
        return 8 + length
    try:
        entries = json.loads(header).items()
        ends = [int(e["data_offsets"][1]) for name, e in entries if name != "__metadata__"]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError, OverflowError):
        return None
    return 8 + length + max(ends, default=0)
