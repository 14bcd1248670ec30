"""The benchmark of stages and warm starts runs; its figures on few items are not asserted."""

import importlib
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def starts(benchmark_scripts) -> Any:
    return importlib.import_module("starts")


@pytest.fixture(scope="module")
def replay(starts, recorded, setup) -> Any:
    return starts.Replay(recorded, setup)


def test_stages_take_their_shares_and_the_best_only_rises(replay, starts, quickstart):
    start = starts.Start("staged", ({"depth": "constant", "share": 0.3}, {"width": 0.4}))
    searcher = starts.Searcher(replay, quickstart, start, 0)
    steps = searcher.run(8000)
    assert (np.diff(steps[:, 1]) >= 0).all()
    stages = [c.stage for c in searcher.candidates if c.is_searched]
    assert stages == sorted(stages)
    coarse = sum(c.items for c in searcher.candidates if c.stage == 0)
    assert 2400 <= coarse < 2400 + replay.landscape.items.n
    assert np.array_equal(steps, starts.Searcher(replay, quickstart, start, 0).run(8000))


def test_a_warm_start_tries_the_best_of_half_of_the_items(replay, starts, quickstart, monkeypatch):
    monkeypatch.setattr(starts, "EARLIER_TRIALS", 6)
    searcher = starts.Searcher(replay, quickstart, starts.Start("warm", warm="half"), 0)
    searcher.run(6000)
    origins = [c.origin for c in searcher.candidates if c.is_searched]
    taken = sum(map(bool, origins))
    assert 0 < taken <= starts.TAKEN
    assert all(origins[:taken]), "warm-start recipes are tried first"
    assert len(origins) > taken


def test_a_table_has_a_row_for_each_start(replay, starts, quickstart, monkeypatch):
    monkeypatch.setattr(starts, "STARTS", starts.STARTS[:1])
    results = list(starts.rows(replay, quickstart, 2, 4000))
    assert results[0]["soon_reached"] >= 1
    lines = starts.table(results).splitlines()
    assert len(lines) == 3
    assert lines[0].count("|") == lines[2].count("|")
