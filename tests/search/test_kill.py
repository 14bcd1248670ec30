"""A search that is killed, again and again, ends where an uninterrupted one ends."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from heterosis.search.journal import JOURNAL

from .test_search import record

COMMAND = (sys.executable, "-m", "heterosis.search")


def start(path, results) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "search", str(path), "--results", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def lines_of(results) -> int:
    journal = results / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def wait_for_a_new_line(process, results, before: int) -> None:
    """Let the process come as far as a finished candidate."""
    while process.poll() is None and lines_of(results) <= before + 2:
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_nine_at_ten_random_moments(small_search, tmp_path):
    path = small_search.write(search={"trials": 60, "finalists": 3})
    whole = tmp_path / "whole"
    assert start(path, whole).wait() == 0

    chance, kills, results = random.Random(20), 0, tmp_path / "killed"
    finished_before: list = []
    while kills < 10:
        process = start(path, results)
        wait_for_a_new_line(process, results, lines_of(results))
        time.sleep(chance.uniform(0.0, 0.15))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        now = record(results)
        assert now[: len(finished_before)] == finished_before
        finished_before = now
    assert kills == 10, "the search was over before it had been killed ten times"
    assert start(path, results).wait() == 0
    assert record(results) == record(whole)
    for name in ("leaderboard.md",):
        assert (results / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_ctrl_c_ends_softly_with_a_leaderboard_and_the_same_command_continues(
    small_search, tmp_path
):
    path = small_search.write(search={"trials": 60, "finalists": 2})
    results = tmp_path / "stopped"
    process = start(path, results)
    wait_for_a_new_line(process, results, 12)
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
