"""Real searches against what anyone would try first, judged on items that no search has seen.

    make bench-search
    python benchmarks/searches.py CONFIG --items 8000 --seeds 3 --lean --work FOLDER --out FOLDER

Runs the product's own search for several seeds, in processes of one thread. The table is written
anew whenever a seed is finished; the same command with the same `--work` goes on where it was
ended.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from heterosis.search.config.config import Config
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import BaselinesSection
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.run import run_search
from heterosis.search.study.progress import PlainReporter
from heterosis.search.study.resume import versions
from rich.console import Console
from verdicts import Judge, handed_back, rows, table, unsearched

RANDOM = {"sampler": "RandomSampler", "sampler_args": {}}
CMA = {"sampler": "CmaEsSampler", "sampler_args": {}}
CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "as configured": {},
    "CMA-ES, separable": CMA | {"sampler_args": {"use_separable_cma": True}},
    "CMA-ES, lr_adapt": CMA | {"sampler_args": {"lr_adapt": True}},
    "random": RANDOM,
    "QMC": {"sampler": "QMCSampler", "sampler_args": {}},
    "TPE": {"sampler": "TPESampler", "sampler_args": {}},
    "NSGA-II": {"sampler": "NSGAIISampler", "sampler_args": {}},
    "GP": {"sampler": "GPSampler", "sampler_args": {}},
    "random, every item": RANDOM | {"racing": False},
    "CMA-ES, every item": CMA | {"racing": False},
}
"""Way to search -> what differs from the configuration's `search` section."""

FIRST = ("as configured", "random, every item", "CMA-ES, every item")
"""What is run unless others are named."""

BASELINES = "no search"

FEW = BaselinesSection(lambdas=(), ties_drop_rates=(), dare_ties_drop_rates=())
"""Base, parents and uniform are scored in any case."""


@dataclass(frozen=True)
class Job:
    """One search to be run, or continued.

    Attributes:
        name: Of the contender whose it is, or BASELINES.
        seed: Its run_seed.
        config: Its own, with a results folder of its own.
    """

    name: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        """Of the study."""
        return self.config.results_folder

    @property
    def seconds(self) -> float | None:
        """CPU time that the whole search took; None while it is not finished."""
        kept = self.folder.with_suffix(".seconds")
        return float(kept.read_text()) if kept.is_file() else None


@dataclass(frozen=True)
class Plan:
    """Which searches are run.

    Attributes:
        config: What is searched.
        names: Keys of CONTENDERS; the first is held against the others.
        seeds: How many.
        items: That each search may spend.
        work: Where the studies lie.
        lean: Whether no search scores all baselines, but the study of their own alone: for models
            of which an item is dear. Random search that does not race never does: it learns
            nothing of them.
    """

    config: Config
    names: Sequence[str]
    seeds: int
    items: int
    work: Path
    lean: bool = False

    @property
    def baselines(self) -> Job:
        """The study of the merges that need no search."""
        return self._job(BASELINES, 0, {"trials": 0, "items": None})

    @property
    def searches(self) -> Iterator[Job]:
        """One per seed and contender."""
        for seed in range(self.seeds):
            for name in self.names:
                yield self._job(name, seed, CONTENDERS[name])

    def _job(self, name: str, seed: int, own: Mapping[str, Any]) -> Job:
        section = self.config.search.model_copy(
            update={
                "trials": None,
                "items": self.items,
                "finalists": 1,
                "dissect": False,
                "run_seed": seed,
                **own,
            }
        )
        update: dict[str, Any] = {
            "search": section,
            "eval": self.config.eval.model_copy(update={"threads": 1}),
            "guard": (),
            "results": self.work / f"{name.replace(',', '').replace(' ', '-')}-{seed}",
        }
        is_deaf = section.sampler == "RandomSampler" and not section.racing
        if name != BASELINES and (self.lean or is_deaf):
            update["baselines"] = FEW
        return Job(name, seed, self.config.model_copy(update=update))


def run(job: Job) -> Job:
    """Run a search to its end, or continue it; its CPU time is kept beside its folder."""
    if job.seconds is not None:
        return job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        outcome = run_search(job.config, PlainReporter(Console(file=log)))
    if not outcome.finished:
        raise RuntimeError(f"{job.folder}: the search did not come to its end; see {log.name}")
    job.folder.with_suffix(".seconds").write_text(f"{time.process_time() - begun:.1f}")
    return job


def run_all(plan: Plan, processes: int) -> Iterator[Job]:
    """Run all searches, the baselines' study first; yield each when it is finished."""
    jobs = [plan.baselines, *plan.searches]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                yield future.result()
        except BaseException:  # what has not begun would only hide what went wrong
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def results(plan: Plan) -> dict[str, Any] | None:
    """The table's rows over the seeds of which all searches are finished; None before the first."""
    finished = {(job.name, job.seed): job for job in plan.searches if job.seconds is not None}
    whole = range(plan.seeds)
    seeds = [seed for seed in whole if all((name, seed) in finished for name in plan.names)]
    if plan.baselines.seconds is None or not seeds:
        return None
    searched = {
        name: [
            handed_back(job.folder, job.seconds or 0.0)
            for job in (finished[name, seed] for seed in seeds)
        ]
        for name in plan.names
    }
    others = dict(unsearched(plan.baselines.folder))
    board = read_leaderboard(plan.baselines.folder)
    items = next(iter(others.values())).items
    return {
        "config": plan.config.name,
        "dtype": plan.config.merge.dtype,
        "objective": board.objective.phrase,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "seeds": seeds,
        "budget": plan.items,
        "lean": plan.lean,
        "confirm_items": items.n,
        "rows": list(rows(searched, others, Judge(board.objective, items))),
    }


def page(facts: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    lean = (
        " Searches start from base, parents and uniform alone; the other merges were scored once."
        if facts["lean"]
        else ""
    )
    seconds = [row["seconds"] for row in facts["rows"] if "seconds" in row]
    text = (
        f"{facts['date']}; {len(facts['seeds'])} seeds, {facts['budget']} search items each, in "
        f"{facts['dtype']}; objective: {facts['objective']}; {facts['confirm_items']} confirm "
        "items, which no search has seen. What a search hands back is its best candidate on the "
        "search items; items are counted up to a score on the search items that half of the last "
        "way's searches reach; of several merges of one kind the best on the search items is "
        f"shown, and its items are those of all of them.{lean} A search takes {min(seconds):.0f} "
        f"to {max(seconds):.0f} CPU-seconds, baselines and confirmation among them. The last "
        "column counts the leaderboards that call it better than every baseline."
    )
    return f"# Real searches of `{facts['config']}`\n\n{text}\n\n{table(facts['rows'])}\n"


def write(facts: Mapping[str, Any], out: Path) -> None:
    """Write searches.md and searches.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "searches.json").write_text(json.dumps(facts, indent=1))
    (out / "searches.md").write_text(page(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description="Real searches, judged on confirm items.")
    parser.add_argument("config", nargs="?", default="quickstart", help="what is searched")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--items", type=int, default=24_000, help="that each search may spend")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=FIRST)
    parser.add_argument("--lean", action="store_true", help="score all baselines only once")
    parser.add_argument("--dtype", help="of the merges; default: the configuration's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder of the studies; default: a temporary one")
    parser.add_argument("--out", type=Path, help="folder for searches.md and searches.json")
    options = parser.parse_args()
    config = load_config(find_config(options.config))
    if options.dtype:
        merge = config.merge.model_copy(update={"dtype": options.dtype})
        config = config.model_copy(update={"merge": merge})
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(
            config=config,
            names=options.only,
            seeds=options.seeds,
            items=options.items,
            work=options.work or Path(temporary),
            lean=options.lean,
        )
        for job in run_all(plan, options.processes):
            print(f"{job.name}, seed {job.seed}: {job.seconds:.0f} CPU-seconds", flush=True)
            facts = results(plan)
            if facts and options.out:
                write(facts, options.out)
        facts = results(plan)
        print(page(facts) if facts else "nothing is finished")


if __name__ == "__main__":
    main()
