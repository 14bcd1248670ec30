"""Complete searches for other objectives than metrics: they race, resume and are shown."""

import io
import math

import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import ConfigError
from heterosis.search.config.load import load_config
from heterosis.search.config.rules import RULES, Rule
from heterosis.search.evaluate.objective import Objective
from heterosis.search.evaluate.scoring import objective_on_parents_scale
from heterosis.search.leaderboard.formats import csv_text
from heterosis.search.leaderboard.views import markdown, table
from heterosis.search.storage.candidate import Candidate, candidate_of
from heterosis.search.storage.journal import Journal, StudyError
from rich.console import Console

from ..conftest import QUICKSTART
from ..studies import RACE, record, run

TASKS = [str(QUICKSTART / f"tasks/{name}.yaml") for name in ("python", "java")]


def tasks(*columns) -> list[dict]:
    return [{"task": task, "optimize": column} for task, column in zip(TASKS, columns, strict=True)]


def candidates(folder):
    return [candidate_of(trial) for trial in Journal(folder).trials]


OBJECTIVES = {
    "margins, normalised": (tasks("margin", "margin"), {"objective": "min", "normalize": True}),
    "log-likelihoods": (tasks("log_likelihood", "log_likelihood"), {"objective": "mean"}),
    "metric and margin": (tasks("metric", "margin"), {"objective": "harmonic", "normalize": True}),
    "pareto": (tasks("metric", ["metric", "margin"]), {"objective": "pareto"}),
    "pareto, normalised": (tasks("metric", "metric"), {"objective": "pareto", "normalize": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_interrupted_search_ends_with_the_same_result(name, small_search, tmp_path):
    columns, search = OBJECTIVES[name]
    settings = RACE | {"tasks": columns, "search": RACE["search"] | search | {"trials": 8}}
    outcome, _ = run(small_search.write(**settings))
    results = tmp_path / "interrupted"
    path = small_search.write(**settings, results=str(results))
    for stop, least in ((2, 0), (9, 7)):  # among the baselines, then in the search
        asked = iter(range(stop))
        run(path, lambda asked=asked: next(asked, None) is None)
        assert least <= len(record(results)) < 15
    run(path)
    assert record(results) == record(small_search.results)
    assert outcome.finished


def test_a_rule_added_to_the_table_is_searched_and_shown(small_search, monkeypatch):
    def value(x, w):
        return math.prod(x[term] ** share for term, share in w.items())

    def gradients(x, w):
        return [{term: share * value(x, w) / max(x[term], 1e-9) for term, share in w.items()}]

    rule = Rule("geometric mean", value, gradients, uses_weights=True, needs_positive=True)
    path = small_search.write(search={"objective": "test_rule", "trials": 2})
    with pytest.raises(
        ConfigError, match=r"search\.objective: must be a rule .*`test_rule`; known"
    ):
        load_config(path)
    monkeypatch.setitem(RULES, "test_rule", rule)
    outcome, _ = run(path)
    said = "geometric mean of quickstart_python (50%), quickstart_java (50%)"
    assert outcome.board.objective.phrase == said
    assert f"Objective: {said}." in markdown(outcome.board)
    for candidate in candidates(small_search.results):
        scores = [score.value for score in candidate.scores.values()]
        assert candidate.value == pytest.approx(math.prod(scores) ** 0.5)
    with pytest.raises(ConfigError, match="`test_rule` needs scores above 0"):
        run(small_search.write(tasks=tasks("metric", "margin"), search={"objective": "test_rule"}))


def test_normalised_values_count_from_the_worst_parent_to_the_best(small_search):
    columns, search = OBJECTIVES["margins, normalised"]
    outcome, _ = run(small_search.write(tasks=columns, search=search | {"trials": 3}))
    found = candidates(small_search.results)
    parents = {c.name: c for c in found if c.kind == "parent"}
    python, java = parents["parent:python"], parents["parent:java"]
    assert python.value == java.value == 0.0, "each is the worst parent on one task"
    for candidate in found:
        parts = []
        for task in candidate.scores:
            low, high = sorted((python.terms[task].value, java.terms[task].value))
            parts.append((candidate.terms[task].value - low) / (high - low))
        assert candidate.value == pytest.approx(min(parts))
    assert outcome.board.objective.phrase in markdown(outcome.board)
    assert "counted from the worst parent (0) to the best (1)" in markdown(outcome.board)


def test_values_equal_the_means_of_the_items(small_search):
    columns, search = OBJECTIVES["log-likelihoods"]
    run(small_search.write(tasks=columns, search=search | {"trials": 2, "racing": False}))
    store = ItemStore(small_search.results / "items")
    for candidate in candidates(small_search.results):
        items = store.read(candidate.number, SEARCH)
        means = [items.log_likelihood[items.rows(task)].mean() for task in items.tasks]
        assert candidate.value == pytest.approx(sum(means) / 2)
        assert candidate.value < 0


def test_a_pareto_front_is_searched_and_shown(small_search):
    columns, search = OBJECTIVES["pareto"]
    outcome, _ = run(small_search.write(tasks=columns, search=search | {"trials": 10}))
    trials = Journal(small_search.results).trials
    assert {len(trial.values) for trial in trials} == {3}
    board = outcome.board
    confirmed = [row for row in board.rows if row.confirm]
    assert any(row.is_on_front for row in confirmed)
    assert not all(row.is_on_front for row in confirmed)
    assert "| front |" in markdown(board)
    assert "search:quickstart_java margin," in csv_text(board)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(board))
    assert "Pareto front of" in console.export_text()


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"tasks": tasks("metric", "margin"), "search": {"objective": "min"}}, "one unit"),
        (
            {"tasks": tasks("length", "metric")},
            r"`optimize: length` is known for .* generate_until",
        ),
        ({"tasks": tasks(["metric", "margin"], "metric")}, "is pareto, got `none` and several"),
        ({"tasks": tasks("metric", [])}, "must name one column or more"),
        ({"tasks": tasks("metric", "loss")}, "must be metric, margin, log_like"),
        (
            {
                "tasks": [{"task": TASKS[0], "weight": 2.0}, {"task": TASKS[1]}],
                "search": {"objective": "mean"},
            },
            "`tasks.weight` is used by the objectives weighted and harmonic, got `objective: mean`",
        ),
        ({"tasks": [{"task": TASKS[0]}], "search": {"objective": "pareto"}}, "needs two tasks"),
        (
            {"search": {"objective": "pareto", "sampler": "CmaEsSampler"}},
            "CmaEsSampler` takes one value per trial, `objective: pareto` has 2",
        ),
    ],
)
def test_invalid_objectives_are_errors(changes, law, small_search):
    with pytest.raises(ValueError, match=law):
        run(small_search.write(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "harmonic mean of quickstart_python (50%), quickstart_java (50%) (by default)"),
        (
            {"tasks": [{"task": TASKS[0], "weight": 3.0}, {"task": TASKS[1]}]},
            "harmonic mean of quickstart_python (75%), quickstart_java (25%) (by default)",
        ),
        (
            {"tasks": tasks("metric", "log_likelihood")},
            "mean of quickstart_python, quickstart_java log-likelihood (by default)",
        ),
        (
            {
                "tasks": [
                    {"task": TASKS[0], "weight": 3.0},
                    {"task": TASKS[1], "optimize": "margin"},
                ]
            },
            "weighted mean of quickstart_python (75%), quickstart_java margin (25%) (by default)",
        ),
        (
            {"search": {"normalize": True}},
            "mean of quickstart_python, quickstart_java, counted from the worst parent (0) to the "
            "best (1) (by default)",
        ),
        ({"search": {"objective": "mean"}}, "mean of quickstart_python, quickstart_java"),
        ({"tasks": [{"task": TASKS[0]}]}, "mean of quickstart_python"),
    ],
)
def test_check_shows_the_default_objective(changes, said, heterosis, small_search):
    code, out, _ = heterosis("check", small_search.write(**changes))
    assert code == 0
    assert f"objective: {said}\n" in out.replace("\n  ", " ")


def test_the_default_objective_is_shown_on_the_leaderboard(small_search):
    outcome, _ = run(small_search.write(search={"trials": 1}))
    said = "harmonic mean of quickstart_python (50%), quickstart_java (50%)"
    assert outcome.board.objective.phrase == said
    assert f"Objective: {said}." in markdown(outcome.board)


def test_an_invalid_column_is_an_error_of_the_configuration(small_search):
    path = small_search.write(tasks=tasks("metric", "loss"))
    with pytest.raises(ConfigError, match=r"tasks\.1\.optimize"):
        load_config(path)


def test_the_parents_scale_needs_a_scored_parent():
    objective = Objective("mean", {"a": 1}, {"a": 1}, normalize=True)
    recipe = Recipe.uniform("linear", ("a", "b"), ("layers.0.attn",), 1.0)
    failed = Candidate(1, "parent:a", "parent", recipe, failure="NaN")
    with pytest.raises(StudyError, match="counts from the parents' scores, but none of them"):
        objective_on_parents_scale(objective, [failed])
    assert objective_on_parents_scale(objective, []) is objective
