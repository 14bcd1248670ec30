"""A search that is killed, again and again, ends where an uninterrupted one ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from heterosis.search.storage.journal import JOURNAL

from .test_search import record, without_seconds

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
COMMAND = (sys.executable, "-m", "heterosis.search")


def start(path, results, stdout: int = subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "search", str(path), "--results", str(results)],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def lines_of(results) -> int:
    journal = results / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def wait_for_new_lines(process, results, count: int = 2) -> None:
    """Let the process finish some candidates."""
    before = lines_of(results)
    while process.poll() is None and lines_of(results) <= before + count:
        time.sleep(0.002)


KILLS = 100


@pytest.mark.slow
def test_kill_nine_at_a_hundred_random_moments(small_search, tmp_path):
    racing = {"first": 10, "alpha": 0.3}
    path = small_search.write(search={"trials": 120, "finalists": 20, "racing": racing})
    whole, results = tmp_path / "whole", tmp_path / "killed"
    assert start(path, whole).wait() == 0
    script = Path(__file__).with_name("kill_script.py")
    command = [sys.executable, str(script), str(path), str(results), str(KILLS), "20"]
    done = subprocess.run(command, check=True, text=True, capture_output=True, env=ENVIRONMENT)
    killed = json.loads(done.stdout.splitlines()[-1])
    assert len(killed) == KILLS
    finished = [kill[:2] for kill in killed]
    assert finished == sorted(finished), "something finished was lost"
    assert sum(confirmed > 0 for _, confirmed in finished) > 5
    assert sum(rungs for *_, rungs in killed) > 5
    assert start(path, results).wait() == 0
    assert record(results) == record(whole)
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert without_seconds(results / name) == without_seconds(whole / name)


@pytest.mark.slow
def test_ctrl_c_ends_softly_with_a_leaderboard_and_the_same_command_continues(
    small_search, tmp_path
):
    path = small_search.write(search={"trials": 60, "finalists": 2})
    results = tmp_path / "stopped"
    process = start(path, results, stdout=subprocess.PIPE)
    wait_for_new_lines(process, results, 12)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert "SIGINT: finishing the current candidate, then confirming the best" in out
    assert "ended early: the same command continues" in out
    assert (results / "leaderboard.md").is_file()
    stopped = record(results)
    assert len(stopped) < 67
    assert start(path, results).wait() == 0
    assert record(results)[: len(stopped)] == stopped
    assert len(record(results)) == 67
