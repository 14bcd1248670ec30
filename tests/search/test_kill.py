"""A search that is killed, again and again, ends where an uninterrupted one ends."""

import csv
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


def start(path, results, stdout: int = subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "search", str(path), "--results", str(results)],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def lines_of(results) -> int:
    journal = results / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def wait_for_new_lines(process, results, count: int = 2) -> None:
    """Let the process finish some candidates."""
    before = lines_of(results)
    while process.poll() is None and lines_of(results) <= before + count:
        time.sleep(0.002)


def wait_for_a_confirmation(process, results) -> None:
    """Let the process come as far as one more confirmed candidate."""
    before = len(list(results.glob("items/*.confirm.parquet")))
    while process.poll() is None:
        if len(list(results.glob("items/*.confirm.parquet"))) > before:
            return
        time.sleep(0.002)


def moments(chance: random.Random, results):
    """Ten ways to choose the instant: while starting, while searching, while confirming."""
    for _ in range(3):
        yield lambda process: time.sleep(chance.uniform(0.0, 8.0))
    for _ in range(4):
        yield lambda process: wait_for_new_lines(process, results, chance.randint(0, 9))
    for _ in range(3):
        yield lambda process: wait_for_a_confirmation(process, results)


@pytest.mark.slow
def test_kill_nine_at_ten_random_moments(small_search, tmp_path):
    path = small_search.write(search={"trials": 60, "finalists": 3})
    whole, results = tmp_path / "whole", tmp_path / "killed"
    assert start(path, whole).wait() == 0

    chance = random.Random(20)
    finished_before: list = []
    for wait in moments(chance, results):
        process = start(path, results)
        wait(process)
        time.sleep(chance.uniform(0.0, 0.1))
        assert process.poll() is None, "the search was over before it had been killed ten times"
        process.kill()
        process.wait()
        now = record(results) if lines_of(results) else []
        assert now[: len(finished_before)] == finished_before
        finished_before = now
    assert len(finished_before) == 67
    assert start(path, results).wait() == 0
    assert record(results) == record(whole)
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert without_seconds(results / name) == without_seconds(whole / name)


def without_seconds(path) -> list[list[str]]:
    """A leaderboard's cells, but for how long each candidate took."""
    rows = list(csv.reader(path.read_text().splitlines()))
    skipped = rows[0].index("seconds") if "seconds" in rows[0] else None
    return [[cell for i, cell in enumerate(row) if i != skipped] for row in rows]


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
