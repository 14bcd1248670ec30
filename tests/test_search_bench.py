"""The benchmark of samplers replays real searches; on so few items its figures decide nothing."""

import importlib
import json
from typing import Any

import numpy as np
import pytest
from heterosis.evals.tasks.splits import SEARCH
from heterosis.search.study.parts import open_parts

from .conftest import RECORDED


@pytest.fixture(scope="module")
def samplers(benchmark_scripts) -> Any:
    return importlib.import_module("samplers")


@pytest.fixture(scope="module")
def parts(quickstart) -> Any:
    return open_parts(quickstart)


@pytest.fixture(scope="module")
def replay(samplers, recorded, setup) -> Any:
    return samplers.Replay(recorded, setup)


def test_the_recorded_items_are_those_of_the_search(replay, parts):
    items = replay.land.items
    found = {task.name: task.doc_ids[SEARCH] for task in parts.tasks}
    assert set(items.tasks) == set(found)
    for task, rows in found.items():
        assert tuple(items.doc_id[items.rows(task)].tolist()) == rows
    assert len(replay.land.x) > 500


def test_the_surrogate_tells_recorded_points_apart(replay):
    land, chosen = replay.land, np.arange(0, 700, 35)
    told = [land.at(land.x[index]).value.mean() for index in chosen]
    true = land.value[chosen].mean(axis=1)
    assert np.corrcoef(told, true)[0, 1] > 0.95


def test_a_race_spends_less_and_the_best_only_rises(replay, samplers):
    whole = replay.search(samplers.REFERENCE, 0, items=8000)
    raced = replay.search(samplers.Setting("raced"), 0, items=8000)
    for steps in (whole, raced):
        assert (np.diff(steps[:, 0]) > 0).all()
        assert (np.diff(steps[:, 1]) >= 0).all()
    assert whole[-1, 0] == 8000
    assert len(raced) > len(whole)
    assert np.array_equal(raced, replay.search(samplers.Setting("raced"), 0, items=8000))
    assert samplers.items_to(whole, 0.0) == 0
    assert samplers.items_to(whole, 2.0) == np.inf


@pytest.mark.slow
def test_the_tables_are_written(samplers, tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "FULL_TRIALS", 4)
    monkeypatch.setattr(samplers, "SETTINGS", samplers.SETTINGS[:3])
    monkeypatch.setattr(
        "sys.argv", ["samplers", str(RECORDED), "--seeds", "2", "--out", str(tmp_path)]
    )
    samplers.main()
    page, facts = (tmp_path / f"samplers.{kind}" for kind in ("md", "json"))
    assert page.read_text().count("\n| ") == 4
    assert [row["name"] for row in json.loads(facts.read_text())["rows"]] == [
        setting.name for setting in samplers.SETTINGS
    ]
