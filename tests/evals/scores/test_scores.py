"""Scores of items and tasks, against lm-eval's formulas and loops written here."""

import math
import subprocess
import sys

import numpy as np
import pytest
from heterosis.evals.scores.scores import NonFiniteScore

from ..item_scores import scores


def test_importing_splits_and_scores_needs_no_torch_and_no_lm_eval():
    code = (
        "import sys, heterosis.evals.tasks.splits, heterosis.evals.scores.scores;"
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


def test_a_rung_adds_what_the_rung_before_it_had_not():
    first, second = (scores({"t": values}) for values in ([1.0, 0.0], [1.0, 0.0, 0.5]))
    added = second.without(first)
    assert (added.value.tolist(), added.doc_id.tolist(), added.tasks) == ([0.5], [2], ("t",))
    assert second.without(second).n == 0
    with pytest.raises(ValueError, match="must hold the items of the rung before it, got 2 and 3"):
        first.without(second)
