"""The seam between a study and what scores its candidates: jobs out, item scores back.

An engine knows recipes and item scores; no sampler, no journal. `local` scores in this process;
`ray_workers` holds the other one. The driver alone proposes, learns and writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from ..evals.racing import Race
from ..evals.scores import ItemScores
from ..evals.splits import SEARCH
from ..merge.recipe import Recipe
from .bench import Bench


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a candidate.

    Attributes:
        number: The candidate's number in the journal.
        recipe: What to load.
        rivals: Items of whom it is raced against; none: it meets all items.
    """

    number: int
    recipe: Recipe
    rivals: tuple[ItemScores, ...]


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        number: The candidate's.
        scores: Of the items that it has met, or the reason why there are none.
        seconds: Spent on loading and scoring.
    """

    number: int
    scores: ItemScores | str
    seconds: float


class Workers(Protocol):
    """Scores jobs, several at a time. Closed by whoever made it."""

    @property
    def idle(self) -> int:
        """How many jobs can begin now."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job; not more than are idle."""
        ...

    def wait(self) -> list[Result]:
        """Return the results that are in, at least one; or none after a while, to look around."""
        ...

    def close(self) -> None:
        """Free what the workers hold; jobs in flight are given up."""
        ...


def score_job(bench: Bench, race: Race | None, job: Job) -> Result:
    """Load and score a candidate; stop it at the first rung at which it has lost its race."""
    start, total = time.monotonic(), bench.scorer.items(SEARCH)
    if race is None or not job.rivals:
        scores = bench.score(job.recipe, SEARCH)
    else:
        scores = bench.race(
            job.recipe,
            lambda seen: seen.n < total and any(race.is_lost(seen, r) for r in job.rivals),
        )
    return Result(job.number, scores, time.monotonic() - start)


class LocalWorkers:
    """Scores in this process, one job at a time.

    Args:
        bench: Scores recipes.
        race: How candidates are stopped early, or None.
    """

    def __init__(self, bench: Bench, race: Race | None) -> None:
        self._bench, self._race = bench, race
        self._job: Job | None = None

    @property
    def idle(self) -> int:
        """See `Workers`."""
        return 0 if self._job else 1

    def submit(self, job: Job) -> None:
        """See `Workers`; the work is done in `wait`."""
        assert self._job is None
        self._job = job

    def wait(self) -> list[Result]:
        """See `Workers`."""
        job, self._job = self._job, None
        assert job is not None
        return [score_job(self._bench, self._race, job)]

    def close(self) -> None:
        """See `Workers`: nothing is held."""


def hire_local(bench: Bench, race: Race | None) -> LocalWorkers:
    """Score in this process."""
    return LocalWorkers(bench, race)
