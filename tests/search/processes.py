"""Start searches as processes, and wait for what they write."""

import os
import subprocess
import sys
import time

from heterosis.search.storage.journal import JOURNAL

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


SEARCH = {"trials": 14, "racing": {"first": 10, "alpha": 0.3}, "sampler_args": {"popsize": 4}}
