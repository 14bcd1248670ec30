"""Hostile files: whatever is changed in one, it opens as what it says or is refused in one line.

The judge of safetensors files is the safetensors library itself. Any other exception than
ParentError, and any message that is not one printable line, fails.
"""

import json
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from heterosis.merge.parents.headers import MAX_MESSAGE, ParentError, read_header
from heterosis.merge.parents.parent_set import ParentSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.families import tiny_family

from .conftest import Family

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
fuzz = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [24, 24]}
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "f32", ""]


def allowed(run: Callable[[], Any]) -> Any:
    """What `run` gives, or None where it refuses as it should."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except ParentError as error:
        message = str(error)
        assert message.isprintable()
        assert 20 < len(message) < MAX_MESSAGE + 50
        return None


def library(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs)]
    return torch.equal(*flat)


# ---- safetensors --------------------------------------------------------------------------------


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header of a file of 24 bytes of weights: well-formed JSON, sense or nonsense."""
    entries: dict[str, Any] = {
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    }
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(["a", "b", "c", "__metadata__"]) | st.text(max_size=4))
        kind = draw(st.integers(0, 5))
        old = entries.get(name)
        entry = dict(old) if isinstance(old, dict) else dict(EMPTY)
        if kind == 0:
            entries[name] = draw(JSON)
            continue
        if kind == 1:
            entries.pop(name, None)
            continue
        field = ["dtype", "shape", "data_offsets", "more"][kind - 2]
        likely = st.sampled_from(DTYPES) if field == "dtype" else st.lists(NUMBERS, max_size=3)
        entry[field] = draw(likely | JSON)
        entries[name] = entry
    return json.dumps(entries).encode()


@fuzz
@given(
    headers(), st.sampled_from([24, 24, 24, 0, 23, 25]), st.sampled_from([b"", b"  ", b"\0", b"}"])
)
def test_headers(tmp_path, header, n_bytes, tail):
    path = tmp_path / WEIGHTS
    header += tail
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(n_bytes)))
    infos = allowed(lambda: read_header("base", path))
    if infos is not None:
        tensors = library(path)
        assert {name: info.shape for name, info in infos.items()} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        assert all(info.n_bytes == tensors[name].nbytes for name, info in infos.items())


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, int, bytes]]:
    """Places, in 1/10000 of a file, and what happens there."""
    kinds = st.sampled_from(["set", "set", "insert", "cut", "end"])
    return draw(
        st.lists(
            st.tuples(kinds, st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), max_size=4
        )
    )


def edited(raw: bytes, changes: list[tuple[str, int, bytes]], reach: int) -> bytes:
    for kind, place, data in changes:
        at = min(place * reach // 10_000, len(raw))
        if kind == "end":
            raw = raw[:at]
        elif kind == "cut":
            raw = raw[:at] + raw[at + len(data) :]
        else:
            raw = raw[:at] + data + raw[at + (len(data) if kind == "set" else 0) :]
    return raw


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """One layer, a base and two parents."""
    return tiny_family(tmp_path_factory.mktemp("small"), n_layers=1)


@pytest.fixture
def spoiled(small: Family, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small["a"], tmp_path / "a"))


def open_and_read(base: Path, folder: Path, **options: Any) -> dict[str, torch.Tensor] | None:
    def run() -> dict[str, torch.Tensor]:
        parents = ParentSet.open(base, {"a": folder}, **options)
        return {name: parents.tensor("a", name) for name in parents.tensors}

    return allowed(run)


@fuzz
@given(edits(), st.sampled_from([1, 1, 10]))
def test_bytes_of_weights(small, spoiled, changes, share):
    good = (small["a"] / WEIGHTS).read_bytes()
    reach = len(good) if share == 1 else 8 + struct.unpack("<Q", good[:8])[0]
    path = spoiled / WEIGHTS
    path.unlink(missing_ok=True)  # a new file: the old one may be mapped still
    path.write_bytes(edited(good, changes, reach))
    found = open_and_read(small["base"], spoiled)
    if found is not None:
        expected = library(path)
        assert found.keys() == expected.keys()
        assert all(same(tensor, expected[name]) for name, tensor in found.items())


@fuzz
@given(
    st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2, 10**8, 10**8 + 1]), st.binary(max_size=40)
)
def test_any_few_bytes(tmp_path, length, rest):
    path = tmp_path / WEIGHTS
    path.write_bytes(struct.pack("<Q", length) + rest)
    assert allowed(lambda: read_header("base", path)) in (None, {})


# ---- JSON files ---------------------------------------------------------------------------------


def places(data: Any, prefix: tuple = ()) -> list[tuple]:
    """Paths to all values of a JSON document, at most eight per list or object."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in list(items)[:8] if len(data) > 60 else items:
        found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += places(value, (*prefix, key))
    return found


def change(data: Any, path: tuple, value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    if value is ...:
        del data[path[-1]]
    else:
        data[path[-1]] = value


def spoil(source: Path, target: Path, draw: st.DataObject) -> None:
    """Change one to three values of a JSON file, or its bytes."""
    if draw.draw(st.integers(0, 4)) == 0:
        good = source.read_bytes()
        target.write_bytes(edited(good, draw.draw(edits()), len(good)))
        return
    data = json.loads(source.read_text())
    for _ in range(draw.draw(st.integers(1, 3))):
        path = draw.draw(st.sampled_from(places(data) or [()]))
        if path:
            change(data, path, draw.draw(st.just(...) | JSON))
    target.write_text(json.dumps(data))


@fuzz
@given(st.data(), st.booleans())
def test_settings(small, spoiled, data, required):
    spoil(small["a"] / "config.json", spoiled / "config.json", data)
    open_and_read(small["base"], spoiled, architecture_required=required)


@fuzz
@given(st.data(), st.sampled_from([None, "base", "union"]), st.sampled_from(["base", "a"]))
def test_tokenizers(small, tmp_path, data, policy, owner):
    folder = tmp_path / owner
    if not folder.exists():
        shutil.copytree(small[owner], folder)
    spoil(small[owner] / "tokenizer.json", folder / "tokenizer.json", data)
    pair = {**small, owner: folder}
    open_and_read(pair["base"], pair["a"], tokenizer=policy)


@fuzz
@given(st.data())
def test_indices(sharded, tmp_path, data):
    folder = tmp_path / "a"
    if not folder.exists():
        shutil.copytree(sharded["a"], folder)
    spoil(sharded["a"] / INDEX, folder / INDEX, data)
    found = open_and_read(sharded["base"], folder)
    if found is not None:
        expected = {}
        for file in folder.glob("model-*.safetensors"):
            expected |= library(file)
        assert all(same(tensor, expected[name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def adapter(small: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    config = {
        **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False},
        **{"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 1.5}, "use_dora": False},
        **{
            "base_model_name_or_path": str(small["base"]),
            "init_lora_weights": True,
            "bias": "none",
        },
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
    layer, state = "base_model.model.model.layers.0.self_attn.", {}
    for name, rank, n_out in (("q_proj", 2, 32), ("v_proj", 3, 16)):
        state[f"{layer}{name}.lora_A.weight"] = torch.ones(rank, 32)
        state[f"{layer}{name}.lora_B.weight"] = torch.ones(n_out, rank)
    save_file(state, out / "adapter_model.safetensors")
    return out


@fuzz
@given(st.data())
def test_adapters(small, adapter, tmp_path, data):
    folder = tmp_path / "lora"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").unlink(missing_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder)
    if data.draw(st.booleans()):
        spoil(adapter / "adapter_config.json", folder / "adapter_config.json", data)
    else:
        good = (adapter / "adapter_model.safetensors").read_bytes()
        reach = 8 + struct.unpack("<Q", good[:8])[0]
        bad = edited(good, data.draw(edits()), reach)
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors").write_bytes(bad)
    open_and_read(small["base"], folder)


def test_the_unspoiled_files_open(small, sharded, adapter):
    assert open_and_read(small["base"], small["a"])
    assert open_and_read(sharded["base"], sharded["a"])
    assert open_and_read(small["base"], adapter)
