"""Real searches against baselines, compared on confirm items that no search has seen.

    make bench-search
    python benchmarks/searches.py CONFIG --items 8000 --seeds 3 --lean --work FOLDER --out FOLDER

Runs the product's search for several seeds, in single-thread processes. The table is rewritten
whenever a seed is finished; the same command with the same `--work` resumes.
"""

from __future__ import annotations

import argparse
import datetime
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
from samplers import write_results
from verdicts import PairedBootstrap, best_baselines, best_of_search, rows, table

RANDOM = {"sampler": "RandomSampler", "sampler_args": {}}
CMA = {"sampler": "CmaEsSampler", "sampler_args": {}}
SEARCHES: Mapping[str, Mapping[str, Any]] = {
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
"""Search setting -> changes to the configuration's `search` section."""

FIRST = ("as configured", "random, every item", "CMA-ES, every item")
"""Default of --only."""

BASELINES = "no search"

MINIMAL = BaselinesSection(lambdas=(), ties_drop_rates=(), dare_ties_drop_rates=())
"""Base, parents and uniform only."""


@dataclass(frozen=True)
class Job:
    """One search to run or resume.

    Attributes:
        name: Key of SEARCHES, or BASELINES.
        seed: Its run_seed.
        config: Its configuration, with its own results folder.
    """

    name: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.config.results_folder

    @property
    def seconds(self) -> float | None:
        """CPU time of the search; None until it is finished."""
        file = self.folder.with_suffix(".seconds")
        return float(file.read_text()) if file.is_file() else None


@dataclass(frozen=True)
class Plan:
    """All searches of the benchmark.

    Attributes:
        config: Base configuration.
        names: Keys of SEARCHES; the others are compared with the first.
        seeds: Number of seeds.
        items: Budget of each search.
        work: Folder of the studies.
        lean: Whether only the baselines' study scores all baselines, to save items on slow models.
            Random search without racing never scores them: it does not use their scores.
    """

    config: Config
    names: Sequence[str]
    seeds: int
    items: int
    work: Path
    lean: bool = False

    @property
    def baselines(self) -> Job:
        """Study of the baselines."""
        return self._job(BASELINES, 0, {"trials": 0, "items": None})

    @property
    def searches(self) -> Iterator[Job]:
        """One search per seed and setting."""
        for seed in range(self.seeds):
            for name in self.names:
                yield self._job(name, seed, SEARCHES[name])

    def _job(self, name: str, seed: int, changes: Mapping[str, Any]) -> Job:
        section = self.config.search.model_copy(
            update={
                "trials": None,
                "items": self.items,
                "finalists": 1,
                "dissect": False,
                "run_seed": seed,
                **changes,
            }
        )
        update: dict[str, Any] = {
            "search": section,
            "eval": self.config.eval.model_copy(update={"threads": 1}),
            "guard": (),
            "results": self.work / f"{name.replace(',', '').replace(' ', '-')}-{seed}",
        }
        ignores_scores = section.sampler == "RandomSampler" and not section.racing
        if name != BASELINES and (self.lean or ignores_scores):
            update["baselines"] = MINIMAL
        return Job(name, seed, self.config.model_copy(update=update))


def run(job: Job) -> Job:
    """Run or resume a search; write its CPU time beside its folder."""
    if job.seconds is not None:
        return job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        outcome = run_search(job.config, PlainReporter(Console(file=log)))
    if not outcome.finished:
        raise RuntimeError(f"{job.folder}: the search did not finish; see {log.name}")
    job.folder.with_suffix(".seconds").write_text(f"{time.process_time() - start:.1f}")
    return job


def run_all(plan: Plan, processes: int) -> Iterator[Job]:
    """Run all searches, the baselines' study first; yield each as it finishes."""
    jobs = [plan.baselines, *plan.searches]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                yield future.result()
        except BaseException:  # searches not yet started would only delay the error
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def results(plan: Plan) -> dict[str, Any] | None:
    """Return the results of the seeds whose searches are all finished; None if there are none."""
    finished = {(job.name, job.seed): job for job in plan.searches if job.seconds is not None}
    seeds = [
        seed for seed in range(plan.seeds) if all((name, seed) in finished for name in plan.names)
    ]
    if plan.baselines.seconds is None or not seeds:
        return None
    searched = {
        name: [
            best_of_search(job.folder, job.seconds or 0.0)
            for job in (finished[name, seed] for seed in seeds)
        ]
        for name in plan.names
    }
    others = dict(best_baselines(plan.baselines.folder))
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
        "rows": list(rows(searched, others, PairedBootstrap(board.objective, items))),
    }


def page(facts: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page."""
    lean = (
        " Searches start from base, parents and uniform only; the other baselines were scored once."
        if facts["lean"]
        else ""
    )
    seconds = [row["seconds"] for row in facts["rows"] if "seconds" in row]
    text = (
        f"{facts['date']}; {len(facts['seeds'])} seeds, {facts['budget']} search items each, in "
        f"{facts['dtype']}; objective: {facts['objective']}; {facts['confirm_items']} confirm "
        "items, which no search has seen. A search is represented by its best candidate on the "
        "search items. Items are counted up to the search score that half of the searches of the "
        "last setting reach. Of several baselines of one kind the best on the search items is "
        f"shown, with the items of all of them.{lean} A search takes {min(seconds):.0f} to "
        f"{max(seconds):.0f} CPU-seconds, baselines and confirmation included. The last column "
        "counts the leaderboards that show it better than every baseline."
    )
    return f"# Real searches of `{facts['config']}`\n\n{text}\n\n{table(facts['rows'])}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Real searches, compared on confirm items.")
    parser.add_argument(
        "config",
        nargs="?",
        default="quickstart",
        help="configuration file, or name of a shipped one",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--items", type=int, default=24_000, help="budget of each search")
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=FIRST)
    parser.add_argument("--lean", action="store_true", help="score all baselines only once")
    parser.add_argument("--dtype", help="dtype of the merges (default: the configuration's)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder of the studies (default: temporary)")
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
                write_results(options.out, "searches", facts, page(facts))
        facts = results(plan)
        print(page(facts) if facts else "no search is finished")


if __name__ == "__main__":
    main()
