"""Files of statistics: written atomically, found again, rebuilt where they cannot be trusted."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from heterosis.merge.statistics import cache as cache_file
from heterosis.merge.statistics.cache import StatisticsCache, StatisticsFile, default_folder
from safetensors import safe_open

SHAPES = {"model.a": (3, 5), "model.b": (), "model.c": (0, 2), "model.d": (7,)}
FILE = StatisticsFile("ranks", ("base hash", "parent hash"), SHAPES, torch.float32)


def statistics(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Compute:
    """Counts how often the statistics are computed."""

    def __init__(self, seed: int = 0):
        self.calls, self.seed = 0, seed

    def __call__(self):
        self.calls += 1
        yield from statistics(self.seed).items()


def same(found, seed: int = 0) -> bool:
    expected = statistics(seed)
    return list(found) == list(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.fixture
def written(tmp_path) -> Path:
    """A file of statistics with seed 0."""
    StatisticsCache(tmp_path).get(FILE, Compute())
    return tmp_path / FILE.name


def test_computed_once_and_equal_to_the_bit(tmp_path):
    compute = Compute()
    first = StatisticsCache(tmp_path / "new" / "folder").get(FILE, compute)
    again = StatisticsCache(tmp_path / "new" / "folder").get(FILE, compute)
    assert compute.calls == 1
    assert first and again and same(first) and same(again)
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [FILE.name]


def test_the_file_is_plain_safetensors_that_says_what_it_is(written):
    with safe_open(written, framework="pt") as handle:
        about = handle.metadata()
        assert set(handle.keys()) == set(SHAPES)
    assert about["heterosis_facts"] == cache_file.VERSION
    assert about["kind"] == "ranks" and about["key"] == "base hash parent hash"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    file = StatisticsFile("chosen", ("x",), {"t": (2, 3)}, dtype)
    fact = torch.arange(6).reshape(3, 2).T.to(dtype)  # not contiguous
    for _ in range(2):
        found = StatisticsCache(tmp_path).get(file, lambda: [("t", fact)])
        assert found and torch.equal(found["t"], fact) and found["t"].dtype == dtype


@pytest.mark.parametrize(
    "other",
    [
        StatisticsFile("chosen", FILE.key, SHAPES, torch.float32),
        StatisticsFile("ranks", ("base hash", "another"), SHAPES, torch.float32),
        StatisticsFile("ranks", ("parent hash", "base hash"), SHAPES, torch.float32),
        StatisticsFile("ranks", ("base", "hash parent hash"), SHAPES, torch.float32),
    ],
)
def test_other_kinds_and_keys_are_other_files(written, other):
    assert other.name != FILE.name
    compute = Compute(1)
    found = StatisticsCache(written.parent).get(other, compute)
    assert compute.calls == 1 and found and same(found, 1)
    kept = StatisticsCache(written.parent).get(FILE, compute)
    assert compute.calls == 1 and kept and same(kept)


def spoil_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


SPOILERS = {
    "empty": (lambda p: p.write_bytes(b""), "header is damaged"),
    "foreign": (lambda p: p.write_bytes(b"hello" * 1000), "header is damaged"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:50]), "header is damaged"),
    "cut in the data": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead of"),
    "too long": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes instead of"),
    "bit in the data": (lambda p: spoil_byte(p, -3), "its data are damaged"),
    "bit in the header": (lambda p: spoil_byte(p, 30), "header is damaged"),
    "zeros": (lambda p: p.write_bytes(bytes(p.stat().st_size)), "header is damaged"),
}


@pytest.mark.parametrize("how", SPOILERS)
def test_files_that_cannot_be_trusted_are_rebuilt_with_one_line(written, how, caplog):
    spoil, reason = SPOILERS[how]
    spoil(written)
    compute = Compute()
    found = StatisticsCache(written.parent).get(FILE, compute)
    assert compute.calls == 1 and found and same(found)
    (record,) = caplog.records
    assert f"statistics in {written} are computed again: " in record.getMessage()
    assert reason in record.getMessage()
    caplog.clear()
    assert StatisticsCache(written.parent).get(FILE, compute) and compute.calls == 1
    assert not caplog.records


def test_files_of_another_version_are_rebuilt(written, monkeypatch, caplog):
    monkeypatch.setattr(cache_file, "VERSION", "0")
    compute = Compute()
    StatisticsCache(written.parent).get(FILE, compute)
    assert compute.calls == 1
    assert "another program or version wrote the file" in caplog.text


def test_other_shapes_are_rebuilt(written):
    shapes = {**SHAPES, "model.a": (5, 3)}
    compute = {name: torch.zeros(shape) for name, shape in shapes.items()}.items
    found = StatisticsCache(written.parent).get(
        StatisticsFile("ranks", FILE.key, shapes, FILE.dtype), compute
    )
    assert found and found["model.a"].shape == (5, 3)


def test_what_fails_leaves_nothing_behind(tmp_path):
    def compute():
        yield "model.a", statistics()["model.a"]
        raise ZeroDivisionError("halfway")

    with pytest.raises(ZeroDivisionError, match="halfway"):
        StatisticsCache(tmp_path).get(FILE, compute)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache, compute = StatisticsCache(tmp_path / "file" / "facts"), Compute()
    assert cache.get(FILE, compute) is None and cache.get(FILE, compute) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "statistics cannot be cached in" in record.getMessage()
    assert "they stay in memory for this run, set HETEROSIS_CACHE to a folder" in caplog.text


def test_a_full_disk_is_a_warning_and_leaves_nothing(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_file.os, "fsync", full)
    assert StatisticsCache(tmp_path).get(FILE, Compute()) is None
    assert "(No space left on device)" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_only_readable_still_serves(written, monkeypatch, caplog):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache_file.tempfile, "mkstemp", forbidden)
    cache, compute = StatisticsCache(written.parent), Compute()
    assert cache.get(StatisticsFile("sums", FILE.key, SHAPES, FILE.dtype), compute) is None
    found = cache.get(FILE, compute)
    assert found and same(found)


def test_a_file_that_cannot_be_read_is_rebuilt(written, monkeypatch, caplog):
    written.unlink()
    written.mkdir()  # opening it is an error, replacing it too
    assert StatisticsCache(written.parent).get(FILE, Compute()) is None
    assert "are computed again: [Errno 21]" in caplog.text


def test_facts_in_use_outlive_their_file(written):
    found = StatisticsCache(written.parent).get(FILE, Compute())
    written.unlink()
    StatisticsCache(written.parent).get(FILE, Compute(1))
    assert found and same(found)


def test_many_writers_at_once(tmp_path):
    # Each has a cache of its own, as processes have; nothing but the folder is shared.
    ready = threading.Barrier(4)

    def write(_: int) -> list[bool]:
        seen = []
        for i in range(30):
            file = StatisticsFile("ranks", (str(i),), {"t": (1 << 16,)}, torch.float32)
            ready.wait(timeout=60)
            found = StatisticsCache(tmp_path).get(file, lambda: [("t", torch.ones(1 << 16))])
            seen.append(found is not None and float(found["t"].sum()) == 1 << 16)
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert [all(seen) for seen in pool.map(write, range(4))] == [True] * 4
    assert len(list(tmp_path.iterdir())) == 30


def test_temporary_files_of_the_dead_are_swept(tmp_path):
    old, new = tmp_path / ".ranks-1.x.tmp", tmp_path / ".ranks-2.y.tmp"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    StatisticsCache(tmp_path).get(FILE, Compute())
    assert not old.exists() and new.exists()


def test_where_facts_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HETEROSIS_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "facts"
    monkeypatch.delenv("HETEROSIS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "heterosis" / "facts"
