"""Tests of differences as pure functions: against scipy, and their sizes under the null."""

from typing import Any

import numpy as np
import pytest
from heterosis.evals.stats import significance
from heterosis.evals.stats.significance import binomial_p, percentile, resampled, wilcoxon_p
from scipy import stats

signed_ranks: Any = stats.wilcoxon  # whose stubs know no `pvalue`


def test_signed_ranks_row_by_row_are_scipys():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 14))
    rows[1, :3] = 0.0
    rows[2] = np.round(rows[2])
    rows[3] = 0.0
    expected = [signed_ranks(row[row != 0]).pvalue for i, row in enumerate(rows) if i != 3]
    assert wilcoxon_p(rows) == pytest.approx(np.insert(expected, 3, 1.0))
    one_sided = [signed_ranks(rows[0], alternative=a).pvalue for a in ("less", "greater")]
    assert [wilcoxon_p(rows[:1], a)[0] for a in ("less", "greater")] == one_sided


def test_sign_tests_at_once_are_scipys():
    wins, losses = np.array([0, 3, 9, 4]), np.array([0, 3, 1, 20])
    expected = [1.0] + [stats.binomtest(w, w + m).pvalue for w, m in ((3, 3), (9, 1), (4, 20))]
    assert binomial_p(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("kept", [True, False])
def test_draws_are_complete_and_repeatable(kept, monkeypatch):
    monkeypatch.setattr(significance, "BLOCK", 70)
    if not kept:
        monkeypatch.setattr(significance, "KEPT", 0)
    blocks = list(resampled(7, 25, seed=3, stratum=1))
    counts = np.vstack(blocks)
    assert max(map(len, blocks)) == 10
    assert counts.shape == (25, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, np.vstack(list(resampled(7, 25, seed=3, stratum=1))))
    assert not np.array_equal(counts, np.vstack(list(resampled(7, 25, seed=3, stratum=2))))


@pytest.mark.parametrize("n, most", [(12, 0.13), (100, 0.09)])
def test_the_bootstrap_keeps_its_size_on_skewed_differences(n, most):
    d = np.random.default_rng(n).exponential(size=(600, n)) - 1.0
    means = np.vstack([block @ d.T for block in resampled(n, 1000, 0, 0)]).T / n
    p, low, high = percentile(means, d.mean(axis=1), np.full(600, n - 1))
    assert 0.02 < np.mean(p < 0.05) < most
    assert np.mean((low > 0) | (high < 0)) == pytest.approx(np.mean(p < 0.05), abs=0.02)
