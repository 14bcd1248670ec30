"""Paired comparisons against scipy, and against loops and a bootstrap written here."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from heterosis.evals.stats.comparison import WILCOXON_BELOW, paired_difference, paired_differences
from heterosis.search.evaluate.objective import Objective
from scipy import stats

from ..item_scores import scores


@dataclass(frozen=True)
class Mean:
    """A weighted mean of tasks."""

    weights: Mapping[str, float]
    sign: float = 1.0

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def gradient(self, values: Mapping[str, float]) -> Mapping[str, float]:
        total = sum(self.weights.values())
        return {task: self.sign * weight / total for task, weight in self.weights.items()}

    def value(self, values: Mapping[str, float]) -> float:
        return sum(slope * values[task] for task, slope in self.gradient(values).items())

    drawn_values: Any = value


signed_ranks: Any = stats.wilcoxon  # whose stubs know no `pvalue`
T = Mean({"t": 1.0})


def test_mcnemar_is_exact_and_agrees_with_scipy():
    a = scores({"t": [1, 1, 1, 1, 0, 0, 1, 0.0]})
    b = scores({"t": [0, 0, 0, 1, 1, 0, 0, 0.0]})
    found = paired_difference(a, b, T)
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(stats.binomtest(4, 5, 0.5).pvalue)
    assert found.value == pytest.approx((4 - 1) / 8)
    assert found.n == 8


def test_difference_changes_sign_and_not_p_when_turned():
    a, b = scores({"t": [0.2, 0.9, 0.4]}), scores({"t": [0.1, 0.3, 0.5]})
    one, other = paired_difference(a, b, T), paired_difference(b, a, T)
    assert one.value == -other.value
    assert (one.p, one.se, one.test) == (other.p, other.se, "wilcoxon")
    assert (one.low, one.high) == (-other.high, -other.low)


def test_stratified_error_by_a_loop():
    rng = np.random.default_rng(1)
    values = {t: (rng.normal(size=n), rng.normal(size=n)) for t, n in (("a", 30), ("b", 7))}
    a = scores({t: v[0].tolist() for t, v in values.items()})
    b = scores({t: v[1].tolist() for t, v in values.items()})
    weights = {"a": 3.0, "b": 1.0}
    mean = variance = 0.0
    for task, (x, y) in values.items():
        d, share = x - y, weights[task] / 4.0
        mean += share * d.mean()
        variance += share**2 * d.var(ddof=1) / d.size
    found = paired_difference(a, b, Mean(weights))
    assert found.value == pytest.approx(mean)
    assert found.se == pytest.approx(math.sqrt(variance))
    assert found.test == "bootstrap"
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(mean) / math.sqrt(variance)), abs=0.04)
    assert found.high - found.low == pytest.approx(2 * 2.03 * math.sqrt(variance), rel=0.1)


def test_items_that_weigh_differently_are_tested_exactly_by_all_sign_flips():
    a = scores({"a": [1, 0, 1, 1.0], "b": [1, 1, 1.0]})
    b = scores({"a": [0, 1, 0, 1.0], "b": [1, 0, 0.0]})
    steps = np.array([1 / 8, -1 / 8, 1 / 8, 1 / 6, 1 / 6])  # discordant items, share / n each
    sums = [abs(np.dot(np.abs(steps), s)) for s in itertools.product((-1, 1), repeat=5)]
    found = paired_difference(a, b, Mean({"a": 1.0, "b": 1.0}))
    assert found.test == "sign-flip"
    assert found.p == pytest.approx(np.mean(np.array(sums) >= abs(steps.sum()) - 1e-12))


def test_one_more_item_does_not_change_the_test_much():
    wins = [1.0] * 4
    even = [scores({t: [x] * 2 + [1.0] * 198 for t in "ab"}) for x in (1.0, 0.0)]
    p = paired_difference(*even, Mean({"a": 1.0, "b": 1.0})).p
    odd = [scores({"a": [x] * 2 + [1.0] * 198, "b": [x] * 2 + [1.0] * 199}) for x in (1.0, 0.0)]
    assert p == pytest.approx(stats.binomtest(len(wins), len(wins), 0.5).pvalue)
    assert paired_difference(*odd, Mean({"a": 1.0, "b": 1.0})).p == pytest.approx(p, rel=0.01)


def test_many_unequal_items_take_the_null_normal_approximation():
    rng = np.random.default_rng(5)
    values = {
        t: (rng.integers(0, 2, n), rng.integers(0, 2, n)) for t, n in (("a", 300), ("b", 211))
    }
    a, b = (scores({t: v[i].astype(float).tolist() for t, v in values.items()}) for i in (0, 1))
    found = paired_difference(a, b, Mean({"a": 1.0, "b": 1.0}))
    flips = rng.choice([-1.0, 1.0], size=(20000, 511))
    steps = np.concatenate([(x - y) / 2 / x.size for x, y in values.values()])
    simulated = np.mean(np.abs(flips @ np.abs(steps)) >= abs(steps.sum()))
    assert found.test == "normal"
    assert found.p == pytest.approx(simulated, abs=0.02)


def test_a_task_without_weight_does_not_count():
    a, b = scores({"a": [1.0, 1.0], "b": [0.0, 0.0]}), scores({"a": [0.0, 1.0], "b": [1.0, 1.0]})
    found = paired_difference(a, b, Mean({"a": 1.0}))
    assert (found.value, found.n) == (0.5, 2)


def test_lower_is_better_is_turned():
    low, high = scores({"t": [1.0, 2.0]}, higher=False), scores({"t": [2.0, 4.0]}, higher=False)
    assert paired_difference(low, high, Mean({"t": 1.0}, -1.0)).value == pytest.approx(1.5)


def test_perplexities_are_compared_as_perplexities():
    words = {"t": [10.0, 20.0, 15.0]}
    a = scores({"t": [-10.0, -22.0, -16.0]}, "perplexity", words, higher=False)
    b = scores({"t": [-20.0, -40.0, -28.0]}, "perplexity", words, higher=False)
    found = paired_difference(a, b, Mean({"t": 1.0}, -1.0))
    assert found.value == pytest.approx(math.exp(88 / 45) - math.exp(48 / 45))
    assert found.test == "bootstrap"


@pytest.mark.parametrize("rule", ["harmonic", "min", "mean"])
def test_the_error_of_an_objectives_difference_agrees_with_a_paired_bootstrap(rule):
    rng = np.random.default_rng(7)
    objective = Objective(rule, {"a": 1.0, "b": 2.0}, {"a": 1, "b": 1})
    chance = {"a": (0.9, 0.8), "b": (0.45, 0.3)}
    values = {t: [(rng.random(400) < p).astype(float) for p in c] for t, c in chance.items()}
    a, b = (scores({t: v[i].tolist() for t, v in values.items()}) for i in (0, 1))
    found = paired_difference(a, b, objective)
    drawn = []
    for _ in range(2000):
        rows = {t: rng.integers(0, 400, 400) for t in values}
        means = [{t: v[i][rows[t]].mean() for t, v in values.items()} for i in (0, 1)]
        drawn.append(objective.value(means[0]) - objective.value(means[1]))
    assert found.se == pytest.approx(np.std(drawn), rel=0.08)
    ends = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=0.15 * found.se)
    exact = [{t: v[i].mean() for t, v in values.items()} for i in (0, 1)]
    assert found.value == pytest.approx(objective.value(exact[0]) - objective.value(exact[1]))


def test_a_balanced_merge_beats_a_lopsided_parent_on_the_harmonic_mean_not_on_the_mean():
    parent = scores({"a": [1.0] * 98 + [0.0] * 2, "b": [1.0] * 20 + [0.0] * 80})
    merge = scores({"a": [1.0] * 55 + [0.0] * 45, "b": [1.0] * 52 + [0.0] * 48})
    weights, signs = {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1}
    harmonic = paired_difference(merge, parent, Objective("harmonic", weights, signs))
    mean = paired_difference(merge, parent, Objective("mean", weights, signs))
    assert harmonic.value == pytest.approx(0.5346 - 0.3322, abs=1e-3)
    assert harmonic.p < 2e-3
    assert 0 < harmonic.low < harmonic.value < harmonic.high
    assert mean.value == pytest.approx(-0.055)


def test_no_spread_falls_back_to_the_sign_test():
    a, b = scores({"t": [0.5] * 6}), scores({"t": [0.25] * 6})
    found = paired_difference(a, b, T)
    assert (found.test, found.p) == ("sign", pytest.approx(2 / 64))
    assert paired_difference(a, a, T).p == 1.0


def test_null_p_values_are_uniform_enough():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        a, b = (scores({"t": rng.normal(size=60).tolist()}) for _ in range(2))
        hits += paired_difference(a, b, T).p < 0.05
    assert hits / 300 < 0.09


def test_unpaired_scores_are_refused():
    a = scores({"t": [1.0, 0.0]})
    with pytest.raises(ValueError, match="need equal tasks, got"):
        paired_difference(a, scores({"u": [1.0, 0.0]}), T)
    with pytest.raises(ValueError, match="need the same items, got 2 and 3 items"):
        paired_difference(a, scores({"t": [1.0, 0.0, 1.0]}), T)
    one, other = (replace(a, fingerprint=f"dtype={dtype}") for dtype in ("float32", "bfloat16"))
    with pytest.raises(ValueError, match=r"paired scores cannot.*dtype \(float32 and bfloat16\)"):
        paired_difference(one, other, T)


def test_a_task_without_items_is_refused():
    a = scores({"t": [1.0, 0.0], "u": []})
    with pytest.raises(ValueError, match="task 'u' has no items to compare; leave it out"):
        paired_difference(a, a, Mean({"t": 1.0, "u": 1.0}))
    assert paired_difference(a, a, T).n == 2


def with_margins(margins: Mapping[str, list[float]], values: Mapping[str, list[float]]):
    """Scores of tasks whose items have margins besides values."""
    flat = np.array([m for task in margins.values() for m in task])
    return replace(scores(dict(values)), margin=flat)


def test_few_continuous_items_take_scipys_signed_rank_test_without_the_zeros():
    d = [0.3, -0.1, 0.0, 0.7, 0.2, 0.45, 0.0, 0.9]
    assert len(d) < WILCOXON_BELOW
    found = paired_difference(scores({"t": d}), scores({"t": [0.0] * 8}), T)
    assert found.test == "wilcoxon"
    assert found.p == signed_ranks([x for x in d if x], method="exact").pvalue
    student = stats.ttest_1samp(d, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((student.low, student.high))


@pytest.mark.parametrize("column", ["value", "margin"])
@pytest.mark.parametrize("rule", ["mean", "min", "harmonic"])
@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("is_binary", [True, False])
def test_many_at_once_are_the_loop(column, rule, n, is_binary):
    rng = np.random.default_rng(n)
    objective = Objective(rule, {"a": 1.0, "b": 2.0}, {"a": 1, "b": 1})

    def model():
        at = {"a": rng.random(n) / 2, "b": rng.random(n + 1)}
        margins = {"a": rng.normal(size=n).tolist(), "b": [math.nan] * (n + 1)}
        return with_margins(
            margins, {t: (v.round() if is_binary else v).tolist() for t, v in at.items()}
        )

    *many, incumbent = [model() for _ in range(6)]
    many.append(incumbent)
    found = paired_differences(many, incumbent, objective, column=column)
    assert len(found) == 6
    for c, scored in enumerate(many):
        one = paired_difference(scored, incumbent, objective, column=column)
        assert (one.test, one.n) == (found[c].test, found[c].n)
        for name in ("value", "se", "p", "low", "high"):
            expected = getattr(one, name)
            assert getattr(found[c], name) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert one.low <= one.value <= one.high
    assert (found[5].value, found[5].p) == (0.0, 1.0)


def test_margins_stand_for_values_where_a_task_has_them():
    a = with_margins({"a": [1.0, 3.0], "b": [math.nan] * 2}, {"a": [1, 1.0], "b": [1, 0.0]})
    b = with_margins({"a": [0.0, 1.0], "b": [math.nan] * 2}, {"a": [1, 1.0], "b": [0, 0.0]})
    even = Mean({"a": 1.0, "b": 1.0})
    assert paired_difference(a, b, even).value == 0.25
    assert paired_difference(a, b, even, column="margin").value == (1.5 + 0.5) / 2


def test_margins_of_a_task_that_is_better_when_lower_are_not_used():
    a, b = (replace(scores({"t": [v]}, higher=False), margin=np.array([9.0])) for v in (1.0, 2.0))
    assert paired_difference(a, b, Mean({"t": 1.0}, -1.0), column="margin").value == 1.0


def test_margins_enter_a_harmonic_mean_by_its_slopes_at_the_values():
    objective = Objective("harmonic", {"a": 1.0, "b": 1.0}, {"a": 1, "b": 1})
    values = {"a": [1.0, 0.0], "b": [1.0, 1.0]}
    a = with_margins({"a": [2.0, 2.0], "b": [0.0, 0.0]}, values)
    b = with_margins({"a": [1.0, 1.0], "b": [0.0, 0.0]}, values)
    slope = objective.gradient({"a": 0.5, "b": 1.0})["a"]
    assert paired_difference(a, b, objective, column="margin").value == pytest.approx(slope)


def test_the_seed_decides_the_draws():
    rng = np.random.default_rng(0)
    a, b = (scores({"t": rng.normal(size=50).tolist()}) for _ in range(2))
    one, again, other = (paired_difference(a, b, T, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert (one.value, one.se) == (other.value, other.se)
    assert one.low != other.low


@pytest.mark.parametrize("wins, losses", [(0, 0), (5, 0), (12, 3), (30, 30)])
def test_the_interval_of_binary_items_covers(wins, losses):
    n = 100
    a = scores({"t": [1.0] * wins + [0.0] * (n - wins)})
    b = scores({"t": [0.0] * (n - losses) + [1.0] * losses})
    found = paired_difference(a, b, T)
    assert found.low <= found.value <= found.high
    truth = np.array([losses, n - wins - losses, wins]) / n
    drawn = np.random.default_rng(0).multinomial(n, truth, size=500)
    held = 0
    for lost, _, won in drawn:
        a = scores({"t": [1.0] * won + [0.0] * (n - won)})
        b = scores({"t": [0.0] * (n - lost) + [1.0] * lost})
        one = paired_difference(a, b, T)
        held += one.low <= found.value <= one.high
    assert held / 500 > 0.92
