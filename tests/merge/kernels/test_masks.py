"""Masks: nested, the same however cut, the right share, independent, indices beyond 2**32."""

import math

import numpy as np
import pytest
import torch
from heterosis.merge.kernels.masks import (
    CHUNK,
    REGION,
    chunk_word,
    hashed_places,
    shared_bits,
    stream_keys,
    threshold,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ..reference import uniform

STREAM = {"mask_seed": 7, "tensor": "model.layers.0.mlp.up_proj.weight", "parent": "a"}
N = 1 << 18


def random_bits(start: int, count: int, **stream) -> torch.Tensor:
    """Bits of a run of entries at any flat index."""
    places = [divmod(k, REGION) for k in range(start, start + count)]
    keys = {region: stream_keys(region=region, **{**STREAM, **stream}) for region, _ in places}
    hashed = hashed_places(torch.tensor([place for _, place in places], dtype=torch.int32))
    table = torch.tensor([keys[region] for region, _ in places], dtype=torch.int32)
    return shared_bits(hashed, table[:, 0]) * table[:, 1]


def keep_mask(rate: float, start: int, count: int, **stream) -> torch.Tensor:
    return random_bits(start, count, **stream) >= threshold(rate)


def numbers(start: int, count: int, **stream) -> np.ndarray:
    bits = random_bits(start, count, **stream)
    return (bits.numpy().astype(np.float64) + 2**31) / 2**32


STARTS = [0, CHUNK - 3, REGION - 3, REGION, 2**32 - 3, 5 * 2**32 + 7 * CHUNK - 2, 2**45]


@pytest.mark.parametrize("start", STARTS)
def test_numbers_equal_a_python_loop_at_any_index(start):
    expected = [uniform(start + k, **STREAM) for k in range(7)]
    assert numbers(start, 7).tolist() == expected


def test_the_word_of_a_chunk_stands_for_its_places():
    first = torch.arange(5, dtype=torch.int32)
    for chunk in (0, 1, 2, 700, REGION // CHUNK - 1):
        there = hashed_places(first + chunk * CHUNK)
        assert torch.equal(there, hashed_places(first) ^ chunk_word(chunk))


def test_chunks_and_regions_have_numbers_of_their_own():
    starts = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 26 * CHUNK, REGION, REGION + CHUNK, 2**32]
    runs = np.stack([numbers(start, 30_000) for start in starts])
    for rate in (0.1, 0.5, 0.9):
        correlations = np.corrcoef(runs >= rate) - np.eye(len(starts))
        assert np.abs(correlations).max() < 5 / math.sqrt(30_000)
    lagged = [np.corrcoef(runs[0][lag:], runs[0][:-lag])[0, 1] for lag in (1, 2, 3, 16, 64, 576)]
    assert np.abs(lagged).max() < 5 / math.sqrt(29_000)


@given(
    st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(0, 2**64 - 1)
)
@settings(max_examples=50, deadline=None)
def test_masks_are_nested(one, other, seed):
    low, high = sorted((one, other))
    stream = {**STREAM, "mask_seed": seed}
    kept_low, kept_high = keep_mask(low, 0, 4000, **stream), keep_mask(high, 0, 4000, **stream)
    assert not torch.any(kept_high & ~kept_low)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_share_kept_and_rescaled_expectation(rate):
    kept = keep_mask(rate, 0, N).double()
    error = math.sqrt(rate * (1 - rate) / N)  # standard error of a share
    assert abs(float(kept.mean()) - (1 - rate)) <= 4 * error
    delta = torch.randn(N, generator=torch.Generator().manual_seed(1)).double()
    rescaled = float((delta * kept / (1 - rate)).mean())
    spread = math.sqrt(rate / (1 - rate) / N)  # standard error of the mean over masks
    assert abs(rescaled - float(delta.mean())) <= 4 * spread


def test_rate_zero_keeps_all_and_the_highest_rate_almost_none():
    assert bool(keep_mask(0.0, 0, N).all())
    assert int(keep_mask(math.nextafter(1.0, 0.0), 0, N).sum()) <= 1


def test_streams_are_independent_and_numbers_flat():
    streams = [
        numbers(0, N),
        numbers(0, N, mask_seed=8),
        numbers(0, N, parent="b"),
        numbers(0, N, tensor="model.layers.1.mlp.up_proj.weight"),
        numbers(1, N),  # neighbours
    ]
    limit = 5 / math.sqrt(N)
    correlations = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlations).max() < limit
    for stream in streams:
        counts = np.histogram(stream, bins=64, range=(0, 1))[0]
        chi_square = float(((counts - N / 64) ** 2 / (N / 64)).sum())
        assert chi_square < 63 + 6 * math.sqrt(2 * 63)


def test_names_do_not_run_together():
    one = random_bits(0, 4, mask_seed=1, tensor="ab", parent="c")
    other = random_bits(0, 4, mask_seed=1, tensor="a", parent="bc")
    assert not torch.equal(one, other)
