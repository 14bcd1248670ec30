"""The seam between a study and what scores its candidates: jobs out, item scores back.

An engine knows recipes and item scores; no sampler, no journal. `local` scores in this process;
`ray_workers` holds the other one. The driver alone proposes, learns and writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...evals.scores.scores import ItemScores
from ...evals.stats.racing import Race
from ...evals.tasks.splits import SEARCH
from ...merge.recipe.recipe import Recipe
from .evaluator import Evaluator, Failure


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a candidate.

    Attributes:
        number: The candidate's number in the journal.
        recipe: What to load.
        rivals: Items of whom it is raced against; none: it meets all items.
        met: Its own of the first rungs, if an earlier run has scored them.
    """

    number: int
    recipe: Recipe
    rivals: tuple[ItemScores, ...]
    met: ItemScores | None = None


Keep = Callable[[int, ItemScores], None]
"""Hears what the candidate of a number has met so far, after each rung but its last."""
Score = Callable[[Job, Keep], "Result"]
"""Does a job."""


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        number: The candidate's.
        scores: Scores of the rungs up to the last one scored, or why there are none.
        seconds: Spent on loading and scoring.
    """

    number: int
    scores: ItemScores | Failure
    seconds: float


class Workers(Protocol):
    """Scores jobs, several at a time. Closed by whoever made it.

    Rungs are heard of in `wait`, by the thread that calls it.
    """

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


def score_job(evaluator: Evaluator, race: Race | None, job: Job, keep: Keep) -> Result:
    """Load and score a candidate; stop it at the first rung at which it has lost its race."""
    start, total = time.monotonic(), evaluator.scorer.items(SEARCH)

    def is_over(seen: ItemScores) -> bool:
        return seen.n == total or (
            race is not None and any(race.is_lost(seen, rival) for rival in job.rivals)
        )

    def is_enough(seen: ItemScores) -> bool:
        if not (over := is_over(seen)):
            keep(job.number, seen)
        return over

    if job.met is not None and is_over(job.met):
        scores = job.met
    elif race is None or not job.rivals:
        scores = evaluator.score(job.recipe, SEARCH)
    else:
        scores = evaluator.race(job.recipe, is_enough, job.met)
    return Result(job.number, scores, time.monotonic() - start)


class LocalWorkers:
    """Scores in this process, one job at a time.

    Args:
        evaluator: Scores recipes.
        race: How candidates are stopped early, or None.
        keep: Hears of rungs.
    """

    def __init__(self, evaluator: Evaluator, race: Race | None, keep: Keep) -> None:
        self._evaluator, self._race, self._keep = evaluator, race, keep
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
        return [score_job(self._evaluator, self._race, job, self._keep)]

    def close(self) -> None:
        """See `Workers`: nothing is held."""
