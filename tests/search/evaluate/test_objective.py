"""The objective: how tasks' scores become one number, and its standard error."""

import numpy as np
import pytest
from heterosis.evals.scores.scores import TaskScore
from heterosis.search.config.config import ConfigError
from heterosis.search.config.rules import RULES, default_rule
from heterosis.search.evaluate.objective import Objective
from hypothesis import assume, given
from hypothesis import strategies as st

BOTH_UP = {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("mean", 0.25 * 0.9 + 0.75 * 0.5), ("min", 0.5), ("harmonic", 1 / (0.25 / 0.9 + 0.75 / 0.5))],
)
def test_rules(rule, expected):
    objective = Objective(rule, {"a": 1.0, "b": 3.0}, BOTH_UP)
    assert objective.value({"a": 0.9, "b": 0.5}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metrics", "weights", "expected"),
    [
        (["acc", "acc_norm"], [1.0, 1.0], "harmonic"),
        (["exact_match", "prompt_level_strict_acc"], [1.0, 3.0], "harmonic"),
        (["pass@1", "f1"], [1.0, 1.0], "harmonic"),
        (["acc", ""], [1.0, 1.0], "mean"),
        (["acc", "bleu_diff"], [1.0, 1.0], "mean"),
        (["acc", "accident"], [1.0, 1.0], "mean"),
        (["acc", ""], [1.0, 3.0], "weighted"),
        (["acc"], [1.0], "mean"),
    ],
)
def test_the_default_is_harmonic_for_shares_of_right_answers(metrics, weights, expected):
    assert default_rule(metrics, weights) == expected


def test_the_harmonic_mean_of_a_zero_is_zero():
    assert Objective("harmonic", {"a": 1, "b": 1}, BOTH_UP).value({"a": 0.0, "b": 1.0}) == 0


def test_a_perplexity_enters_the_mean_with_its_sign_turned():
    objective = Objective("mean", {"a": 1, "b": 1}, {"a": 1, "b": -1})
    assert objective.value({"a": 0.5, "b": 4.0}) == -1.75


def test_the_harmonic_mean_refuses_a_perplexity_by_name():
    with pytest.raises(ConfigError, match=r"`harmonic` needs scores above 0 .* got b: use `mean`"):
        Objective("harmonic", {"a": 1, "b": 1}, {"a": 1, "b": -1})


@pytest.mark.parametrize(
    ("signs", "columns"),
    [({"a": 1, "b": -1}, {}), (BOTH_UP, {"b": ("b", "margin")})],
    ids=["perplexity", "margin"],
)
def test_the_minimum_refuses_scores_of_several_units(signs, columns):
    with pytest.raises(ConfigError, match=r"`min` compares scores of one unit, got .*metric"):
        Objective("min", {"a": 1, "b": 1}, signs, columns)
    Objective("min", {"a": 1, "b": 1}, signs, columns, normalize=True)


@given(
    st.sampled_from(list(RULES)),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.booleans(),
)
def test_the_gradient_is_the_derivative(rule, a, b, normalize):
    objective = Objective(rule, {"a": 1.0, "b": 2.0}, BOTH_UP, normalize=normalize)
    objective = objective.scaled([{"a": 0.01, "b": 0.04}, {"a": 0.03, "b": 0.02}])
    at, step = {"a": a, "b": b}, 1e-6
    assume(
        rule != "min" or (abs(a - b) > 1e-3 and abs((a - 0.01) / 0.02 - (b - 0.02) / 0.02) > 1e-3)
    )
    slopes = objective.gradient(at)
    for term in at:
        ahead, behind = (objective.value(at | {term: at[term] + s}) for s in (step, -step))
        central = (ahead - behind) / (2 * step)
        assert slopes.get(term, 0.0) == pytest.approx(central, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_draws_are_combined_as_single_scores_are(rule):
    draws = np.array([[0.0, 0.3, 0.9, 0.5], [0.2, 0.0, 0.8, 0.5]])
    objective = Objective(rule, {"a": 1.0, "b": 2.0}, BOTH_UP)
    alone = [objective.value({"a": a, "b": b}) for a, b in draws.T.tolist()]
    assert objective.drawn_values({"a": draws[0], "b": draws[1]}).tolist() == alone


def test_normalised_scores_count_from_the_worst_parent_to_the_best():
    plain = Objective("mean", {"a": 1, "b": 1}, {"a": 1, "b": -1}, normalize=True)
    objective = plain.scaled([{"a": 0.2, "b": 9.0}, {"a": 0.6, "b": 5.0}])
    assert objective.value({"a": 0.2, "b": 9.0}) == pytest.approx(0)
    assert objective.value({"a": 0.6, "b": 5.0}) == pytest.approx(1)
    assert objective.value({"a": 0.6, "b": 9.0}) == pytest.approx(0.5)
    scores = {"a": TaskScore(0.6, 0.04, 100), "b": TaskScore(9.0, 0.4, 100)}
    expected = ((0.04 / 0.4 / 2) ** 2 + (0.4 / 4 / 2) ** 2) ** 0.5
    assert objective.standard_error(scores) == pytest.approx(expected)


def test_a_term_with_equal_parents_keeps_its_unit():
    objective = Objective("mean", {"a": 1}, {"a": 1}, normalize=True).scaled([{"a": 0.4}] * 2)
    assert objective.value({"a": 0.5}) == pytest.approx(0.1)


def test_a_pareto_objective_tells_each_term_and_ranks_by_their_mean():
    objective = Objective("pareto", {"a": 1, "b": 1}, {"a": 1, "b": -1})
    assert objective.values({"a": 0.5, "b": 4.0}) == (0.5, -4.0)
    assert objective.value({"a": 0.5, "b": 4.0}) == -1.75


def test_the_phrase_says_what_is_optimised():
    columns = {"b": ("b", "log_likelihood"), "c": ("t", "length")}
    objective = Objective("weighted", {"a": 3, "b": 1}, BOTH_UP, columns)
    assert objective.phrase == "weighted mean of a (75%), b log-likelihood (25%)"
    signs = {"a": 1, "c": -1}
    front = Objective("pareto", {"a": 1, "c": 1}, signs, {"c": ("t", "length")}, normalize=True)
    assert front.phrase == (
        "Pareto front of a, t length, counted from the worst parent (0) to the best (1)"
    )


def test_the_standard_error_of_the_mean_is_exact():
    objective = Objective("mean", {"a": 1, "b": 3}, BOTH_UP)
    scores = {"a": TaskScore(0.5, 0.04, 100), "b": TaskScore(0.7, 0.02, 100)}
    expected = ((0.25 * 0.04) ** 2 + (0.75 * 0.02) ** 2) ** 0.5
    assert objective.standard_error(scores) == pytest.approx(expected, rel=1e-4)


def test_the_standard_error_of_the_minimum_is_the_lowest_tasks():
    scores = {"a": TaskScore(0.5, 0.04, 100), "b": TaskScore(0.7, 0.02, 100)}
    objective = Objective("min", {"a": 1, "b": 1}, BOTH_UP)
    assert objective.standard_error(scores) == pytest.approx(0.04, rel=1e-4)
