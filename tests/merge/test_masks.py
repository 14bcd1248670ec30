"""Masks: nested, the same however cut, the right share, indices beyond 2**32."""

import math

import numpy as np
import pytest
import torch
from heterosis.merge.masks import mixed, stream_keys, threshold
from hypothesis import given, settings
from hypothesis import strategies as st

from .reference import uniform

STREAM = {"mask_seed": 7, "tensor": "model.layers.0.mlp.up_proj.weight", "parent": "a"}
N = 1 << 18


def random_bits(start: int, count: int, **stream) -> torch.Tensor:
    """Bits of a run of entries at any flat index."""
    places = [divmod(k, 2**32) for k in range(start, start + count)]
    keys = {high: stream_keys(high=high, **{**STREAM, **stream}) for high, _ in places}
    low = torch.tensor([k - 2**32 * (k >= 2**31) for _, k in places], dtype=torch.int32)
    table = torch.tensor([keys[high] for high, _ in places], dtype=torch.int32)
    return mixed(low, table[:, 0]) * table[:, 1]


def keep_mask(rate: float, start: int, count: int, **stream) -> torch.Tensor:
    return random_bits(start, count, **stream) >= threshold(rate)


def numbers(start: int, count: int, **stream) -> np.ndarray:
    bits = random_bits(start, count, **stream)
    return (bits.numpy().astype(np.float64) + 2**31) / 2**32


@pytest.mark.parametrize("start", [0, 2**31 - 3, 2**32 - 3, 2**32, 5 * 2**32 + 2**31 - 2, 2**45])
def test_numbers_equal_a_python_loop_at_any_index(start):
    expected = [uniform(start + k, **STREAM) for k in range(7)]
    assert numbers(start, 7).tolist() == expected


def test_high_word_of_the_index_matters():
    low, high = numbers(0, 1000), numbers(2**32, 1000)
    assert not np.any(low == high)
    assert abs(np.corrcoef(low, high)[0, 1]) < 5 / math.sqrt(1000)


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
