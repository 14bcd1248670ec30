"""Racing's decisions: the order by properties, the test by its rates, the estimate by its bias."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from heterosis.evals.racing import (
    ALPHA,
    disagreement,
    item_order,
    on_items_of,
    rung_ends,
    should_stop,
    shrunken_estimate,
)
from heterosis.evals.rungs import rung_rows
from heterosis.evals.scores import COLUMNS, ItemScores
from heterosis.search.objective import Objective
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_scores import scores


def binary(rng, sizes, chance) -> ItemScores:
    return scores({t: (rng.random(n) < chance).astype(float).tolist() for t, n in sizes.items()})


def part(whole: ItemScores, rows) -> ItemScores:
    rows = np.sort(rows)
    return replace(whole, **{name: getattr(whole, name)[rows] for name in COLUMNS})


def objective(rule="mean", tasks="ab") -> Objective:
    return Objective(rule, dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 1))


@given(st.integers(1, 5000), st.integers(1, 300), st.floats(1.01, 4))
def test_rungs_grow_to_all_items(n, first, factor):
    ends = rung_ends(n, first, factor)
    assert ends[-1] == n
    assert all(a < b for a, b in itertools.pairwise(ends))
    assert ends[0] == min(first, n)


def test_rungs_double():
    assert rung_ends(800) == [50, 100, 200, 400, 800]
    with pytest.raises(ValueError, match="`factor` above 1, got 10, 5, 1"):
        rung_ends(10, 5, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.25, 0.6]),
)
def test_every_prefix_holds_each_tasks_share_and_disagreement_first(sizes, seed, rest):
    rng = np.random.default_rng(seed)
    named = {str(i): n for i, n in enumerate(sizes)}
    parents = [binary(rng, named, 0.6) for _ in range(2)]
    order, differs = item_order(parents, seed, rest), disagreement(parents)
    items = [
        (str(t), int(d)) for t, d in zip(parents[0].task_index, parents[0].doc_id, strict=True)
    ]
    rung_rows(items, order.tolist(), rung_ends(len(items), 7))  # a permutation
    assert np.array_equal(order, item_order(parents, seed, rest))
    tasks = parents[0].task_index[order]
    for t, n in enumerate(sizes):
        so_far = np.cumsum(tasks == t)
        due = np.arange(1, tasks.size + 1) * n / tasks.size
        assert np.abs(so_far - due).max() <= len(sizes)
        hot = differs[order][tasks == t]
        share = min(rest, 1 - hot.mean())
        due = np.minimum(np.arange(1, n + 1) * (1 - share), hot.sum())
        assert (np.cumsum(hot) >= due - 1).all()


def test_the_seed_decides_the_order():
    rng = np.random.default_rng(0)
    parents = [binary(rng, {"a": 50}, 0.5) for _ in range(2)]
    assert not np.array_equal(item_order(parents, 0), item_order(parents, 1))
    with pytest.raises(ValueError, match=r"`rest` must be in \[0, 1\), got 1"):
        item_order(parents, 0, 1)
    with pytest.raises(ValueError, match="at least one parent, got none"):
        item_order([], 0)
    with pytest.raises(ValueError, match="on the same items, got 50 and 3"):
        item_order([parents[0], binary(rng, {"a": 3}, 0.5)], 0)


def continuous(rng, shift, n=100) -> ItemScores:
    base = scores({"a": [1.0] * n, "b": [0.0] * n})
    return replace(base, margin=rng.exponential(size=2 * n) + shift)


def test_worse_ones_are_stopped_and_equal_ones_at_the_stated_rate():
    rng = np.random.default_rng(1)
    incumbent = continuous(rng, 0.0)
    assert should_stop(continuous(rng, -1.0), incumbent, objective())
    assert not should_stop(continuous(rng, 1.0), incumbent, objective())
    stopped = [
        should_stop(continuous(rng, 0.0), continuous(rng, 0.0), objective()) for _ in range(500)
    ]
    assert np.mean(stopped) <= ALPHA + 3 * (ALPHA / 500) ** 0.5
    assert not should_stop(incumbent, incumbent, objective())


def test_nobody_is_stopped_on_too_little():
    rng = np.random.default_rng(2)
    worse, incumbent = continuous(rng, -5.0), continuous(rng, 0.0)
    assert not should_stop(part(worse, np.arange(9)), incumbent, objective())
    assert not should_stop(part(worse, np.arange(60)), incumbent, objective())  # none of task b
    with pytest.raises(ValueError, match=r"`alpha` must be in \(0, 1\), got 0"):
        should_stop(worse, incumbent, objective(), alpha=0)
    with pytest.raises(ValueError, match="held against, got 191 of 200 missing"):
        should_stop(worse, part(incumbent, np.arange(9)), objective())


def test_the_incumbents_part_has_the_candidates_items():
    whole = binary(np.random.default_rng(0), {"a": 20, "b": 30}, 0.5)
    seen = part(whole, [3, 25, 7, 49])
    assert np.array_equal(on_items_of(whole, seen).doc_id, seen.doc_id)
    assert np.array_equal(on_items_of(whole, seen).value, seen.value)


@pytest.mark.parametrize("rule", ["mean", "min", "harmonic"])
def test_the_estimate_is_not_biased_by_the_order(rule):
    rng = np.random.default_rng(3)
    sizes = {"a": 300, "b": 150}
    errors, plain, ses = [], [], []
    for seed in range(60):
        easy = rng.random(450)
        chances = [np.clip(easy + shift, 0, 1) ** 0.3 for shift in (-0.3, -0.2, -0.1)]
        models = []
        for chance in chances:
            value = (rng.random(450) < chance).astype(float)
            models.append(replace(binary(rng, sizes, 0.5), value=value))
        *parents, candidate = models
        seen = part(candidate, item_order(parents, seed)[:100])
        found = shrunken_estimate(seen, parents, objective(rule))
        truth, naive = (
            objective(rule).value({t: s.task_score(t).value for t in "ab"})
            for s in (candidate, seen)
        )
        errors.append(found.value - truth)
        plain.append(naive - truth)
        ses.append(found.se)
    assert abs(np.mean(errors)) < np.mean(ses)
    if rule != "min":  # the least of several estimates is low, naive or not
        assert abs(np.mean(errors)) < 0.5 * abs(np.mean(plain))


def test_all_items_seen_are_the_score():
    rng = np.random.default_rng(4)
    *parents, candidate = [binary(rng, {"a": 30, "b": 20}, 0.5) for _ in range(3)]
    found = shrunken_estimate(candidate, parents, objective())
    assert found.tasks == pytest.approx({t: candidate.task_score(t).value for t in "ab"})
    assert found.se == pytest.approx(0.0)


def test_a_perplexity_is_estimated_as_one():
    words = {"t": [5.0, 10.0] * 20}
    lls = [{"t": [-w * k for w in words["t"]]} for k in (1.0, 1.2, 1.1)]
    *parents, candidate = [scores(ll, "perplexity", words, higher=False) for ll in lls]
    combination = Objective("mean", {"t": 1.0}, {"t": -1})
    found = shrunken_estimate(part(candidate, np.arange(20)), parents, combination)
    assert found.value == pytest.approx(-np.exp(1.1), rel=0.02)
