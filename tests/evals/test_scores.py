"""Scores and paired comparisons, against lm-eval's formulas, scipy and loops written here."""

import math
import subprocess
import sys

import numpy as np
import pytest
from heterosis.evals.scores import (
    ItemScores,
    NonFiniteScore,
    item_scores,
    paired_difference,
)
from scipy import stats


def scores(
    values: dict[str, list[float]],
    aggregation: str = "mean",
    weights: dict[str, list[float]] | None = None,
    higher: bool = True,
) -> ItemScores:
    """Item scores of tasks; doc ids count up from 0."""
    flat = [v for task in values.values() for v in task]
    ones = {task: [1.0] * len(v) for task, v in values.items()}
    header = {
        "tasks": list(values),
        "metrics": ["acc,none"] * len(values),
        "aggregations": [aggregation] * len(values),
        "higher_is_better": [higher] * len(values),
    }
    columns = {
        "task_index": [i for i, v in enumerate(values.values()) for _ in v],
        "doc_id": [i for v in values.values() for i in range(len(v))],
        "value": flat,
        "weight": [w for task in (weights or ones).values() for w in task],
        "margin": [math.nan] * len(flat),
    }
    return item_scores(header, columns)


def test_importing_splits_and_scores_needs_no_torch_and_no_lm_eval():
    code = (
        "import sys, heterosis.evals.splits, heterosis.evals.scores;"
        "print([m for m in ('torch', 'lm_eval', 'datasets', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mean_and_its_error_are_lm_evals():
    from lm_eval.api.metrics import mean, mean_stderr

    values = [0.1, 0.7, 1.0, 0.0, 0.3]
    score = scores({"t": values}).task_score("t")
    assert score.value == mean(values)
    assert score.se == pytest.approx(mean_stderr(values), rel=1e-12)
    assert score.n == 5


def test_perplexities_are_lm_evals():
    from lm_eval.api import metrics

    lls, words = [-3.0, -10.0, -1.5], [2.0, 5.0, 1.0]
    pairs = list(zip(lls, words, strict=True))
    ppl = scores({"t": lls}, "perplexity", {"t": words}).task_score("t")
    bits = scores({"t": lls}, "bits_per_byte", {"t": words}).task_score("t")
    assert ppl.value == metrics.weighted_perplexity(pairs)
    assert bits.value == metrics.bits_per_byte(pairs)
    assert scores({"t": lls}, "perplexity").task_score("t").value == metrics.perplexity(lls)


def test_perplexity_error_agrees_with_a_bootstrap():
    rng = np.random.default_rng(0)
    words = rng.integers(5, 50, 400).astype(float)
    lls = -words * rng.normal(2.0, 0.4, 400)
    score = scores({"t": lls.tolist()}, "perplexity", {"t": words.tolist()}).task_score("t")
    draws = rng.integers(0, 400, (2000, 400))
    boot = np.exp(-lls[draws].sum(1) / words[draws].sum(1)).std()
    assert score.se == pytest.approx(boot, rel=0.1)


def test_error_of_one_item_is_nan_and_a_huge_perplexity_infinite():
    assert math.isnan(scores({"t": [1.0]}).task_score("t").se)
    assert scores({"t": [-1e4, -1e4]}, "perplexity").task_score("t").value == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_scores_are_refused_by_name(bad):
    with pytest.raises(NonFiniteScore, match=r"must be finite.* on task 'b', doc 1;") as caught:
        scores({"a": [1.0], "b": [0.0, bad]})
    assert (caught.value.task, caught.value.doc_id) == ("b", 1)


def test_arrays_are_frozen_and_unknown_tasks_named():
    some = scores({"a": [1.0, 0.0]})
    with pytest.raises(ValueError, match="read-only"):
        some.value[0] = 2.0
    with pytest.raises(KeyError, match="task 'b' was not scored; scored are a"):
        some.task_score("b")


def test_subset_keeps_the_items_asked_for():
    some = scores({"a": [1.0, 0.0], "b": [0.5, 0.25]})
    part = some.subset(np.array([True, False, False, True]))
    assert part.value.tolist() == [1.0, 0.25]
    assert part.doc_id.tolist() == [0, 1]
    assert part.tasks == ("a", "b")


def test_mcnemar_is_exact_and_agrees_with_scipy():
    a = scores({"t": [1, 1, 1, 1, 0, 0, 1, 0.0]})
    b = scores({"t": [0, 0, 0, 1, 1, 0, 0, 0.0]})
    found = paired_difference(a, b)
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(stats.binomtest(4, 5, 0.5).pvalue)
    assert found.value == pytest.approx((4 - 1) / 8)
    assert found.n == 8


def test_difference_changes_sign_and_not_p_when_turned():
    a, b = scores({"t": [0.2, 0.9, 0.4]}), scores({"t": [0.1, 0.3, 0.5]})
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.value == -other.value
    assert (one.p, one.se, one.test) == (other.p, other.se, "normal")


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
    found = paired_difference(a, b, weights)
    assert found.value == pytest.approx(mean)
    assert found.se == pytest.approx(math.sqrt(variance))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(mean) / math.sqrt(variance)))


def test_unequal_item_weights_do_not_use_mcnemar():
    a = scores({"a": [1, 0, 1.0], "b": [1, 1.0]})
    b = scores({"a": [0, 0, 1.0], "b": [1, 0.0]})
    assert paired_difference(a, b).test == "normal"
    assert paired_difference(a, b, {"a": 3.0, "b": 2.0}).test == "mcnemar"


def test_a_task_without_weight_does_not_count():
    a, b = scores({"a": [1.0, 1.0], "b": [0.0, 0.0]}), scores({"a": [0.0, 1.0], "b": [1.0, 1.0]})
    found = paired_difference(a, b, {"a": 1.0})
    assert (found.value, found.n) == (0.5, 2)


def test_lower_is_better_is_turned_and_perplexities_are_nats():
    low, high = scores({"t": [1.0, 2.0]}, higher=False), scores({"t": [2.0, 4.0]}, higher=False)
    assert paired_difference(low, high).value == pytest.approx(1.5)
    words = {"t": [10.0, 20.0]}
    a = scores({"t": [-10.0, -20.0]}, "perplexity", words, higher=False)
    b = scores({"t": [-20.0, -40.0]}, "perplexity", words, higher=False)
    assert paired_difference(a, b).value == pytest.approx(1.0)


def test_no_spread_falls_back_to_the_sign_test():
    a, b = scores({"t": [0.5] * 6}), scores({"t": [0.25] * 6})
    found = paired_difference(a, b)
    assert (found.test, found.p) == ("sign", pytest.approx(2 / 64))
    assert paired_difference(a, a).p == 1.0


def test_null_p_values_are_uniform_enough():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        a, b = (scores({"t": rng.normal(size=60).tolist()}) for _ in range(2))
        hits += paired_difference(a, b).p < 0.05
    assert hits / 300 < 0.09


def test_unpaired_scores_are_refused():
    a = scores({"t": [1.0, 0.0]})
    with pytest.raises(ValueError, match="need equal tasks, got"):
        paired_difference(a, scores({"u": [1.0, 0.0]}))
    with pytest.raises(ValueError, match="need the same items, got 2 and 3 items"):
        paired_difference(a, scores({"t": [1.0, 0.0, 1.0]}))


@pytest.mark.parametrize("weights", [{"t": 0.0}, {"u": 1.0}])
def test_useless_task_weights_are_refused(weights):
    a = scores({"t": [1.0, 0.0]})
    with pytest.raises(ValueError, match="task weights must be >= 0 and sum to more than 0"):
        paired_difference(a, a, weights)


def test_a_task_without_items_is_refused():
    a = scores({"t": [1.0, 0.0], "u": []})
    with pytest.raises(ValueError, match="task 'u' has no items to compare; leave it out"):
        paired_difference(a, a)
    assert paired_difference(a, a, {"t": 1.0}).n == 2
