"""Racing: the order of items, the stopping rule, and estimates of stopped candidates."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from heterosis.evals.scores.scores import item_scores
from heterosis.evals.stats.racing import (
    PROBE,
    STRATA,
    Race,
    item_order,
    restricted,
    rung_ends,
    strata_of,
)
from heterosis.search.evaluate.objective import Objective
from hypothesis import given, settings
from hypothesis import strategies as st

OBJECTIVE = Objective("mean", {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1})
N = 400


def scores(ability: float, seed: int = 0, n: int = N, noise_seed: int = 0):
    """A model whose margin on an item is its ability minus the item's difficulty, plus noise."""
    difficulty = np.random.default_rng(seed).normal(0.0, 2.0, n)
    own = np.random.default_rng((noise_seed, seed)).normal(0.0, 0.7, n)
    margin = ability - difficulty + own
    columns = {
        "task_index": np.repeat([0, 1], [n // 2, n - n // 2]),
        "doc_id": np.concatenate([np.arange(n // 2), np.arange(n - n // 2)]),
        "value": (margin > 0).astype(float),
        "weight": np.ones(n),
        "margin": margin,
    }
    header = {
        "tasks": ["a", "b"],
        "metrics": ["acc,none"] * 2,
        "aggregations": ["mean"] * 2,
        "higher_is_better": [True, True],
    }
    return item_scores(header, columns)


def race(alpha: float = 0.05, seed: int = 0) -> Race:
    return Race(
        (scores(0.0, seed, noise_seed=1), scores(0.3, seed, noise_seed=2)),
        OBJECTIVE.criteria,
        alpha,
        OBJECTIVE.terms,
    )


def seen_of(whole, order, end: int):
    return whole.subset(np.sort(np.array(order[:end])))


@given(st.integers(1, 5000), st.integers(1, 300))
def test_rungs_double_and_end_with_all(n, first):
    ends = rung_ends(n, first)
    assert ends[-1] == n
    has_probe = len(ends) > 1 and first >= 2 * PROBE
    assert (ends[0] == PROBE) == has_probe or first == PROBE or n == PROBE
    ends = ends[1:] if has_probe else ends
    assert list(ends[:-1]) == [first * 2**k for k in range(len(ends) - 1)]
    assert all(b > a for a, b in itertools.pairwise(ends))
    assert len(ends) == 1 or ends[-1] >= 1.5 * ends[-2] or ends[-1] > 0.75 * n


@given(st.integers(4, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_the_order_is_a_permutation_with_each_tasks_share_and_each_stratums(n, seed):
    references = [scores(0.0, 3, n, noise_seed=k) for k in (1, 2)]
    order = item_order(references, seed)
    assert sorted(order) == list(range(n))
    assert order == item_order(references, seed)
    task = references[0].task_index[order]
    counts = np.cumsum(task)  # of task b in every prefix
    expected = np.arange(1, n + 1) * (n - n // 2) / n
    assert np.abs(counts - expected).max() <= 1.0
    strata = strata_of(references)[order]
    for t in (0, 1):
        own = strata[task == t]
        prefix = np.arange(1, own.size + 1)
        for stratum, (_, share) in enumerate(STRATA):
            met = own == stratum
            promised = np.minimum(np.floor(share * prefix) - 1, met.sum())
            assert (np.cumsum(met) >= promised).all()


def test_the_most_contested_items_are_those_where_right_turns_into_wrong():
    references = [scores(0.5, noise_seed=k) for k in range(4)]
    strata = strata_of(references)
    sizes = [(strata == stratum).mean() for stratum in range(len(STRATA))]
    assert sizes == pytest.approx([share for share, _ in STRATA])
    away = np.abs(np.mean([s.margin for s in references], axis=0))
    by_stratum = [away[strata == stratum].mean() for stratum in range(len(STRATA))]
    assert by_stratum == sorted(by_stratum)
    others = [scores(0.6, noise_seed=k) for k in (10, 11)]
    differ = others[0].value != others[1].value
    assert differ[strata == 0].mean() > 3 * differ[strata == 2].mean()


def test_without_margins_contested_is_what_the_references_disagree_on():
    references = [replace(scores(0.5, noise_seed=k), margin=np.full(N, np.nan)) for k in range(4)]
    spread = np.std([s.value for s in references], axis=0)
    strata = strata_of(references)
    for task in (0, 1):
        own = references[0].task_index == task
        assert spread[own & (strata == 0)].min() >= spread[own & (strata == 1)].max()
        assert spread[own & (strata == 1)].min() >= spread[own & (strata == 2)].max()


def test_seeds_shuffle_equal_items_differently():
    references = [scores(0.0, 3, noise_seed=k) for k in (1, 2)]
    assert item_order(references, 1) != item_order(references, 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_clear_loser_is_stopped_at_the_first_rung_and_a_better_one_never(seed):
    racing, order = race(seed=seed), item_order(race(seed=seed).references, seed)
    best = scores(0.5, seed, noise_seed=3)
    loser, better = scores(-2.0, seed, noise_seed=4), scores(1.5, seed, noise_seed=5)
    assert racing.is_lost(seen_of(loser, order, 50), best)
    for end in rung_ends(N):
        assert not racing.is_lost(seen_of(better, order, end), best)
        assert not racing.is_lost(seen_of(best, order, end), best), "no difference, no loss"


@pytest.mark.parametrize("seed", range(20))
def test_the_probe_ends_what_has_collapsed_and_nothing_else(seed):
    racing, order = race(seed=seed), item_order(race(seed=seed).references, seed)
    best = scores(2.0, seed, noise_seed=3)
    assert racing.is_lost(seen_of(scores(-9.0, seed, noise_seed=4), order, PROBE), best)
    for ability in (0.5, 2.0, 3.0):
        seen = seen_of(scores(ability, seed, noise_seed=5), order, PROBE)
        assert not racing.is_lost(seen, best)


def test_of_equal_candidates_no_more_are_stopped_than_the_level_says():
    stopped = 0
    for seed in range(300):
        racing = race(alpha=0.05, seed=seed)
        order = item_order(racing.references, seed)
        best, other = (scores(0.5, seed, noise_seed=k) for k in (3, 4))
        stopped += racing.is_lost(seen_of(other, order, 50), best)
    assert stopped / 300 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_tasks_are_weighed_as_the_objective_weighs_them():
    lowest = Objective("min", {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1})
    base = race()
    best, other = scores(0.5, noise_seed=3), scores(0.5, noise_seed=3)
    margin, value = other.margin.copy(), other.value.copy()
    weak = "a" if best.task_score("a").value < best.task_score("b").value else "b"
    strong = other.rows("b" if weak == "a" else "a")
    margin[strong] -= 5.0
    value[strong] = margin[strong] > 0
    worse_there = item_scores(
        {k: getattr(other, k) for k in ("tasks", "metrics", "aggregations", "higher_is_better")},
        {
            "task_index": other.task_index,
            "doc_id": other.doc_id,
            "value": value,
            "weight": other.weight,
            "margin": margin,
        },
    )
    assert Race(base.references, (OBJECTIVE,), 0.05, OBJECTIVE.terms).is_lost(worse_there, best)
    assert not Race(base.references, (lowest,), 0.05, lowest.terms).is_lost(worse_there, best)


def test_estimates_of_stopped_candidates_lean_to_the_incumbent_by_less_than_their_errors():
    errors, raw, said = [], [], []
    for seed in range(200):
        racing = race(seed=seed)
        order = item_order(racing.references, seed)
        whole, best = scores(-0.5, seed, noise_seed=9), scores(0.5, seed, noise_seed=3)
        seen = seen_of(whole, order, 50)
        estimate = racing.estimates(seen, best, OBJECTIVE.terms)
        for task in whole.tasks:
            true = whole.task_score(task).value
            errors.append(estimate[task].value - true)
            raw.append(seen.task_score(task).value - true)
            said.append(estimate[task].se)
    assert 0.0 < np.mean(errors) < np.std(errors)
    assert np.mean(np.square(errors)) < 0.5 * np.mean(np.square(raw))
    assert np.std(errors) == pytest.approx(np.mean(said), rel=0.5)


def test_a_perplexity_is_estimated_by_what_the_parents_lose_on_the_same_items():
    header = {
        "tasks": ["ppl"],
        "metrics": ["word_perplexity,none"],
        "aggregations": ["perplexity"],
        "higher_is_better": [False],
    }

    def model(level: float):
        ll = -(level + np.random.default_rng(5).gamma(2.0, 1.0, 100)) * 10
        columns = {
            "task_index": np.zeros(100),
            "doc_id": np.arange(100),
            "value": ll,
            "weight": np.full(100, 10.0),
            "margin": np.full(100, np.nan),
        }
        return item_scores(header, columns)

    objective = Objective("mean", {"ppl": 1.0}, {"ppl": -1})
    racing = Race((model(0.10), model(0.12)), (objective,), 0.05, objective.terms)
    order = item_order(racing.references, 0)
    worse, better = model(0.5), model(0.0)
    seen = seen_of(worse, order, 50)
    assert racing.is_lost(seen, model(0.1))
    assert not racing.is_lost(seen_of(better, order, 50), model(0.1))
    estimate = racing.estimates(seen, model(0.1), objective.terms)["ppl"]
    assert estimate.value == pytest.approx(worse.task_score("ppl").value, rel=0.2)


def test_restricted_scores_hold_the_same_items():
    whole = scores(0.1)
    seen = seen_of(scores(0.4), item_order(race().references, 0), 77)
    other = restricted(whole, seen)
    assert np.array_equal(other.keys, seen.keys)
    assert set(other.margin) <= set(whole.margin)
