"""A search of thousands of candidates: its overhead, resuming it, and its leaderboard and report.

`Study` is the product's; engine and scorer are stubs that answer at once, from a landscape with a
fixed seed, so that only the search's overhead is left of a candidate's time. `make bench-large`
prints CPU-seconds of this process or of a child: the overhead early and late, as a share of a
candidate's time; resuming the study, up to the next proposal; `heterosis leaderboard` and
`heterosis report`. A study given by --study is resumed until it has enough candidates.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from heterosis.evals.scores.fingerprint import fingerprint_of
from heterosis.evals.scores.scores import ItemScores, item_scores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import Config
from heterosis.search.config.load import find_config, load_config
from heterosis.search.evaluate.evaluator import Evaluator
from heterosis.search.evaluate.objective import Objective
from heterosis.search.propose.baselines import null_baselines
from heterosis.search.propose.space import Space, build_space
from heterosis.search.propose.stages import Stage
from heterosis.search.storage.candidate import Candidate, candidate_of
from heterosis.search.storage.journal import Journal, lock_folder
from heterosis.search.storage.read import read_record
from heterosis.search.study.budget import Budget, limits_of
from heterosis.search.study.study import Study
from rich.console import Console
from rich.table import Table
from timing import machine

SEED = 20261127
TASKS = ("python", "java")
PER_TASK = {SEARCH: 120, CONFIRM: 250}
WINDOW = 30  # candidates over which the median overhead is taken


class Landscape:
    """A stub of engine and scorer whose answers depend on the recipe's weights alone.

    Each task has a skill, a smooth function of the weights; an item is right where skill plus a
    little noise, seeded by recipe and item, exceeds its difficulty.
    """

    fingerprint = fingerprint_of({"landscape": SEED})

    def __init__(self) -> None:
        chance = np.random.default_rng(SEED)
        self._items = {split: chance.normal(size=(2, n)) for split, n in PER_TASK.items()}
        self._best = chance.uniform(0.3, 0.7, size=2)
        self._rungs: list[np.ndarray] = []
        self._recipe: Recipe | None = None

    def load(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def items(self, split: str) -> int:
        return 2 * PER_TASK.get(split, 0)

    def plan_rungs(self, split: str, order: Sequence[int], ends: Sequence[int]) -> None:  # noqa: ARG002
        self._rungs = [np.sort(order[:end]) for end in ends]

    def rungs(self, split: str, met: ItemScores | None = None) -> Iterator[ItemScores]:
        scores = self.score(split)
        for places in self._rungs:
            if met is None or places.size > met.n:
                yield scores.subset(places)

    def score(self, split: str) -> ItemScores:
        recipe, difficulty = self._recipe, self._items[split]
        assert recipe is not None
        weights = np.array([c.weights for c in recipe.coefficients.values()])  # (L, 2)
        far = ((weights - self._best) ** 2).mean(0) + 0.4 * ((weights.sum(1) - 1) ** 2).mean()
        chance = np.random.default_rng([SEED, int(recipe.digest[:12], 16), difficulty.shape[1]])
        margin = 1.0 - 6.0 * far[:, None] - difficulty + 0.3 * chance.normal(size=difficulty.shape)
        n = margin.shape[1]
        columns = {
            "task_index": np.repeat([0, 1], n),
            "doc_id": np.tile(np.arange(n), 2),
            "value": (margin > 0).astype(float).ravel(),
            "weight": np.ones(2 * n),
            "margin": margin.ravel(),
            "log_likelihood": -np.logaddexp(0, -margin).ravel(),
        }
        header = {
            "tasks": TASKS,
            "metrics": ("acc,none",) * 2,
            "aggregations": ("mean",) * 2,
            "higher_is_better": (True,) * 2,
        }
        return item_scores(header, columns, self.fingerprint)


@dataclass(frozen=True)
class Setting:
    """Configuration of a large study: the quickstart's parents, in a model of ``layers`` layers."""

    trials: int
    layers: int
    sampler: str

    @property
    def config(self) -> Config:
        data = load_config(find_config("quickstart")).to_dict()
        data["name"] = f"large-{self.layers}"
        data["search"] |= {
            "trials": self.trials,
            "sampler": self.sampler,
            "sampler_args": {},
            "dissect": False,
        }
        return Config.model_validate(data)

    @property
    def space(self) -> Space:
        kinds = ("attn", "mlp", "other")
        layers = [f"layers.{n}.{kind}" for n in range(self.layers) for kind in kinds]
        return build_space(self.config, ["embed", *layers, "head"])


@dataclass
class Laps:
    """A reporter that records the CPU time at each finished candidate."""

    ends: list[float] = field(default_factory=list)

    def finished(self, candidate: Candidate, items: int) -> None:  # noqa: ARG002
        if candidate.is_searched:
            self.ends.append(time.process_time())

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Ignore."""

    def forecast(self, total: int | None) -> None:
        """Ignore."""

    def known(self, candidates: Sequence[Candidate]) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""


def search(setting: Setting, folder: Path, stop: Callable[[], bool] = lambda: False) -> Laps:
    """Run or continue a search in a folder."""
    config, space, laps, stub = setting.config, setting.space, Laps(), Landscape()
    objective = Objective("mean", dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, 1))
    anything: Any = stub
    with lock_folder(folder):
        journal = Journal(folder, write=True)
        journal.write_manifest(
            {
                "config": config.to_dict(),
                "identity": {"objective": objective.to_dict(), "space": space.to_dict()},
                "machine": {"device": "cpu", "threads": 1, "deadline": None},
            }
        )
        known = [candidate_of(trial) for trial in journal.trials]
        Study(
            Evaluator(anything, anything, objective),
            (Stage(space),),
            config.search,
            null_baselines(space, config.baselines),
            journal,
            ItemStore(folder / "items"),
            laps,
            Budget(limits_of(config.search, None, known), 0),
            stop,
        ).run()
    return laps


def searched(folder: Path) -> int:
    """Count the searched candidates of a study."""
    if not (folder / "study.journal").is_file():
        return 0
    return sum(candidate.is_searched for candidate in read_record(folder).candidates)


def overheads(setting: Setting, folder: Path, at: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield the overhead per candidate (CPU-seconds) after ``at`` candidates.

    The search is resumed to WINDOW candidates beyond each count; the median over these is yielded.
    """
    for count in at:
        if searched(folder) <= count:
            laps = search(Setting(count + WINDOW, setting.layers, setting.sampler), folder)
            yield count, statistics.median(np.diff(laps.ends[-WINDOW:]).tolist())


def resumed(setting: Setting, folder: Path) -> float:
    """Return CPU-seconds from resuming a study, after imports, to its next proposal."""
    start, asked = time.process_time(), []

    def stop() -> bool:
        asked.append(time.process_time())
        return True

    search(Setting(setting.trials * 2, setting.layers, setting.sampler), folder, stop)
    return asked[0] - start


def command(*arguments: object) -> float:
    """Return CPU-seconds of one `heterosis` command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "heterosis.search", *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Overhead of a search of thousands of candidates.")
    add = parser.add_argument
    add("--trials", type=int, default=10_000, help="candidates (default 10000)")
    add("--layers", type=int, default=4, help="layers of the model (default 4)")
    add("--sampler", default="CmaEsSampler", help="Optuna sampler (default CmaEsSampler)")
    add("--candidate", type=float, default=5.0, help="assumed seconds per candidate (default 5)")
    add("--study", type=Path, help="folder of the study, new or existing (default: temporary)")
    return parser.parse_args()


def main() -> None:
    options, console = parse(), Console(width=None if os.isatty(1) else 120)
    setting = Setting(options.trials, options.layers, options.sampler)
    for name, value in machine().items():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    table = Table("measured", "CPU-seconds", "note")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.study or Path(temporary) / "study"
        counts = [n for n in (10, 1000, 10_000) if n < setting.trials] + [setting.trials]
        for count, seconds in overheads(setting, folder, counts):
            share = f"{seconds / options.candidate:.2%} of {options.candidate:g} s"
            table.add_row(f"overhead of candidate {count}", f"{seconds:.4f}", share)
        table.add_row("resuming, to the next proposal", f"{resumed(setting, folder):.2f}", "")
        for name in ("leaderboard", "report"):
            table.add_row(f"heterosis {name}", f"{command(name, folder):.2f}", "imports included")
    console.print(table)


if __name__ == "__main__":
    main()
