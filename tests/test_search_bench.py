"""The sampler benchmark replays real searches; its figures on few items are not asserted."""

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
    items = replay.landscape.items
    doc_ids = {task.name: task.doc_ids[SEARCH] for task in parts.tasks}
    assert set(items.tasks) == set(doc_ids)
    for task, rows in doc_ids.items():
        assert tuple(items.doc_id[items.rows(task)].tolist()) == rows
    assert len(replay.landscape.x) > 500


def test_the_surrogate_predicts_recorded_points(replay):
    landscape, chosen = replay.landscape, np.arange(0, 700, 35)
    predicted = [landscape.predict(landscape.x[index]).value.mean() for index in chosen]
    actual = landscape.value[chosen].mean(axis=1)
    assert np.corrcoef(predicted, actual)[0, 1] > 0.95


def test_a_race_spends_less_and_the_best_only_rises(replay, samplers):
    full = replay.search(samplers.REFERENCE, 0, items=8000)
    raced = replay.search(samplers.Setting("raced"), 0, items=8000)
    for steps in (full, raced):
        assert (np.diff(steps[:, 0]) > 0).all()
        assert (np.diff(steps[:, 1]) >= 0).all()
    assert full[-1, 0] == 8000
    assert len(raced) > len(full)
    assert np.array_equal(raced, replay.search(samplers.Setting("raced"), 0, items=8000))
    assert samplers.items_to(full, 0.0) == 0
    assert samplers.items_to(full, 2.0) == np.inf


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
