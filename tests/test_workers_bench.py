"""The worker benchmark runs the product's study on a simulated clock."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.scoring import WorkersSection
from heterosis.search.study.parts import open_parts


@pytest.fixture(scope="module")
def workers(benchmark_scripts) -> Any:
    return importlib.import_module("workers")


@pytest.fixture(scope="module")
def simulation(workers) -> Any:
    parts = open_parts(load_config(find_config("quickstart")))
    return workers.Simulation(workers.Landscape.read(workers.LANDSCAPE), parts)


def many(count: int) -> WorkersSection:
    return WorkersSection(engine="ray", num=count, gpus_per_worker=0)


def test_busy_share_ends_when_the_last_candidate_starts(workers):
    assert workers.busy_share([(0.0, 2.0), (0.0, 1.0), (1.0, 1.0), (2.0, 9.0)], 2) == 1.0
    assert workers.busy_share([(0.0, 2.0), (0.0, 1.0), (2.0, 9.0)], 2) == 0.75


def test_a_duration_depends_on_the_candidate_number(workers):
    kind = workers.Durations(0.2)
    seconds = [kind.seconds(number, 1.0) for number in range(400)]
    assert seconds == [kind.seconds(number, 0.1) for number in range(400)]
    assert abs(sum(seconds) / 400 - 1) < 0.05
    raced = workers.Durations(0.2, is_raced=True)
    assert raced.seconds(3, 0.25) == pytest.approx(seconds[3] / 4)


def test_few_workers_are_busy(workers, simulation):
    assert simulation.simulate(many(2), workers.Durations(0.0), 30).busy > 0.99


@pytest.mark.slow
def test_sixty_four_workers_are_busy(workers, simulation):
    for durations in (workers.Durations(0.0), workers.Durations(0.2)):
        assert simulation.simulate(many(64), durations, 768).busy > 0.9


@pytest.mark.slow
def test_two_ray_workers_are_busy(workers, simulation, monkeypatch, tmp_path):
    pytest.importorskip("ray")
    monkeypatch.setattr(workers, "RAY_CANDIDATES", 20)
    monkeypatch.setattr(workers, "MIN_CANDIDATES", 8)
    monkeypatch.setattr("sys.argv", ["workers", "--workers", "2", "--rounds", "4", "--out", "x"])
    monkeypatch.setenv("PYTHONPATH", str(Path(workers.__file__).parent))  # actors import it, too
    monkeypatch.chdir(tmp_path)
    workers.main()
    facts = json.loads((tmp_path / "x").read_text())
    assert facts["rows"][0]["workers"] == 2
    assert 0 < facts["ray"]["busy"] <= 1
