"""Runs a search and kills it, again and again: `kill_script.py CONFIG RESULTS KILLS SEED`.

Each run is a fork of this process, which has imported all that takes seconds. Prints a line of
JSON: how many candidates were finished, confirmed, and kept with some rungs, at each kill.
"""

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM
from heterosis.search.config.load import load_config
from heterosis.search.run import run_search
from heterosis.search.storage import partial_scores
from heterosis.search.storage.journal import JOURNAL
from heterosis.search.study.progress import PlainReporter
from rich.console import Console

torch.set_num_threads(1)
partial_scores.SECONDS = 0.0  # tiny models' rungs are kept, too


def fork_search(path: Path, results: Path) -> int:
    """Start a search; return its process id."""
    process = os.fork()
    if process:
        return process
    config = load_config(path).model_copy(update={"results": results})
    try:
        run_search(config, PlainReporter(Console(file=io.StringIO())))
    finally:
        os._exit(0)


def is_over(process: int) -> bool:
    return os.waitpid(process, os.WNOHANG)[0] != 0


def candidates(results: Path) -> int:
    journal = results / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def kept_rungs(results: Path) -> dict[str, int]:
    """Return the files of unfinished candidates, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in results.glob("items/begun/trial*")}


def confirmed(results: Path) -> set[str]:
    return {path.name for path in results.glob("items/*.confirm.parquet")}


def moments(kills: int, chance: random.Random, results: Path) -> Iterator[Callable[[], bool]]:
    """What to wait for: a third while starting, half while searching, the rest confirming.

    Of those while searching every other one is soon after a rung.
    """
    for kill in range(kills):
        if kill % 3 == 0:
            at = time.monotonic() + chance.uniform(0.0, 1.0)
            yield lambda at=at: time.monotonic() > at
        elif kill % 2 and kill < 0.85 * kills:
            seen = kept_rungs(results)
            yield lambda seen=seen: bool(kept_rungs(results).items() - seen.items())
        elif kill < 0.85 * kills:
            wanted = candidates(results) + chance.randint(1, 2)
            yield lambda wanted=wanted: candidates(results) > wanted
        else:
            before = confirmed(results)
            yield lambda before=before: bool(confirmed(results) - before)


def main(config: str, folder: str, kills: str, seed: str) -> None:
    """Kill, and say when."""
    path, results, chance = Path(config), Path(folder), random.Random(int(seed))
    killed = []
    for is_time in moments(int(kills), chance, results):
        process = fork_search(path, results)
        while not is_time():
            assert not is_over(process), f"the search was over after {len(killed)} kills"
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        keys = ItemStore(results / "items").keys()
        splits = [split for _, split in keys]
        killed.append((candidates(results), splits.count(CONFIRM), len(kept_rungs(results))))
    sys.stdout.write(f"{json.dumps(killed)}\n")


main(*sys.argv[1:])
