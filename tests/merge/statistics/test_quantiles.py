"""Thresholds are exact: against plain sorts, by sorting and by counting, in any blocks."""

import numpy as np
import pytest
import torch
from heterosis.merge import blocks
from heterosis.merge.statistics import importance, quantiles
from heterosis.merge.statistics import variance as variance_file
from heterosis.merge.statistics.gram import delta_sums
from heterosis.merge.statistics.importance import importance_mask, rank_map
from heterosis.merge.statistics.quantiles import GRID, grid_step, magnitude_grid, order_statistics
from heterosis.merge.statistics.variance import variance, variance_table
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .deltas import DTYPES, deltas_of, tensors


@pytest.fixture(params=[False, True], ids=["sorted", "counted"])
def way(request, monkeypatch):
    """Both ways to find thresholds."""
    if request.param:
        monkeypatch.setattr(quantiles, "SORT_LIMIT", 0)


@pytest.fixture(params=[7, 1000, 1 << 16])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", request.param)


def test_grid_steps_round_and_stay_below_one():
    assert [grid_step(p) for p in (0.0, 0.0004, 0.0006, 0.5, 0.9999)] == [0, 0, 1, 500, 999]


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_rates_outside_the_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"`drop_rate` must be in \[0, 1\), got .*; use 0 to drop"):
        grid_step(rate)


@pytest.mark.parametrize("n", [1, 2, 7, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_grid_is_exact(n, dtype, way):
    base, parent = tensors(n, seed=n, dtype=dtype)
    before = base.clone(), parent.clone()
    grid = magnitude_grid(base, parent)
    ordered = np.sort(np.abs(deltas_of(base, parent)[0]))
    assert grid.dtype == torch.float32
    assert grid.tolist() == [ordered[q * n // GRID] for q in range(GRID)]
    assert torch.equal(base, before[0]) and torch.equal(parent, before[1])


def test_a_rate_drops_its_share_of_entries():
    base, parent = tensors(5000)
    base = torch.zeros_like(base) + torch.arange(5000) / 1e6  # distinct magnitudes
    grid = magnitude_grid(torch.zeros_like(parent), base)
    for q in (0, 1, 100, 500, 999):
        assert int((base < grid[q]).sum()) == q * 5000 // GRID


@pytest.mark.parametrize("value", [0.0, 3.0, 1e-45, 3e38])
def test_equal_magnitudes_share_one_threshold(value, way):
    base, parent = torch.zeros(1234), torch.full((1234,), value)
    parent[::2] *= -1
    assert magnitude_grid(base, parent).tolist() == [float(np.float32(value))] * GRID


def test_no_entries_have_thresholds_of_zero():
    assert magnitude_grid(torch.zeros(0, 3), torch.zeros(0, 3)).tolist() == [0.0] * GRID
    assert rank_map(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)
    assert importance_mask(torch.zeros(3, 0), torch.zeros(3, 0)).shape == (3, 0)
    assert variance_table([torch.zeros(0), torch.zeros(0)])[1].tolist() == [0.0] * GRID


def test_blocks_leave_no_trace(way, block):
    base, first, second = tensors(33, 61, parents=2, dtype=torch.bfloat16)
    ordered = np.sort(np.abs(deltas_of(base, first)[0]), axis=None)
    n = ordered.size
    assert magnitude_grid(base, first).tolist() == [ordered[q * n // GRID] for q in range(GRID)]
    assert torch.equal(rank_map(base, first), slow_ranks(base, first))
    assert close(variance_table([base, first, second]), slow_variances(base, first, second))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=50),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=10),
)
def test_counting_bits_finds_any_float(values, places):
    x = torch.tensor(values, dtype=torch.float32)
    ranks = [place % len(values) for place in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiles, "SORT_LIMIT", 0)
        found = order_statistics(lambda: iter(x.split(7)), len(values), ranks)
    assert found.tolist() == x.sort().values[ranks].tolist()


class Allocations(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if is_tensor(t)
        }
        for made in filter(is_tensor, tree_leaves(out)):
            storage = made.untyped_storage()
            if storage.data_ptr() not in given:
                self.largest = max(self.largest, storage.nbytes())
        return out


def is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


MATRIX, VECTOR = (1 << 13, 1 << 9), (1 << 22,)


@pytest.mark.parametrize(
    ("compute", "shape"),
    [
        pytest.param(lambda t: magnitude_grid(*t[:2]), MATRIX, id="magnitudes"),
        pytest.param(lambda t: rank_map(*t[:2]), MATRIX, id="ranks"),
        pytest.param(lambda t: rank_map(*t[:2]), VECTOR, id="ranks of a vector"),
        pytest.param(lambda t: importance_mask(*t[:2]), MATRIX, id="important"),
        pytest.param(variance_table, MATRIX, id="variances"),
        pytest.param(delta_sums, MATRIX, id="sums"),
    ],
)
def test_no_fact_needs_a_float32_copy_of_a_large_tensor(compute, shape, monkeypatch):
    monkeypatch.setattr(quantiles, "SORT_LIMIT", 1 << 12)
    given = tensors(*shape, parents=2, dtype=torch.bfloat16)
    with Allocations() as allocations:
        compute(given)
    assert allocations.largest < 9 << 20  # a copy would take 16 MiB, a map takes 4 MiB


# Ranks.


def slow_ranks(base: Tensor, parent: Tensor) -> Tensor:
    size = np.abs(deltas_of(base, parent)[0])
    rows = size.reshape(-1, size.shape[-1]) if size.ndim > 1 else size.reshape(1, -1)
    smaller = (rows[:, None, :] < rows[:, :, None]).sum(-1)
    return torch.from_numpy((256 * smaller // rows.shape[1]).astype(np.uint8)).view(base.shape)


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (300,), (4, 1), (3, 700), (2, 3, 5), (2, 2, 3, 4)]
)
@pytest.mark.parametrize("is_long", [False, True])
def test_rank_planes_count_what_is_smaller(shape, is_long, monkeypatch):
    if is_long:
        monkeypatch.setattr(importance, "LONG_ROW", 0)
    base, parent = tensors(*shape, dtype=torch.bfloat16)
    out = rank_map(base, parent)
    assert out.dtype == torch.uint8 and out.shape == shape
    assert torch.equal(out, slow_ranks(base, parent))


def test_equal_magnitudes_share_a_rank():
    base = torch.zeros(1, 8)
    parent = torch.tensor([[1.0, -1.0, 2.0, 0.0, -0.0, 2.0, -2.0, 3.0]])
    assert rank_map(base, parent).tolist() == [[64, 64, 128, 0, 0, 128, 128, 224]]


# Importance.


def slow_importance(base: Tensor, parent: Tensor) -> Tensor:
    x, b = (
        t.double().reshape(-1, t.shape[-1] if t.dim() > 1 else t.numel()) for t in (parent, base)
    )
    p, q = x.softmax(-1), b.softmax(-1)
    importance = (x - b).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered, n = importance.flatten().sort().values, importance.numel()
    first, median, third = (ordered[int(share * (n - 1))] for share in (0.25, 0.5, 0.75))
    return (importance >= median + 1.5 * (third - first)).to(torch.uint8).view(base.shape)


@pytest.mark.parametrize("shape", [(1,), (500,), (40, 60), (3, 5, 70)])
def test_importance_masks_are_those_of_the_formula(shape, way, block):
    base, parent = tensors(*shape, seed=3)
    out = importance_mask(base, parent)
    assert out.dtype == torch.uint8 and out.shape == shape
    assert torch.equal(out, slow_importance(base, parent))


def test_importance_is_of_the_row():
    base = torch.zeros(2, 100)
    parent = base.clone()
    parent[0, :50], parent[1, :50] = 0.01, 0.1
    assert importance_mask(base, parent).sum(1).tolist() == [0, 50]


# Variance over parents.


def slow_variances(base: Tensor, *parents: Tensor) -> Tensor:
    deltas = deltas_of(base, *parents)
    spread = variance([torch.from_numpy(d) for d in deltas]).numpy().ravel()
    ordered = np.sort(spread[spread != 0])
    table = np.zeros((1 + len(parents), GRID))
    for q in range(GRID):
        smallest = ordered[q * ordered.size // GRID] if ordered.size else np.inf
        table[0, q] = smallest if q else 0.0
        is_selected = spread >= table[0, q]
        table[1:, q] = [(d.ravel()[is_selected].astype(np.float64) ** 2).sum() for d in deltas]
    return torch.from_numpy(table)


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.equal(got[0], expected[0]) and torch.allclose(got, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n_parents", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 10, 4000])
def test_variance_tables_are_exact(n, n_parents, way):
    got = tensors(n, parents=n_parents, seed=n, dtype=torch.bfloat16)
    assert close(variance_table(got), slow_variances(*got))


def test_variance_is_that_over_parents():
    deltas = [torch.from_numpy(d) for d in deltas_of(*tensors(1000, parents=4))]
    before = [d.clone() for d in deltas]
    expected = torch.stack(deltas).double().var(0, unbiased=False)
    torch.testing.assert_close(variance(deltas).double(), expected, rtol=1e-5, atol=1e-12)
    assert all(map(torch.equal, deltas, before))


def test_without_variance_nothing_is_selected():
    base = torch.randn(50, generator=torch.Generator().manual_seed(0))
    table = variance_table([base, base + 1, base + 1])
    assert table[0, 0] == 0.0 and table[0, 1:].isinf().all()
    assert (table[1:, 0] > 49).all() and (table[1:, 1:] == 0).all()


def test_sums_of_squares_do_not_depend_on_the_order_of_entries():
    got = tensors(5000, parents=2, dtype=torch.bfloat16)
    shuffled = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(variance_table(got), variance_table([t[shuffled] for t in got]))


@pytest.mark.parametrize("largest", [0.0, 1e-40, 1e-3, 1.0, 60000.0])
def test_whole_numbers_do_not_overflow(largest):
    unit = variance_file._unit(largest, 1 << 30)
    assert (1 << 30) * largest**2 / unit < 2**63 * 0.51
