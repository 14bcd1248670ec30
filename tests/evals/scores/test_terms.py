"""Terms of an objective in place of a task's metric."""

import numpy as np
import pytest
from heterosis.evals.scores.scores import item_scores
from heterosis.evals.scores.terms import Term, as_terms, plain_terms
from heterosis.evals.stats.comparison import paired_difference
from heterosis.search.evaluate.objective import Objective


def scores(shift: float = 0.0):
    """Task ``a`` with margins, task ``g`` with generated answers, 20 items each."""
    n, chance = 20, np.random.default_rng(0)
    margin = np.concatenate([chance.normal(shift, 1.0, n), np.full(n, np.nan)])
    columns = {
        "task_index": np.repeat([0, 1], n),
        "doc_id": np.tile(np.arange(n), 2),
        "value": np.concatenate([margin[:n] > 0, np.ones(n)]).astype(float),
        "weight": np.ones(2 * n),
        "margin": margin,
        "log_likelihood": margin - 3.0,
        "length": np.concatenate([np.full(n, np.nan), np.full(n, 7.0 + shift)]),
    }
    header = {
        "tasks": ["a", "g"],
        "metrics": ["acc,none", "exact_match,none"],
        "aggregations": ["mean", "mean"],
        "higher_is_better": [True, True],
    }
    return item_scores(header, columns)


def test_plain_terms_are_the_items_themselves():
    items = scores()
    assert as_terms(items, plain_terms(items.tasks)) is items


def test_terms_take_their_columns_and_a_task_may_have_two():
    items = scores()
    terms = (Term("a", "a", "margin"), Term("g", "g", "metric"), Term("g:length", "g", "length"))
    seen = as_terms(items, terms)
    found = {name: score.value for name, score in seen.task_scores().items()}
    assert found == {
        "a": pytest.approx(items.margin[:20].mean()),
        "g": 1.0,
        "g:length": pytest.approx(7.0),
    }
    assert seen.higher_is_better == (True, True, False)
    assert seen.metrics == ("margin", "exact_match,none", "length")
    assert (np.diff(seen.keys) > 0).all()


def test_a_task_that_does_not_count_is_left_out():
    seen = as_terms(scores(), (Term("a", "a", "log_likelihood"),))
    assert seen.tasks == ("a",)
    assert seen.n == 20


def test_objectives_on_columns_are_compared_by_them():
    columns = {"a": ("a", "margin"), "g:length": ("g", "length")}
    objective = Objective("weighted", {"a": 1, "g:length": 1}, {"a": 1, "g:length": -1}, columns)
    a, b = scores(0.5), scores(0.0)
    found = objective.difference(a, b)
    own = objective.combined(a).value - objective.combined(b).value
    assert found.value == pytest.approx(own)
    assert own == pytest.approx((0.5 - 0.5) / 2, abs=1e-12)
    margins = Objective("mean", {"a": 1}, {"a": 1}, {"a": ("a", "margin")})
    assert margins.difference(a, b).value == pytest.approx(0.5)
    by_column = paired_difference(a, b, Objective("mean", {"a": 1}, {"a": 1}), column="margin")
    assert margins.difference(a, b).p == by_column.p
