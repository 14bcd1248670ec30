"""The interface between a study and the workers that score its candidates.

Knows jobs and results, and the workers of `engine: local`, which score in this process
(`ray_workers.py` has the others). Workers know no sampler and no journal: only the driver proposes,
tells and writes.
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
    """A candidate to be scored.

    Attributes:
        number: Its number in the journal.
        recipe: Its recipe.
        incumbents: Items of the incumbents of its race; none: it is scored on all items.
        partial: Its scores of the first rungs, if they are known from an earlier attempt.
    """

    number: int
    recipe: Recipe
    incumbents: tuple[ItemScores, ...]
    partial: ItemScores | None = None


Keep = Callable[[int, ItemScores], None]
"""Keeps the partial scores of the candidate of a number, after each rung but its last."""
Score = Callable[[Job, Keep], "Result"]
"""Scores a job."""


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        number: The candidate's number.
        scores: Scores of the rungs up to the last one scored, or why there are none.
        seconds: Time spent on loading and scoring.
    """

    number: int
    scores: ItemScores | Failure
    seconds: float


class Workers(Protocol):
    """Scores jobs, several at a time; closed by its maker.

    Partial scores are kept within `wait`, by the thread that calls it.
    """

    @property
    def idle(self) -> int:
        """Number of jobs that can begin now."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job; at most `idle` of them."""
        ...

    def wait(self) -> list[Result]:
        """Wait for results and return them; an empty list if none arrives for a while."""
        ...

    def close(self) -> None:
        """Free the workers' resources; unfinished jobs are given up."""
        ...


def score_job(evaluator: Evaluator, race: Race | None, job: Job, keep: Keep) -> Result:
    """Load and score a candidate, up to the first rung at which it has lost its race."""
    start, total = time.monotonic(), evaluator.scorer.items(SEARCH)

    def is_over(scores: ItemScores) -> bool:
        return scores.n == total or (
            race is not None and any(race.is_lost(scores, items) for items in job.incumbents)
        )

    scores: ItemScores | Failure
    if job.partial is not None and is_over(job.partial):
        scores = job.partial
    elif race is None or not job.incumbents:
        scores = evaluator.score(job.recipe, SEARCH)
    else:
        for scores in evaluator.rungs(job.recipe, job.partial):
            if isinstance(scores, Failure) or is_over(scores):
                break
            keep(job.number, scores)
    return Result(job.number, scores, time.monotonic() - start)


class LocalWorkers:
    """Scores in this process, one job at a time.

    Args:
        evaluator: Scores recipes.
        race: Stops candidates early; None: all are scored on all items.
        keep: Keeps partial scores.
    """

    def __init__(self, evaluator: Evaluator, race: Race | None, keep: Keep) -> None:
        self._evaluator, self._race, self._keep = evaluator, race, keep
        self._job: Job | None = None

    @property
    def idle(self) -> int:
        """See `Workers`."""
        return 0 if self._job else 1

    def submit(self, job: Job) -> None:
        """See `Workers`; the job is scored in `wait`."""
        assert self._job is None
        self._job = job

    def wait(self) -> list[Result]:
        """See `Workers`."""
        job, self._job = self._job, None
        assert job is not None
        return [score_job(self._evaluator, self._race, job, self._keep)]

    def close(self) -> None:
        """See `Workers`; there is nothing to free."""
