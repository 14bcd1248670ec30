"""The objective: how tasks' scores become one number, and its standard error."""

import pytest
from heterosis.evals.scores import TaskScore
from heterosis.search.config import ConfigError
from heterosis.search.objective import Objective

BOTH_UP = {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("mean", 0.25 * 0.9 + 0.75 * 0.5), ("min", 0.5), ("harmonic", 1 / (0.25 / 0.9 + 0.75 / 0.5))],
)
def test_rules(rule, expected):
    objective = Objective(rule, {"a": 1.0, "b": 3.0}, BOTH_UP)
    assert objective.value({"a": 0.9, "b": 0.5}) == pytest.approx(expected)


def test_the_harmonic_mean_of_a_zero_is_zero():
    assert Objective("harmonic", {"a": 1, "b": 1}, BOTH_UP).value({"a": 0.0, "b": 1.0}) == 0


def test_a_perplexity_enters_the_mean_with_its_sign_turned():
    objective = Objective("mean", {"a": 1, "b": 1}, {"a": 1, "b": -1})
    assert objective.value({"a": 0.5, "b": 4.0}) == -1.75


@pytest.mark.parametrize("rule", ["min", "harmonic"])
def test_other_rules_refuse_a_perplexity_by_name(rule):
    with pytest.raises(ConfigError, match=f"`{rule}` needs metrics .* higher; b is better when"):
        Objective(rule, {"a": 1, "b": 1}, {"a": 1, "b": -1})


def test_the_standard_error_of_the_mean_is_exact():
    objective = Objective("mean", {"a": 1, "b": 3}, BOTH_UP)
    scores = {"a": TaskScore(0.5, 0.04, 100), "b": TaskScore(0.7, 0.02, 100)}
    expected = ((0.25 * 0.04) ** 2 + (0.75 * 0.02) ** 2) ** 0.5
    assert objective.standard_error(scores) == pytest.approx(expected, rel=1e-4)


def test_the_standard_error_of_the_minimum_is_the_lowest_tasks():
    scores = {"a": TaskScore(0.5, 0.04, 100), "b": TaskScore(0.7, 0.02, 100)}
    objective = Objective("min", {"a": 1, "b": 1}, BOTH_UP)
    assert objective.standard_error(scores) == pytest.approx(0.04, rel=1e-4)
