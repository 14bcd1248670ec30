"""Safetensors headers and JSON files of a model directory, checked before any weight is read.

Files come from strangers: sizes are bounded, names may not leave the directory, nothing is pickle.
Every fault is one line that names the file and the remedy. Source of the format: the safetensors
README, "Format". Knows no architectures.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open

MAX_JSON_BYTES = 100_000_000
"""Largest header and largest JSON file that is read: the header limit of the safetensors library,
and three times the largest tokenizer.json in use (Gemma 3: 33 MB)."""
MAX_DIMENSIONS = 16
"""More than any published weight has; keeps the product of a hostile shape small."""
MAX_MESSAGE = 1000
"""Characters of one error line: tensor names come from the file and may be megabytes long."""
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
        """Escape what a hostile name could bring: line ends, control characters, sheer length."""
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
        """Number of entries N."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.n_entries * _WIDTHS[self.dtype]

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
    _check_index(who, weight_map, headers)
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _no_weights(who: str, folder: Path) -> str:
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
    """Whether a file name stays in the directory it is joined to."""
    return name not in ("", "..") and PurePath(name).name == name and not {"\\", "\0"} & set(name)


def read_json(who: str, path: Path, *, is_strict: bool = False) -> dict[str, Any]:
    """A JSON object from a model directory.

    Args:
        who: "base" or "parent <name>", for messages.
        path: The file, of `MAX_JSON_BYTES` at most.
        is_strict: Also refuse what JSON forbids and Python reads: doubled names, NaN, not UTF-8.

    Raises:
        ParentError: The file is missing, unreadable, too large or no JSON object.
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
        reason = str(error).splitlines()[0]
        raise ParentError(f"{who}: {path} is not valid JSON ({reason}); {again}") from None
    if not isinstance(data, dict):
        raise ParentError(f"{who}: {path} must hold a JSON object; {again}")
    return data


def _strict_json(raw: bytes) -> Any:
    return json.loads(
        raw.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_no_constant
    )


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        doubled = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {doubled[:80]!r} stands twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def read_header(who: str, path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, from its header alone.

    Raises:
        ParentError: Truncated file, broken or huge header, doubled names, sizes that contradict
            shapes, tensors that overlap or leave holes; all that the library itself refuses.
    """
    try:
        text, data_bytes = _header_text(who, path)
    except OSError as error:
        raise ParentError(f"{who}: cannot read {path} ({error.strerror}); fetch it again") from None
    try:
        header = _strict_json(text)
        header.pop("__metadata__", None)
        infos, spans = _parse_entries(who, path, header)
        _check_spans(who, path, spans, data_bytes)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(infos)
    except ParentError:
        raise
    except (
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError),
        SafetensorError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise ParentError(
            f"{who}: {path} has a corrupt header ({reason}); fetch it again"
        ) from None
    return infos


def _header_text(who: str, path: Path) -> tuple[bytes, int]:
    # The header's bytes, and how many bytes of weights follow it.
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if length < 2 or length > MAX_JSON_BYTES or length > size - 8:
            raise ParentError(
                f"{who}: {path} is no complete safetensors file (header of {length} bytes in a "
                f"file of {size}); fetch it again"
            )
        return file.read(length), size - 8 - length


def _parse_entries(
    who: str, path: Path, header: Mapping[str, Any]
) -> tuple[dict[str, TensorInfo], list[tuple[int, int, str]]]:
    infos, spans = {}, []
    for name, entry in header.items():
        shape = tuple(_whole_numbers(entry["shape"]))
        begin, end = _whole_numbers(entry["data_offsets"])
        info = TensorInfo(shape, str(entry["dtype"]), path)
        if info.dtype not in _WIDTHS:
            raise ParentError(
                f"{who}: tensor {name} in {path} has dtype {info.dtype}, which cannot be merged; "
                f"save the model in bfloat16, float16 or float32"
            )
        if end - begin != info.n_bytes:
            raise ParentError(
                f"{who}: tensor {name} in {path} claims shape {shape} {info.dtype} but "
                f"{end - begin} bytes; fetch the file again"
            )
        infos[name] = info
        spans.append((begin, end, name))
    return infos, spans


def _whole_numbers(values: Any) -> Iterable[int]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"a shape must be a list of at most {MAX_DIMENSIONS} whole numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"{str(value)[:40]} is no size in [0, 2**63)")
    return values


def _check_spans(who: str, path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    # The format's law: sorted by offset, tensors cover the data without holes or overlaps.
    covered = 0
    for begin, end, name in sorted(spans):
        if begin != covered:
            fault = "overlaps another one" if begin < covered else f"leaves a hole at {covered}"
            raise ParentError(
                f"{who}: tensor {name} in {path} {fault} (bytes {begin} to {end}); fetch the file "
                f"again"
            )
        covered = end
    if covered > data_bytes:
        raise ParentError(
            f"{who}: {path} is truncated: its header promises {covered} bytes of weights, "
            f"{data_bytes} are there; fetch it again"
        )
    if covered < data_bytes:
        raise ParentError(
            f"{who}: {path} holds {data_bytes} bytes of weights, its header names {covered}; "
            f"fetch it again"
        )
