"""The search loop: run trials, and keep the workers busy until the budget is spent.

Knows queue, workers, judge and keeper by what they do. Trials overlap on several workers, but are
proposed, started and finished in order of number: the study is the same for any number of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace

from ...evals.scores.scores import ItemScores
from ...evals.stats.racing import Race
from ..evaluate.evaluator import Evaluator
from ..evaluate.judge import Judge
from ..evaluate.racing import IncumbentItems
from ..evaluate.workers import Job, Keep, Result, Workers
from ..propose.ask_tell import TrialQueue
from ..propose.pace import first_searched
from ..storage.partial_scores import PartialScores
from .budget import Budget
from .keeper import Keeper
from .progress import Reporter

MakeWorkers = Callable[[Evaluator, Race | None, Keep], Workers]
"""Makes the workers of a search, from its evaluator, its race and what saves partial scores."""


Steps = Generator[Job | None, Result, None]
"""A trial: yields None when it is proposed, then its job; is sent the job's result."""


@dataclass
class SearchLoop:
    """Searches from wherever an earlier run left off.

    Attributes:
        judge: Scores and judges candidates.
        queue: Proposes trials, and tells the sampler their values.
        keeper: Keeps finished candidates.
        budget: Decides when it is enough.
        reporter: Shows progress.
        should_stop: Asked before each trial; true ends the search softly.
    """

    judge: Judge
    queue: TrialQueue
    keeper: Keeper
    budget: Budget
    reporter: Reporter
    should_stop: Callable[[], bool]

    def __post_init__(self) -> None:
        self._incumbents = IncumbentItems(self.keeper.search_items)
        self._partial = PartialScores(self.keeper.store.folder / "begun", self.keeper.disk)
        self._finished_at = 0.0

    def run(self, make_workers: MakeWorkers) -> None:
        """Search until the budget is spent, or a stop is requested."""
        if self.budget.spent(self.keeper.candidates) is not None:
            return
        self._announce_stage()
        self._finished_at = self.budget.elapsed
        workers = make_workers(self.judge.evaluator, self.judge.race, self._partial.save)
        try:
            limit = self._keep_busy(workers)
        finally:
            workers.close()
        self._partial.close()
        if self.budget.limits.trials is None and limit is not None:
            self.reporter.note(f"search: {limit} given to it is spent")

    def _run_trial(self, number: int) -> Steps:
        """Run the trial of a number from top to bottom.

        It pauses twice: until a worker is idle, and until a worker has scored it.
        """
        # Ask: the sampler proposes a genotype, which the space decodes to a recipe.
        trial = self.queue.ask(number)
        recipe = trial.candidate.recipe
        yield None

        # It is raced against the best candidates that its proposal knew, however many are finished
        # by now. Rungs that were scored before a kill are not scored again.
        incumbents: tuple[ItemScores, ...] = ()
        if self.judge.race is not None:
            incumbents = self._incumbents.of_proposal(self.keeper.candidates, trial.n_known)
        fingerprint = self.judge.evaluator.scorer.fingerprint
        partial = self._partial.begin(number, recipe, fingerprint)

        # Load and score (`workers.score_job`): the engine writes the recipe's weights into the
        # resident model, the scorer yields rung after rung, until the last or a lost race.
        result = yield Job(number, recipe, incumbents, partial)

        # Judge: scores by task, estimates if it was stopped, and the objective's value.
        elapsed, self._finished_at = self.budget.elapsed - self._finished_at, self.budget.elapsed
        candidate = replace(trial.candidate, seconds=result.seconds, elapsed=elapsed)
        candidate = self.judge.with_result(candidate, result.scores, incumbents)
        candidate = self.judge.with_value(candidate)

        # Keep: items and journal line; the partial scores have done their duty.
        self.keeper.keep(self.queue.finish(trial, candidate), candidate, result.scores)
        self._partial.finish(number)
        self.reporter.forecast(self.budget.total(self.keeper.candidates))

        # Tell: the sampler gets the values that its next proposal must know.
        self.queue.tell()

    def _keep_busy(self, workers: Workers) -> str | None:
        """Run trials on all workers.

        Returns:
            The limit that ended the search; None for a stop.
        """
        proposed: deque[Steps] = deque()
        scoring: dict[int, Steps] = {}  # by number, in order
        results: dict[int, Result] = {}
        limit, is_stopped = None, False
        while True:
            # Start trials before anything else: no worker waits for this process's other work. A
            # stop, or the end of the time, drops the proposals that no worker has.
            while proposed and (workers.idle > 0 or not scoring):
                is_stopped = self.should_stop()
                if is_stopped or self.budget.out_of_time(self.keeper.candidates):
                    proposed.clear()
                    limit = None if is_stopped else "the time"
                elif workers.idle > 0:
                    trial = proposed.popleft()
                    job = next(trial)
                    assert job is not None
                    scoring[job.number] = trial
                    workers.submit(job)
                else:
                    break
            # Finish trials in order of number, whichever result came first: the journal, and what
            # the sampler knows, must not depend on the clock.
            while scoring and (first := next(iter(scoring))) in results:
                with suppress(StopIteration):
                    scoring.pop(first).send(results.pop(first))
            # Propose ahead, while the workers score: the next trial is ready when one is idle.
            if limit is None and not is_stopped:
                limit = self._propose(proposed)
            if proposed and workers.idle > 0:
                continue
            if not scoring and not proposed:
                return limit
            # Results that wait for an earlier trial are not in the journal yet: save them, so that
            # a kill does not cost their scoring.
            for result in workers.wait():
                results[result.number] = result
                must_wait = result.number != next(iter(scoring))
                if must_wait and isinstance(result.scores, ItemScores):
                    self._partial.save(result.number, result.scores)

    def _propose(self, proposed: deque[Steps]) -> str | None:
        """Propose all trials that the pace allows now; return the limit that forbids more."""
        queue, candidates = self.queue, self.keeper.candidates
        while queue.can_ask:
            if queue.is_between_stages:
                queue.begin_stage(self.keeper.trials, candidates)
                self._announce_stage()
            # Count what the proposal knows, and the other trials at their average cost: the last
            # trial of a budget must not depend on which of them are finished.
            known = first_searched(candidates, queue.n_known)
            pending = queue.n_asked - queue.n_known
            if (limit := self.budget.spent(known, pending)) is not None:
                return limit
            if queue.end_stage(self.budget.used(known, pending)):
                continue
            trial = self._run_trial(len(candidates) + queue.n_unfinished)
            next(trial)
            proposed.append(trial)
        return None

    def _announce_stage(self) -> None:
        """Report the current stage, and the candidate it starts from."""
        done = sum(candidate.is_searched for candidate in self.keeper.candidates)
        self.reporter.stage(self.queue.stage.title, self.budget.limits.trials, done)
        if (line := self.queue.start.line) is not None:
            self.reporter.note(line)
