"""The benchmarks of real searches and of objectives; figures on few items are not asserted."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from heterosis.evals.scores.scores import MEAN, item_scores
from heterosis.search.evaluate.objective import Objective

from .conftest import RECORDED


@pytest.fixture(scope="module")
def searches(benchmark_scripts) -> Any:
    return importlib.import_module("searches")


@pytest.fixture(scope="module")
def verdicts(benchmark_scripts) -> Any:
    return importlib.import_module("verdicts")


@pytest.fixture(scope="module")
def objectives(benchmark_scripts) -> Any:
    return importlib.import_module("objectives")


def scores(*rates: float, n: int = 400, run_seed: int = 0) -> Any:
    """Return scores of two tasks with these rates of right answers."""
    chance = np.random.default_rng(run_seed)
    header = {
        "tasks": ["a", "b"],
        "metrics": ["acc,none"] * 2,
        "aggregations": [MEAN] * 2,
        "higher_is_better": [True] * 2,
    }
    columns = {
        "task_index": np.repeat([0, 1], n),
        "doc_id": np.tile(np.arange(n), 2),
        "value": np.concatenate([chance.random(n) < rate for rate in rates]).astype(float),
        "weight": np.ones(2 * n),
        "margin": np.zeros(2 * n),
    }
    return item_scores(header, columns)


def objective(rule: Any = "mean") -> Objective:
    return Objective(rule, weights={"a": 1.0, "b": 1.0}, signs={"a": 1, "b": 1})


def test_the_interval_of_a_difference_covers_items_and_seeds(verdicts):
    bootstrap = verdicts.PairedBootstrap(objective(), scores(0.5, 0.5))
    low = [scores(0.5, 0.5, run_seed=seed) for seed in range(5)]
    high = [scores(0.8, 0.8, run_seed=10 + seed) for seed in range(5)]
    assert bootstrap.interval(low, low) == [0.0, 0.0]
    ends = bootstrap.interval(high, low)
    assert 0.2 < ends[0] < 0.3 < ends[1] < 0.4
    one = bootstrap.interval(high[:1], low[:1])  # no seeds to draw from: the items' error alone
    d = objective().difference(high[0], low[0])
    assert (one[1] - one[0]) / 2 == pytest.approx(1.96 * d.se, rel=0.1)


def test_the_interval_uses_the_objective_rule(verdicts):
    even, odd = scores(0.5, 0.5), scores(0.9, 0.1)
    ends = verdicts.PairedBootstrap(objective("harmonic"), even).interval([even], [odd])
    assert 0.25 < ends[0] < 0.32 < ends[1] < 0.4
    low, high = verdicts.PairedBootstrap(objective(), even).interval([even], [odd])
    assert low < 0 < high


def test_scores_that_are_no_means_of_items_are_refused(verdicts):
    odd = replace(scores(0.5, 0.5), aggregations=("perplexity", MEAN))
    with pytest.raises(
        ValueError, match=r"means of their items, got perplexity, mean for the mean"
    ):
        verdicts.PairedBootstrap(objective(), odd)


def test_seeds_have_students_interval(verdicts):
    low, high = verdicts.over_seeds([0.9, 0.92, 0.94])
    assert (low, high) == pytest.approx((0.8703, 0.9697), abs=1e-4)
    assert verdicts.over_seeds([0.9]) is None


def test_each_search_differs_from_the_configuration_by_its_changes_only(searches, quickstart):
    plan = searches.Plan(quickstart, list(searches.SEARCHES), 2, 900, Path("work"))
    jobs = list(plan.searches)
    assert [(job.name, job.seed) for job in jobs] == [
        (name, seed) for seed in range(2) for name in searches.SEARCHES
    ]
    assert len({job.folder for job in [plan.baselines, *jobs]}) == len(jobs) + 1
    configured = jobs[0].config.search
    for job in jobs:
        section = job.config.search
        assert (section.items, section.trials, section.run_seed) == (900, None, job.seed)
        changed = {
            key
            for key in configured.model_fields_set
            if getattr(section, key) != getattr(configured, key)
        }
        assert changed <= {*searches.SEARCHES[job.name], "run_seed"}
    assert configured.sampler == quickstart.search.sampler
    assert configured.racing == quickstart.search.racing
    assert plan.baselines.config.search.trials == 0
    assert plan.baselines.config.baselines == jobs[0].config.baselines == quickstart.baselines
    unraced = next(job for job in jobs if job.name == "random, every item")
    assert unraced.config.baselines == searches.MINIMAL
    assert set(searches.FIRST) < set(searches.SEARCHES)
    lean = replace(plan, lean=True)
    assert all(job.config.baselines == searches.MINIMAL for job in lean.searches)
    assert lean.baselines.config.baselines == quickstart.baselines


@pytest.mark.slow
def test_real_searches_make_a_table_and_resume(searches, quickstart, tmp_path, monkeypatch, capsys):
    values = quickstart.to_dict() | {"results": None, "workers": None}
    values["splits"] |= {"search_items": 20, "confirm_items": 30}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(values))
    names = ["as configured", "random, every item"]
    arguments = ["searches", str(tmp_path / "few.yaml"), "--seeds", "2", "--items", "120"]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--only"]
    monkeypatch.setattr("sys.argv", [*arguments, *names])
    searches.main()
    facts = json.loads((tmp_path / "out" / "searches.json").read_text())
    rows = {row["name"]: row for row in facts["rows"]}
    assert list(rows)[:3] == [*names, "uniform"]
    assert len(facts["rows"]) == 7
    assert facts["seeds"] == [0, 1]
    assert facts["confirm_items"] == 60
    assert rows["random, every item"]["items"] == 120
    assert rows["random, every item"]["candidates"] == 3
    assert min(rows["random, every item"]["items_to_aim"]) <= 120
    assert len(rows["as configured"]["items_to_aim"]) == 2
    assert rows["as configured"]["confirm"] == pytest.approx(
        np.mean(rows["as configured"]["seeds"])
    )
    assert rows["uniform"]["ahead"] == pytest.approx(
        rows["as configured"]["confirm"] - rows["uniform"]["confirm"]
    )
    page = (tmp_path / "out" / "searches.md").read_text()
    assert page.count("\n| ") == 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.journal")}
    assert len(before) == 5
    capsys.readouterr()
    searches.main()
    assert page in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_a_search_that_cannot_run_stops_all(searches, quickstart, tmp_path):
    config = quickstart.model_copy(update={"base": tmp_path / "none"})
    plan = searches.Plan(config, ["as configured"], 20, 100, tmp_path)
    with pytest.raises(ValueError, match="no such model directory"):
        list(searches.run_all(plan, processes=1))
    assert len(list(tmp_path.glob("*.log"))) < 10


def test_halves_share_no_item(objectives, recorded):
    seen, unseen = objectives.halves(recorded, 3)
    assert seen.items.n == unseen.items.n == recorded.items.n // 2
    both = np.concatenate([seen.items.keys, unseen.items.keys])
    assert np.array_equal(np.sort(both), np.sort(recorded.items.keys))
    assert not np.array_equal(seen.items.keys, objectives.halves(recorded, 4)[0].items.keys)
    row = recorded.items.rows(recorded.items.tasks[0]).size // 2
    assert seen.items.rows(recorded.items.tasks[0]).size == row


def test_metrics_of_baselines(objectives, landscape, recorded, setup):
    parents = [b for b in setup.baselines if b.kind == "parent"]
    for parent in parents:
        metrics = objectives.metrics_of(recorded, np.array(landscape.features(parent.recipe)))
        assert metrics["one-sided"] == 1.0
        assert metrics["min"] <= metrics["harmonic"] <= metrics["mean"]
    uniform = next(b for b in setup.baselines if b.kind == "uniform")
    metrics = objectives.metrics_of(recorded, np.array(landscape.features(uniform.recipe)))
    assert metrics["one-sided"] == 0.0
    assert metrics["mean"] == pytest.approx(0.8975, abs=0.01)


@pytest.mark.slow
def test_the_table_of_objectives_is_written(objectives, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        ["objectives", str(RECORDED), "--seeds", "2", "--trials", "12", "--out", str(tmp_path)],
    )
    objectives.main()
    facts = json.loads((tmp_path / "objectives.json").read_text())
    names = [row["name"] for row in facts["landscapes"]["quickstart"]]
    assert names == [*objectives.RULES, "parent:python", "parent:java", "uniform"]
    assert (tmp_path / "objectives.md").read_text().count("\n| ") == len(names) + 1
