"""Utilisation of many simulated workers, and of two real Ray actors.

    make bench-workers

The study loop is the product's (study, trial queue, pace, proposer, race, journal, store); a
simulated clock replaces time, and a recorded landscape's surrogate the models. The driver's CPU
time is measured and reported separately. Legend: N workers.
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
"""Candidates per worker of a simulated search."""

MIN_CANDIDATES = 300
"""Minimum candidates of a simulated search: several generations even for few workers."""

SECONDS = 1.0
"""Mean time of a candidate that is scored on all items."""

RAY_CANDIDATES = 60
"""Candidates of the two Ray actors."""


def discard(*_: Any) -> None:
    """Discard partial scores."""


@dataclass
class Clock:
    """A simulated clock (seconds)."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Durations:
    """Distribution of candidates' durations: lognormal with mean SECONDS.

    Attributes:
        spread: Standard deviation over mean.
        is_raced: Whether candidates are raced; durations are then proportional to items scored.
    """

    spread: float
    is_raced: bool = False

    def seconds(self, number: int, share: float) -> float:
        """Return a candidate's duration, drawn by its number; ``share`` of the items is scored."""
        sigma = float(np.sqrt(np.log1p(self.spread**2)))
        chance = np.random.default_rng([7, number])
        factor = float(np.exp(chance.normal(-(sigma**2) / 2, sigma)))
        return SECONDS * factor * (share if self.is_raced else 1.0)

    @property
    def name(self) -> str:
        text = f"± {self.spread:.0%}" if self.spread else "all equal"
        return f"{text}, raced" if self.is_raced else text


DURATIONS = (Durations(0.0), Durations(0.2), Durations(0.5), Durations(0.2, is_raced=True))


class LandscapeScorer:
    """A scorer stub with the methods that a study uses."""

    def __init__(self, landscape: Landscape) -> None:
        self._n = landscape.items.n
        self.fingerprint = ""
        self.order: np.ndarray = np.arange(self._n)
        self.ends: tuple[int, ...] = (self._n,)

    def items(self, split: str) -> int:
        return 0 if split == GUARD else self._n

    def plan_rungs(self, _: str, order: Any, ends: tuple[int, ...]) -> None:
        self.order, self.ends = np.array(order), ends


@dataclass
class LandscapeEvaluator:
    """An evaluator stub: scores recipes by the surrogate and counts its CPU seconds."""

    landscape: Landscape
    objective: Objective
    cpu: float = 0.0
    scorer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.scorer = LandscapeScorer(self.landscape)

    def score(self, recipe: Recipe, _: str) -> ItemScores:
        before = time.process_time()
        scores = self.landscape.predict(np.array(features(recipe)))
        self.cpu += time.process_time() - before
        return scores

    def rungs(self, recipe: Recipe, _: ItemScores | None = None) -> Iterator[ItemScores]:
        scores, before = self.score(recipe, SEARCH), time.process_time()
        for end in self.scorer.ends:
            seen = scores.subset(np.sort(self.scorer.order[:end]))
            self.cpu += time.process_time() - before
            yield seen
            before = time.process_time()


class SimulatedWorkers:
    """N workers on a simulated clock.

    Attributes:
        spans: (start, seconds) of every candidate, in starting order.
    """

    def __init__(
        self,
        count: int,
        evaluator: LandscapeEvaluator,
        race: Race | None,
        durations: Durations,
        clock: Clock,
    ) -> None:
        self._count, self._evaluator, self._race = count, evaluator, race
        self._durations, self._clock = durations, clock
        self._due: list[tuple[float, int, Result]] = []
        self.spans: list[tuple[float, float]] = []

    @property
    def idle(self) -> int:
        return self._count - len(self._due)

    def submit(self, job: Job) -> None:
        assert self.idle > 0
        scores = score_job(cast("Evaluator", self._evaluator), self._race, job, discard).scores
        assert isinstance(scores, ItemScores)
        seconds = self._durations.seconds(
            job.number, scores.n / self._evaluator.scorer.items(SEARCH)
        )
        self.spans.append((self._clock.now, seconds))
        result = Result(job.number, scores, seconds)
        heapq.heappush(self._due, (self._clock.now + seconds, job.number, result))

    def wait(self) -> list[Result]:
        self._clock.now, _, result = heapq.heappop(self._due)
        return [result]

    def close(self) -> None:
        self._due.clear()


def busy_share(spans: list[tuple[float, float]], count: int) -> float:
    """Return the share of the workers' time spent on candidates, until the last one starts."""
    first, last = spans[0][0], spans[-1][0]
    return sum(min(start + length, last) - start for start, length in spans) / (
        count * (last - first)
    )


@dataclass(frozen=True)
class Outcome:
    """Utilisation and driver cost of one search.

    Attributes:
        busy: Share of the workers' time spent on candidates.
        driver: CPU seconds of the driver per candidate.
    """

    busy: float
    driver: float


@dataclass(frozen=True)
class Simulation:
    """Searches on one landscape."""

    landscape: Landscape
    parts: Parts

    def layout(self, workers: WorkersSection, *, is_raced: bool) -> tuple[SearchSection, Pace]:
        """Return search section and pace for some workers."""
        racing = RacingSection() if is_raced else False
        given = SearchSection(racing=racing, finalists=1, dissect=False)
        genes = len(self.parts.space.genes)
        section, laid = lay_out(given, workers, genes)
        return section, pace_of(section, laid, genes)

    def simulate(self, workers: WorkersSection, durations: Durations, trials: int) -> Outcome:
        """Search once with simulated workers."""
        section, pace = self.layout(workers, is_raced=durations.is_raced)
        clock, evaluator = Clock(), LandscapeEvaluator(self.landscape, self.parts.objective)
        created: list[SimulatedWorkers] = []

        def make_workers(_: Any, race: Race | None, __: Keep) -> SimulatedWorkers:
            created.append(SimulatedWorkers(workers.num, evaluator, race, durations, clock))
            return created[-1]

        before = time.process_time()
        self._search(section, pace, evaluator, make_workers, trials, clock)
        driver = time.process_time() - before - evaluator.cpu
        return Outcome(busy_share(created[0].spans, workers.num), driver / trials)

    def by_ray(self, workers: WorkersSection, trials: int) -> Outcome:
        """Search once with Ray actors on this machine, which sleep SECONDS per candidate."""
        section, pace = self.layout(workers, is_raced=False)
        created: list[TimedWorkers] = []

        def make_workers(*_: Any) -> TimedWorkers:
            by_ray = RayWorkers(workers, Sleeper(self.landscape.items), 0, discard)
            created.append(TimedWorkers(by_ray, workers.num))
            return created[-1]

        evaluator = LandscapeEvaluator(self.landscape, self.parts.objective)
        before = time.process_time()
        self._search(section, pace, evaluator, make_workers, trials, time.monotonic)
        driver = time.process_time() - before - evaluator.cpu
        (timed,) = created
        available = workers.num * (timed.last - timed.first)
        return Outcome(trials * SECONDS / available, driver / trials)

    def _search(
        self,
        section: SearchSection,
        pace: Pace,
        evaluator: LandscapeEvaluator,
        make_workers: Callable[..., Any],
        trials: int,
        clock: Callable[[], float],
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Study(
                cast("Evaluator", evaluator),
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
    """Factory of an actor's score function, which sleeps and returns constant scores."""

    items: ItemScores

    def __call__(self) -> Score:
        def sleep(job: Job, _: Keep) -> Result:
            time.sleep(SECONDS)
            return Result(job.number, self.items, SECONDS)

        return sleep


class TimedWorkers:
    """Ray workers, all started before the first candidate.

    Attributes:
        first: Time when all workers were ready.
        last: Time of the last result.
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
        results = self._workers.wait()
        self.last = time.monotonic() if results else self.last
        return results

    def close(self) -> None:
        self._workers.close()


def rows(simulation: Simulation, counts: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one row per number of workers."""
    for count in counts:
        workers = WorkersSection(engine="ray", num=count, gpus_per_worker=0)
        trials = max(rounds * count, MIN_CANDIDATES)
        paces = [simulation.layout(workers, is_raced=raced)[1] for raced in (False, True)]
        outcomes = [simulation.simulate(workers, kind, trials) for kind in DURATIONS]
        yield {
            "workers": count,
            "generation": paces[0].generation,
            "ahead": [pace.ahead for pace in paces],
            "busy": [outcome.busy for outcome in outcomes],
            "driver": max(outcome.driver for outcome in outcomes),
        }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    names = " | ".join(f"busy, {kind.name}" for kind in DURATIONS)
    lines = [
        f"| workers | generation + ahead (raced) | {names} | driver, CPU ms per candidate |",
        "|--:|---|" + "--:|" * (len(DURATIONS) + 1),
    ]
    for row in results:
        plain, raced = row["ahead"]
        shares = " | ".join(f"{share:.1%}" for share in row["busy"])
        lines.append(
            f"| {row['workers']} | {row['generation']} + {plain} ({raced}) | {shares} "
            f"| {1000 * row['driver']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Utilisation of many workers.")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="candidates per worker")
    parser.add_argument("--no-ray", action="store_true", help="skip the two Ray actors")
    parser.add_argument("--out", type=Path, help="JSON file to write")
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
            f"two Ray actors, {RAY_CANDIDATES} candidates that sleep {SECONDS:g} s: "
            f"{outcome.busy:.1%} busy"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
