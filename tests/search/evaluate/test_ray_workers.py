"""Ray workers on this machine: the same study, deaths, timeouts, stops."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import ConfigError
from heterosis.search.config.load import load_config
from heterosis.search.config.scoring import WorkersSection
from heterosis.search.evaluate.evaluator import Failure, FailureKind
from heterosis.search.evaluate.ray_cluster import check_ray
from heterosis.search.evaluate.ray_workers import RayWorkers
from heterosis.search.evaluate.workers import Job, Keep, Result
from heterosis.search.run import worker_factory
from heterosis.search.storage.journal import StudyError
from heterosis.search.study.parts import open_parts
from heterosis.search.study.resume import identity
from heterosis.search.study.worker import WorkerSetup

from ...evals.item_scores import scores
from ..processes import SEARCH, start, wait_for_new_lines
from ..studies import record, run

RECIPE = Recipe.uniform("linear", ("a", "b"), ("layers.0.attn",), 0.5)
SOME = scores({"t": [1.0, 0.0, 1.0]})
RAY = {"engine": "ray", "num": 2, "gpus_per_worker": 0}


def forget(*_) -> None:
    """Keep no rungs."""


@pytest.fixture
def with_ray(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests run beside


def test_without_ray_the_message_has_the_remedy(monkeypatch, small_search):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'heterosis\[ray\]'"):
        check_ray()
    path = small_search.write(workers=RAY)
    with pytest.raises(ConfigError, match="not installed"):
        run(path)


def answer(job: Job, text: str) -> Result:
    """A result that carries a text."""
    return Result(job.number, Failure(FailureKind.NON_FINITE, text), 0.0)


def odd_ones_die():
    """Scores even numbers; the process dies over odd ones."""

    def score(job: Job, _: Keep) -> Result:
        if job.number % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(job, "even")

    return score


def the_first_time_dies(marks):
    """The process dies over every number once."""

    def score(job: Job, _: Keep) -> Result:
        mark = marks / str(job.number)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(job, "the second time")

    return score


@pytest.mark.slow
def test_the_death_of_an_idle_worker_is_seen_and_costs_no_candidate_anything(with_ray, monkeypatch):
    monkeypatch.setattr("heterosis.search.evaluate.ray_workers.REISSUES", 0)
    section = WorkersSection(engine="ray", num=1, gpus_per_worker=0)
    workers = RayWorkers(section, tells_its_process, gpus=0, keep=forget)
    try:
        first = score_one(workers, 0)
        os.kill(int(first), signal.SIGKILL)
        second = score_one(workers, 1)
        os.kill(int(second), signal.SIGKILL)
        wait_until(workers, lambda: workers.idle == 0)
        assert len({first, second, score_one(workers, 2)}) == 3
    finally:
        workers.close()


def test_a_worker_with_other_requests_refuses(small_search):
    config = load_config(small_search.write())
    known = json.loads(json.dumps(identity(open_parts(config))))
    known["requests"] = {"tokens": "another"}
    setup = WorkerSetup(config, {"threads": 1, "path": "packed"}, known, ())
    with pytest.raises(StudyError, match=r"worker on .*requests.tokens was another, is"):
        setup()


def test_a_worker_with_another_version_of_the_program_refuses(small_search):
    setup = WorkerSetup(load_config(small_search.write()), {}, {}, None, program="0.0.7")
    with pytest.raises(StudyError, match=r"the same heterosis, the driver has 0\.0\.7, this one "):
        setup()


def tells_its_process():
    return lambda job, _: answer(job, str(os.getpid()))


def score_one(workers, number: int) -> str:
    """Give out one job; return what came of it."""
    wait_until(workers, lambda: workers.idle == 1)
    workers.submit(Job(number, RECIPE, ()))
    found = []
    while not found:
        found = workers.wait()
    return found[0].scores.reason


def wait_until(workers, is_so) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        assert workers.wait() == []


def sleeps():
    def score(job: Job, _: Keep) -> Result:
        time.sleep(600 if job.number == 1 else 0.01)
        return answer(job, "slept")

    return score


def refuses():
    raise ConfigError("no such parent")


def the_first_alone(folder, way: str):
    """One worker comes up; whoever comes after it does not, once there is a file `go`."""
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        while not (folder / "go").exists():
            time.sleep(0.05)
        if way == "dies":
            dies_at_once()
        raise StudyError("worker on elsewhere: other parents") from None
    return lambda job, _: answer(job, "scored")


def dies_at_once():
    os.kill(os.getpid(), signal.SIGKILL)


def reasons(workers, count: int) -> dict[int, str]:
    """Give out jobs 0, 1, ... as workers are idle; return what became of each."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        while workers.idle > 0 and number < count:
            workers.submit(Job(number, RECIPE, ()))
            number += 1
        for result in workers.wait():
            assert result.number not in found
            found[result.number] = result.scores.reason
    return found


def scored(build, count: int, **given) -> dict[int, str]:
    section = WorkersSection.model_validate(
        {"engine": "ray", "num": 2, "gpus_per_worker": 0, **given}
    )
    workers = RayWorkers(section, build, gpus=0, keep=forget)
    try:
        return reasons(workers, count)
    finally:
        workers.close()


@pytest.mark.slow
def test_a_candidate_that_kills_its_worker_three_times_has_failed(with_ray):
    found = scored(odd_ones_die, 4)
    assert found[0] == found[2] == "even"
    assert found[1].startswith("its worker died 3 times: ")
    assert found[3].startswith("its worker died 3 times: ")


@pytest.mark.slow
def test_a_candidate_whose_worker_died_is_begun_anew(with_ray, tmp_path):
    found = scored(partial(the_first_time_dies, tmp_path), 4)
    assert found == dict.fromkeys(range(4), "the second time")


def dies_after_a_rung(job: Job, keep: Keep) -> Result:
    """The process dies soon after the first rung; whoever has it already goes on."""
    if job.partial is not None:
        return answer(job, f"went on from {job.partial.n}")
    keep(job.number, SOME)
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_rungs_of_a_worker_that_died_are_kept_and_gone_on_with(with_ray):
    heard = []
    section = WorkersSection.model_validate(RAY)
    workers = RayWorkers(
        section, lambda: dies_after_a_rung, gpus=0, keep=lambda *rung: heard.append(rung)
    )
    try:
        assert reasons(workers, 2) == dict.fromkeys((0, 1), "went on from 3")
    finally:
        workers.close()
    assert sorted((number, partial.n) for number, partial in heard) == [(0, 3), (1, 3)]


@pytest.mark.slow
def test_a_candidate_that_takes_too_long_has_failed(with_ray):
    found = scored(sleeps, 5, timeout=3)
    assert found.pop(1) == "took longer than workers.timeout, 3 s"
    assert found == dict.fromkeys((0, 2, 3, 4), "slept")


@pytest.mark.slow
def test_what_a_worker_refuses_ends_the_search_with_its_reason(with_ray):
    with pytest.raises(ConfigError, match="no such parent"):
        scored(refuses, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way, said",
    [
        ("refuses", "worker on elsewhere: other parents"),
        ("dies", "2 workers in a row died before they were ready: "),
    ],
)
def test_a_worker_that_cannot_be_made_costs_the_others_nothing(
    with_ray, monkeypatch, tmp_path, caplog, way, said
):
    monkeypatch.setattr("heterosis.search.evaluate.ray_workers.MAX_START_FAILURES", 2)
    section = WorkersSection(engine="ray", num=2, gpus_per_worker=0)
    workers = RayWorkers(section, partial(the_first_alone, tmp_path, way), gpus=0, keep=forget)
    try:
        wait_until(workers, lambda: workers.idle > 0)
        (tmp_path / "go").touch()
        wait_until(workers, lambda: "the search goes on with 1 worker(s)" in caplog.text)
        assert said in caplog.text
        assert reasons(workers, 3) == dict.fromkeys(range(3), "scored")
    finally:
        workers.close()


@pytest.mark.slow
def test_workers_that_never_come_up_end_the_search(with_ray, monkeypatch):
    monkeypatch.setattr("heterosis.search.evaluate.ray_workers.MAX_START_FAILURES", 2)
    with pytest.raises(StudyError, match=r"workers must start, 2 in a row died before: .*logs"):
        scored(dies_at_once, 1)


@pytest.mark.slow
def test_a_worker_waits_for_its_device_and_a_warning_is_logged(with_ray, monkeypatch, caplog):
    monkeypatch.setattr("heterosis.search.evaluate.ray_workers.WARN_AFTER", 1.0)
    workers = RayWorkers(WorkersSection(engine="ray"), tells_its_process, gpus=64, keep=forget)
    try:
        wait_until(workers, lambda: "no worker is ready" in caplog.text)
        assert "waiting for 1 with 1 CPU(s) and 64 GPU(s) each; add a machine" in caplog.text
        assert workers.idle == 0
    finally:
        workers.close()


@pytest.mark.parametrize(
    "given, said",
    [
        (
            {"most": 8},
            "64 workers, but generations of 10 candidates and 16 ahead are sized for 8",
        ),
        ({"generation": 30, "ahead": 9}, "generations of 30 candidates and 9 ahead are sized"),
        ({}, None),
    ],
)
def test_workers_that_would_wait_are_reported(small_search, given, said):
    parts = open_parts(load_config(small_search.write(workers=RAY | {"num": 64} | given)))
    notes: list[str] = []
    reporter = type("Reporter", (), {"note": lambda _, text: notes.append(text)})()
    worker_factory(parts, {"device": "cpu"}, {}, reporter)
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.slow
def test_an_unreachable_cluster_is_refused(with_ray):
    section = WorkersSection(engine="ray", address="127.0.0.1:1")
    with pytest.raises(ConfigError, match="must be that of a running Ray cluster"):
        RayWorkers(section, sleeps, gpus=0, keep=forget)


@pytest.mark.slow
def test_two_workers_find_what_one_finds(with_ray, small_search, tmp_path):
    outcome, _ = run(small_search.write(search=SEARCH, workers={"engine": "local"}))
    assert outcome.finished
    path = small_search.write(search=SEARCH, workers=RAY, results=str(tmp_path / "two"))
    outcome, _ = run(path)
    assert outcome.finished
    assert record(tmp_path / "two") == record(small_search.results)
    assert any(row.candidate.raced for row in outcome.board.rows)


def actors_of(process) -> list[int]:
    """Process ids of a driver's actors."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [p.pid for p in below if "_Scorer" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_killed_workers_and_a_killed_driver_change_nothing(with_ray, small_search, tmp_path):
    search = SEARCH | {"trials": 60}
    run(small_search.write(search=search, workers={"engine": "local"}))
    results = tmp_path / "killed"
    path = small_search.write(search=search, workers=RAY, results=str(results))
    process = start(path, results)
    wait_for_new_lines(process, results, 12)
    (one, *_) = actors_of(process)
    os.kill(one, signal.SIGKILL)
    wait_for_new_lines(process, results, 4)
    others = actors_of(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while any(is_alive(pid) for pid in others):
        assert time.monotonic() < deadline, "actors have outlived their driver"
        time.sleep(0.2)
    assert start(path, results).wait() == 0
    assert record(results) == record(small_search.results)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_frees_the_workers(with_ray, small_search, tmp_path, number):
    results = tmp_path / "stopped"
    search = SEARCH | {"trials": 400}
    path = small_search.write(search=search, workers=RAY)
    process = start(path, results, stdout=subprocess.PIPE)
    wait_for_new_lines(process, results, 12)
    actors = actors_of(process)
    assert len(actors) == 2
    cluster = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    out, _ = process.communicate()
    assert process.returncode == 130, out
    assert "ended early: the same command continues" in out
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in cluster):
        assert time.monotonic() < deadline, "processes of Ray are left"
        time.sleep(0.2)


def test_ray_is_configured_as_a_section(small_search):
    config = load_config(small_search.write(workers=RAY | {"address": "auto", "timeout": 60}))
    assert config.workers.address == "auto"
