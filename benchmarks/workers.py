"""How busy many workers are, and what that costs the sampler: simulated, and two real ones by Ray.

    make bench-workers

The study loop is the product's own (study, flights, pace, proposer, race, journal, store); a clock
that is moved by hand stands in for time, and a recorded landscape's surrogate for models. The
driver's own seconds are measured by the CPU's clock and stated apart. Legend: N workers.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.stats.racing import Race
from heterosis.evals.tasks.splits import GUARD, SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.scoring import WorkersSection
from heterosis.search.config.search import RacingSection, SearchSection
from heterosis.search.evaluate.evaluator import Evaluator
from heterosis.search.evaluate.objective import Objective
from heterosis.search.evaluate.ray_workers import RayWorkers
from heterosis.search.evaluate.workers import Job, Keep, Result, Score, score_job
from heterosis.search.propose.pace import Pace, lay_out, pace_of
from heterosis.search.propose.stages import Stage
from heterosis.search.storage.journal import Journal
from heterosis.search.study.budget import Budget, Limits
from heterosis.search.study.parts import Parts, open_parts
from heterosis.search.study.progress import PlainReporter
from heterosis.search.study.study import Study
from landscape import Landscape, features
from rich.console import Console

LANDSCAPE = Path(__file__).parents[1] / "results/reference/search/quickstart.npz"

ROUNDS = 12
"""Candidates of a simulated search for each worker."""

LEAST = 300
"""Candidates of a simulated search: several generations of few workers, too."""

SECONDS = 1.0
"""That a candidate takes on average when it meets all items."""

RAY_CANDIDATES = 60
"""Of the two real workers."""


def forget(*_: Any) -> None:
    """Keep no rungs."""


@dataclass
class Clock:
    """Seconds, moved by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Lengths:
    """How long candidates take: lognormal about SECONDS, less for those that end early.

    Attributes:
        spread: Standard deviation over mean.
        is_raced: Whether candidates are raced, and take the share of the items that they meet.
    """

    spread: float
    is_raced: bool = False

    def seconds(self, number: int, share: float) -> float:
        """Of a candidate, by its number alone; ``share`` of the items met."""
        sigma = float(np.sqrt(np.log1p(self.spread**2)))
        chance = np.random.default_rng([7, number])
        drawn = float(np.exp(chance.normal(-(sigma**2) / 2, sigma)))
        return SECONDS * drawn * (share if self.is_raced else 1.0)

    @property
    def name(self) -> str:
        drawn = f"± {self.spread:.0%}" if self.spread else "all equal"
        return f"{drawn}, raced" if self.is_raced else drawn


LENGTHS = (Lengths(0.0), Lengths(0.2), Lengths(0.5), Lengths(0.2, is_raced=True))


class LandScorer:
    """As much of a scorer as a study asks for."""

    def __init__(self, land: Landscape) -> None:
        self._n = land.items.n
        self.fingerprint = ""
        self.order: np.ndarray = np.arange(self._n)
        self.ends: tuple[int, ...] = (self._n,)

    def items(self, split: str) -> int:
        return 0 if split == GUARD else self._n

    def plan_rungs(self, _: str, order: Any, ends: tuple[int, ...]) -> None:
        self.order, self.ends = np.array(order), ends


@dataclass
class LandBench:
    """Scores recipes by the surrogate, and counts the CPU seconds that this takes."""

    land: Landscape
    objective: Objective
    cpu: float = 0.0
    scorer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.scorer = LandScorer(self.land)

    def score(self, recipe: Recipe, _: str) -> ItemScores:
        before = time.process_time()
        found = self.land.at(np.array(features(recipe)))
        self.cpu += time.process_time() - before
        return found

    def race(
        self, recipe: Recipe, is_enough: Callable[[ItemScores], bool], _: ItemScores | None
    ) -> ItemScores:
        whole, before = self.score(recipe, SEARCH), time.process_time()
        for end in self.scorer.ends:
            seen = whole.subset(np.sort(self.scorer.order[:end]))
            if is_enough(seen):
                break
        self.cpu += time.process_time() - before
        return seen


class Simulated:
    """N workers on a clock that is moved by hand.

    Attributes:
        spans: (begin, seconds) of every candidate, in the order in which they began.
    """

    def __init__(
        self, count: int, bench: LandBench, race: Race | None, lengths: Lengths, clock: Clock
    ) -> None:
        self._count, self._bench, self._race = count, bench, race
        self._lengths, self._clock = lengths, clock
        self._due: list[tuple[float, int, Result]] = []
        self.spans: list[tuple[float, float]] = []

    @property
    def idle(self) -> int:
        return self._count - len(self._due)

    def submit(self, job: Job) -> None:
        assert self.idle > 0
        scores = score_job(cast("Evaluator", self._bench), self._race, job, forget).scores
        assert isinstance(scores, ItemScores)
        seconds = self._lengths.seconds(job.number, scores.n / self._bench.scorer.items(SEARCH))
        self.spans.append((self._clock.now, seconds))
        result = Result(job.number, scores, seconds)
        heapq.heappush(self._due, (self._clock.now + seconds, job.number, result))

    def wait(self) -> list[Result]:
        self._clock.now, _, result = heapq.heappop(self._due)
        return [result]

    def close(self) -> None:
        self._due.clear()


def busy_share(spans: list[tuple[float, float]], count: int) -> float:
    """Share of the workers' time that goes into candidates, until the last one begins."""
    first, last = spans[0][0], spans[-1][0]
    return sum(min(begin + length, last) - begin for begin, length in spans) / (
        count * (last - first)
    )


@dataclass(frozen=True)
class Outcome:
    """What a search has shown.

    Attributes:
        busy: Share of the workers' time that went into candidates.
        driver: CPU seconds of the driver for each candidate.
    """

    busy: float
    driver: float


@dataclass(frozen=True)
class Simulation:
    """Searches on one landscape."""

    land: Landscape
    parts: Parts

    def layout(self, workers: WorkersSection, *, is_raced: bool) -> tuple[SearchSection, Pace]:
        """The search section and the pace of so many workers."""
        racing = RacingSection() if is_raced else False
        given = SearchSection(racing=racing, finalists=1, dissect=False)
        genes = len(self.parts.space.genes)
        section, laid = lay_out(given, workers, genes)
        return section, pace_of(section, laid, genes)

    def simulate(self, workers: WorkersSection, lengths: Lengths, trials: int) -> Outcome:
        """Search once by simulated workers."""
        section, pace = self.layout(workers, is_raced=lengths.is_raced)
        clock, bench = Clock(), LandBench(self.land, self.parts.objective)
        made: list[Simulated] = []

        def make_workers(_: Any, race: Race | None, __: Keep) -> Simulated:
            made.append(Simulated(workers.num, bench, race, lengths, clock))
            return made[-1]

        before = time.process_time()
        self._search(section, pace, bench, make_workers, trials, clock)
        driver = time.process_time() - before - bench.cpu
        return Outcome(busy_share(made[0].spans, workers.num), driver / trials)

    def by_ray(self, workers: WorkersSection, trials: int) -> Outcome:
        """Search once by Ray's actors on this machine, which sleep SECONDS for each candidate."""
        section, pace = self.layout(workers, is_raced=False)
        made: list[Timed] = []

        def make_workers(*_: Any) -> Timed:
            by_ray = RayWorkers(workers, Sleeper(self.land.items), 0, forget)
            made.append(Timed(by_ray, workers.num))
            return made[-1]

        bench = LandBench(self.land, self.parts.objective)
        before = time.process_time()
        self._search(section, pace, bench, make_workers, trials, time.monotonic)
        driver = time.process_time() - before - bench.cpu
        (used,) = made
        whole = workers.num * (used.last - used.first)
        return Outcome(trials * SECONDS / whole, driver / trials)

    def _search(
        self,
        section: SearchSection,
        pace: Pace,
        bench: LandBench,
        make_workers: Callable[..., Any],
        trials: int,
        clock: Callable[[], float],
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Study(
                cast("Evaluator", bench),
                (Stage(self.parts.space, pace),),
                section,
                tuple(b for b in self.parts.baselines if b.params is not None),
                Journal(Path(folder), write=True),
                ItemStore(Path(folder) / "items"),
                PlainReporter(Console(file=io.StringIO())),
                Budget(Limits(trials=trials), 0, clock),
                make_workers=make_workers,
            ).run()


@dataclass(frozen=True)
class Sleeper:
    """Builds what an actor scores by: it sleeps, and answers the same."""

    items: ItemScores

    def __call__(self) -> Score:
        def sleep(job: Job, _: Keep) -> Result:
            time.sleep(SECONDS)
            return Result(job.number, self.items, SECONDS)

        return sleep


class Timed:
    """Real workers, all there before the first candidate.

    Attributes:
        first: When the first candidate was given out.
        last: When the last result came.
    """

    def __init__(self, workers: RayWorkers, count: int) -> None:
        self._workers = workers
        while workers.idle < count:
            workers.wait()
        self.first = self.last = time.monotonic()

    @property
    def idle(self) -> int:
        return self._workers.idle

    def submit(self, job: Job) -> None:
        self._workers.submit(job)

    def wait(self) -> list[Result]:
        found = self._workers.wait()
        self.last = time.monotonic() if found else self.last
        return found

    def close(self) -> None:
        self._workers.close()


def rows(simulation: Simulation, counts: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """One row per number of workers."""
    for count in counts:
        workers = WorkersSection(engine="ray", num=count, gpus_per_worker=0)
        trials = max(rounds * count, LEAST)
        paces = [simulation.layout(workers, is_raced=raced)[1] for raced in (False, True)]
        found = [simulation.simulate(workers, kind, trials) for kind in LENGTHS]
        yield {
            "workers": count,
            "generation": paces[0].generation,
            "ahead": [pace.ahead for pace in paces],
            "busy": [outcome.busy for outcome in found],
            "driver": max(outcome.driver for outcome in found),
        }


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    names = " | ".join(f"busy, {kind.name}" for kind in LENGTHS)
    lines = [
        f"| workers | generation + ahead (raced) | {names} | driver, CPU ms a candidate |",
        "|--:|---|" + "--:|" * (len(LENGTHS) + 1),
    ]
    for row in found:
        plain, raced = row["ahead"]
        shares = " | ".join(f"{share:.1%}" for share in row["busy"])
        lines.append(
            f"| {row['workers']} | {row['generation']} + {plain} ({raced}) | {shares} "
            f"| {1000 * row['driver']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="How busy many workers are.")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="candidates for each worker")
    parser.add_argument("--no-ray", action="store_true", help="leave the two real workers out")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    simulation = Simulation(
        Landscape.read(LANDSCAPE), open_parts(load_config(find_config("quickstart")))
    )
    facts: dict[str, Any] = {"rows": []}
    for row in rows(simulation, options.workers, options.rounds):
        facts["rows"].append(row)
        print(table([row]).splitlines()[-1], flush=True)
    print(table(facts["rows"]))
    if not options.no_ray:
        two = WorkersSection(engine="ray", num=2, gpus_per_worker=0)
        outcome = simulation.by_ray(two, RAY_CANDIDATES)
        facts["ray"] = {"candidates": RAY_CANDIDATES, "busy": outcome.busy}
        print(
            f"two Ray actors, {RAY_CANDIDATES} candidates of {SECONDS:g} s that sleep: "
            f"{outcome.busy:.1%} busy"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
