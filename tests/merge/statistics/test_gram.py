"""Sums over deltas against float64 and whole-number loops, to the bit whatever the steps."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from heterosis.merge.statistics import gram
from heterosis.merge.statistics.gram import (
    CHUNK,
    SMALL_DELTA,
    DeltaSums,
    delta_sums,
    describe,
    describe_model,
    n_sums,
    safe_drop_rate,
)
from torch import Tensor

from .deltas import DTYPES, deltas_of, tensors


def unpacked(given: list[Tensor]) -> DeltaSums:
    row = delta_sums(given)
    assert row.dtype == torch.float64 and row.shape == (n_sums(len(given) - 1),)
    return DeltaSums.unpack(row.numpy(), len(given) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_parents", [1, 2, 4])
def test_sums_are_those_of_plain_loops(n_parents, dtype):
    given = tensors(7, 43, parents=n_parents, dtype=dtype)
    before = [t.clone() for t in given]
    deltas = [d.ravel() for d in deltas_of(*given)]
    vectors = [given[0].float().numpy().ravel(), *deltas]
    sums = unpacked(given)
    assert sums.n_entries == 301
    for i, j in itertools.product(range(n_parents + 1), repeat=2):
        pairs = zip(vectors[i], vectors[j], strict=True)
        exact = math.fsum(float(x) * float(y) for x, y in pairs)
        assert sums.gram[i, j] == pytest.approx(exact, rel=1e-13, abs=1e-18)
    for i, d in enumerate(deltas):
        assert sums.absolute[i] == pytest.approx(math.fsum(map(abs, map(float, d))), rel=1e-13)
        assert sums.large[i] == sum(abs(d) >= np.float32(SMALL_DELTA))
        for j, e in enumerate(deltas):
            assert sums.shared[i, j] == sum((d != 0) & (e != 0))
            assert sums.opposed[i, j] == sum(np.sign(d) * np.sign(e) < 0)
    assert all(map(torch.equal, given, before))


def test_scalars_come_out_equal_in_float32():
    # What plans are made of: exact rational sums, rounded once, against the tree of additions.
    given = tensors(4000, parents=2, seed=5)
    vectors = [[Fraction(float(x)) for x in v] for v in (given[0].numpy(), *deltas_of(*given))]
    sums = unpacked(given)
    for i, j in itertools.product(range(3), repeat=2):
        exact = sum(x * y for x, y in zip(vectors[i], vectors[j], strict=True))
        assert np.float32(sums.gram[i, j]) == np.float32(float(exact))


@pytest.mark.parametrize("n", [1, 2, 3, 1000, CHUNK, CHUNK + 1, 3 * CHUNK + 77, 5 * CHUNK])
def test_steps_leave_no_trace(n, monkeypatch):
    given = tensors(n, parents=2, seed=n, dtype=torch.bfloat16)
    one = delta_sums(given)
    monkeypatch.setitem(gram.CHUNKS_PER_STEP, "cpu", 4)
    assert delta_sums(given).view(torch.int64).tolist() == one.view(torch.int64).tolist()


def test_products_do_not_depend_on_the_other_parents():
    given = tensors(3 * CHUNK // 2, parents=3)
    all_of_them = unpacked(given).gram
    for i, j in itertools.permutations((1, 2, 3), 2):
        pair = unpacked([given[0], given[i], given[j]]).gram
        assert pair.tolist() == all_of_them[np.ix_([0, i, j], [0, i, j])].tolist()


def test_no_entries_have_sums_of_zero():
    assert delta_sums([torch.zeros(0, 4)] * 3).tolist() == [0.0] * n_sums(2)


def test_statistics_are_ratios_of_the_sums():
    given = tensors(5000, parents=2, dtype=torch.bfloat16)
    got = describe(unpacked(given), ["b", "a"])
    base, b, a = (v.astype(np.float64) for v in (given[0].float().numpy(), *deltas_of(*given)))
    both = (a != 0) & (b != 0)
    assert list(got.relative_norm) == ["a", "b"]
    for name, d in (("a", a), ("b", b)):
        norm = np.linalg.norm(d)
        assert got.relative_norm[name] == pytest.approx(norm / np.linalg.norm(base))
        assert got.mean_abs_delta[name] == pytest.approx(np.abs(d).mean())
        assert got.small_share[name] == (np.abs(d) < np.float32(SMALL_DELTA)).mean()
        assert got.changed_share[name] == (d != 0).mean()
        assert got.safe_drop_rate[name] == pytest.approx(safe_drop_rate(norm / 5000**0.5))
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert got.cosine == {("a", "b"): pytest.approx(cosine)}
    assert got.sign_conflict == {("a", "b"): (np.sign(a) != np.sign(b))[both].mean()}


def test_a_parent_equal_to_the_base_has_statistics_of_zero():
    base, parent = tensors(100)
    got = describe(unpacked([base, base, parent]), ["a", "b"])
    assert got.relative_norm["a"] == got.mean_abs_delta["a"] == got.changed_share["a"] == 0.0
    assert got.small_share["a"] == 1.0 and got.safe_drop_rate["a"] == 0.99
    assert got.cosine["a", "b"] == got.sign_conflict["a", "b"] == 0.0


def test_groups_and_totals_are_sums_of_tensors():
    parts = {name: tensors(50 * (i + 1), parents=2, seed=i) for i, name in enumerate("xyz")}
    rows = {name: delta_sums(given).numpy() for name, given in parts.items()}
    got = describe_model(rows, ["a", "b"], lambda tensor: "one" if tensor == "x" else "other")
    whole = [torch.cat(vectors) for vectors in zip(*parts.values(), strict=True)]
    assert got.cosine["a", "b"] == pytest.approx(describe(unpacked(whole), "ab").cosine["a", "b"])
    assert list(got.tensors) == ["x", "y", "z"] and list(got.groups) == ["one", "other"]
    assert got.groups["one"] == got.tensors["x"] == describe(unpacked(parts["x"]), "ab")
    other = [torch.cat(pair) for pair in zip(parts["y"], parts["z"], strict=True)]
    expected = describe(unpacked(other), "ab").mean_abs_delta["a"]
    assert got.groups["other"].mean_abs_delta["a"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rms", "rate"), [(0.0, 0.99), (1e-5, 0.99), (0.001, 0.9), (0.003, 0.5), (0.03, 1 / 101)]
)
def test_safe_drop_rates_keep_the_noise_of_the_papers_case(rms, rate):
    assert safe_drop_rate(rms) == pytest.approx(rate)
    if rms >= 0.001:
        assert rms * math.sqrt(rate / (1 - rate)) == pytest.approx(0.003)
