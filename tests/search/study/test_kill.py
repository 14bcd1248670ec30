"""A search that is killed again and again gives the result of an uninterrupted one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..processes import ENVIRONMENT, start, wait_for_new_lines
from ..studies import record, without_seconds

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
