"""The study loop: baselines, search, confirmation. The journal and the item store are its record.

Knows evaluator, proposer and race by what they do. One trial is ask, load, score, tell.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from optuna.trial import FrozenTrial

from ...evals.scores.scores import ItemScores
from ...evals.scores.store import FOLDED_AT, ItemStore
from ...evals.stats.comparison import Difference
from ...evals.stats.racing import Race
from ...evals.tasks.splits import CONFIRM, SEARCH
from ..config.search import SearchSection
from ..evaluate.evaluator import Evaluator, Failure
from ..evaluate.racing import IncumbentItems, open_race
from ..evaluate.scoring import objective_on_parents_scale, with_estimates, with_scores, with_value
from ..evaluate.workers import Job, LocalWorkers, Result, Workers
from ..propose.ask_tell import PendingTrial, TrialQueue
from ..propose.baselines import Baseline
from ..propose.pace import first_searched
from ..propose.space import Params
from ..propose.stages import Stage
from ..storage.candidate import REROLL, Candidate, candidate_of
from ..storage.files import Disk
from ..storage.journal import Journal, StudyError
from ..storage.partial_scores import PartialScores
from .ablation import Variant, ablation_of, dissect
from .budget import Budget
from .confirmation import Confirmation
from .finalists import finals, search_items
from .loop import MakeWorkers
from .progress import Reporter


class Study:
    """Runs a search to its end, from wherever an earlier run left it.

    Args:
        evaluator: Scores recipes.
        stages: What may vary, and the pace at which it is searched.
        section: Which sampler, how many finalists.
        budget: When it is enough.
        baselines: Trials 0..k.
        journal: The study's record, open for writing.
        store: Scores item by item.
        reporter: Hears of every candidate.
        should_stop: Asked between candidates; true ends the search softly.
        make_workers: Makes the workers of the search, once the race is open.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        stages: tuple[Stage, ...],
        section: SearchSection,
        baselines: tuple[Baseline, ...],
        journal: Journal,
        store: ItemStore,
        reporter: Reporter,
        budget: Budget,
        should_stop: Callable[[], bool] = lambda: False,
        make_workers: MakeWorkers = LocalWorkers,
    ) -> None:
        self._evaluator, self._section, self._make_workers = evaluator, section, make_workers
        self._baselines, self._journal, self._store = baselines, journal, store
        self._reporter, self._budget, self._should_stop = reporter, budget, should_stop
        self._objective = evaluator.objective
        self._flights = TrialQueue(stages, section, len(evaluator.objective.criteria))
        self._candidates = [candidate_of(trial) for trial in journal.trials]
        self._race: Race | None = None
        self._incumbents = IncumbentItems(self._items)
        self._written = Disk(reporter.note, should_stop).write
        self._begun = PartialScores(store.folder / "begun", Disk(reporter.note, should_stop))
        self._confirmation = Confirmation(evaluator, store, self._written, reporter.note)
        self._finalists: list[Candidate] = []
        self._kept_at = 0.0

    def run(self) -> bool:
        """Score the baselines, search, and confirm the finalists.

        Returns:
            Whether the budget is spent, and the finalists are confirmed.
        """
        done = len(self._candidates)
        self._store.drop(lambda trial: trial >= done)
        self._flights.restore(self._journal.trials, self._candidates)
        self._written(self._store.compact)
        self._reporter.known(self._candidates)
        self._restore_items(baselines=True)
        self._run_baselines()
        if not self._missing_baselines():
            self._objective = objective_on_parents_scale(self._objective, self._candidates)
            self._race = open_race(
                self._evaluator.scorer,
                self._store,
                self._candidates,
                self._section,
                self._objective,
            )
        self._restore_items(baselines=False)
        self._run_search()
        is_confirmed = self._confirm() and self._dissect()
        is_spent = self._budget.spent(self._candidates) is not None
        return is_confirmed and is_spent and not self._missing_baselines()

    def _restore_items(self, *, baselines: bool) -> None:
        """Score again what the item store has lost; the journal says what belongs there."""
        kept = self._store.keys()
        for candidate in self._candidates:
            is_there = candidate.value is None or (candidate.number, SEARCH) in kept
            if is_there or candidate.is_baseline != baselines:
                continue
            scores = self._scored(candidate, lambda seen, c=candidate: seen.n >= c.items)
            if isinstance(scores, Failure):
                raise StudyError(
                    f"{candidate.name}: its lost items cannot be scored again: {scores.reason}"
                )
            self._written(lambda c=candidate, s=scores: self._store.append(c.number, SEARCH, s))
            self._reporter.note(f"{candidate.name}: items were lost and have been scored again")

    def _missing_baselines(self) -> tuple[Baseline, ...]:
        """Baselines are the first trials, in their fixed order: the rest is missing."""
        return self._baselines[len(self._candidates) :]

    def _run_baselines(self) -> None:
        missing = self._missing_baselines()
        self._stage("baselines", len(missing), len(self._baselines))
        held: list[tuple[Baseline, Candidate, ItemScores | None]] = []
        for baseline in missing:
            if self._should_stop():
                return
            number = len(self._candidates) + len(held)
            blank = Candidate(number, baseline.name, baseline.kind, baseline.recipe)
            held.append((baseline, *self._measured(blank)))
            if self._waits_for_parents(len(self._candidates) + len(held)):
                continue
            self._objective = objective_on_parents_scale(
                self._objective, [*self._candidates, *(candidate for _, candidate, _ in held)]
            )
            for given, candidate, scores in held:
                self._keep_given(with_value(candidate, self._objective), scores, given.params)
            held = []
        values = {c.value for c in self._scored_baselines()}
        if missing and len(values) == 1:
            self._reporter.note(
                f"every baseline scores {values.pop():g}: do the tasks' `doc_to_target` and metric "
                "say what you mean?"
            )

    def _waits_for_parents(self, done: int) -> bool:
        """Whether values cannot be told yet: they count from the parents' scores."""
        after = (baseline.kind == "parent" for baseline in self._baselines[done:])
        return self._objective.normalize and any(after)

    def _run_search(self) -> None:
        if self._budget.spent(self._candidates) is not None:
            return
        self._tell_stage()
        self._kept_at = self._budget.elapsed
        workers = self._make_workers(self._evaluator, self._race, self._begun.save)
        try:
            limit = self._search_with(workers)
        finally:
            workers.close()
        self._begun.close()
        if self._budget.limits.trials is None and limit is not None:
            self._reporter.note(f"search: {limit} given to it is spent")

    def _search_with(self, workers: Workers) -> str | None:
        """Keep the workers busy until the budget is spent, or a stop is asked for.

        Returns:
            Which limit has ended it; None for a stop.
        """
        queue: deque[PendingTrial] = deque()
        flying: deque[PendingTrial] = deque()
        results: dict[int, Result] = {}
        limit, is_stopped = None, False
        while True:
            while queue and (workers.idle > 0 or not flying):  # no worker waits for the books
                is_stopped = self._should_stop()
                if is_stopped or self._budget.out_of_time(self._candidates):
                    queue.clear()
                    limit = None if is_stopped else "the time"
                elif workers.idle > 0:
                    flying.append(queue.popleft())
                    workers.submit(self._job(flying[-1]))
                else:
                    break
            while flying and flying[0].candidate.number in results:
                flight = flying.popleft()
                self._land(flight, results.pop(flight.candidate.number))
            self._flights.tell()
            if limit is None and not is_stopped:
                limit = self._ask_into(queue)
            if queue and workers.idle > 0:
                continue
            if not flying and not queue:
                return limit
            for result in workers.wait():
                results[result.number] = result
                waits = result.number != flying[0].candidate.number
                if waits and isinstance(result.scores, ItemScores):
                    self._begun.save(result.number, result.scores)

    def _ask_into(self, queue: deque[PendingTrial]) -> str | None:
        """Propose all that can be proposed now; return which limit forbids more."""
        while self._flights.can_ask:
            if self._flights.is_between_stages:
                self._flights.begin_stage(self._journal.trials, self._candidates)
                self._tell_stage()
            known = first_searched(self._candidates, self._flights.n_known)
            flying = self._flights.n_asked - self._flights.n_known
            limit = self._budget.spent(known, flying)
            if limit is not None:
                return limit
            if self._flights.end_stage(self._budget.used(known, flying)):
                continue
            queue.append(self._flights.ask(len(self._candidates) + self._flights.n_unfinished))
        return None

    def _tell_stage(self) -> None:
        """Say which stage searches, and around whom."""
        done = sum(candidate.is_searched for candidate in self._candidates)
        self._reporter.stage(self._flights.stage.title, self._budget.limits.trials, done)
        if (line := self._flights.start.line) is not None:
            self._reporter.note(line)

    def _job(self, flight: PendingTrial) -> Job:
        if self._race is not None:
            flight.incumbents = self._incumbents.of_proposal(self._candidates, flight.n_known)
        number, recipe = flight.candidate.number, flight.candidate.recipe
        met = self._begun.begin(number, recipe, self._evaluator.scorer.fingerprint)
        return Job(number, recipe, flight.incumbents, met)

    def _land(self, flight: PendingTrial, result: Result) -> None:
        """Judge and keep a scored candidate."""
        elapsed, self._kept_at = self._budget.elapsed - self._kept_at, self._budget.elapsed
        blank = replace(flight.candidate, seconds=result.seconds, elapsed=elapsed)
        candidate, scores = self._told_by(blank, result.scores, flight.incumbents)
        candidate = with_value(candidate, self._objective)
        self._keep(self._flights.finish(flight, candidate), candidate, scores)
        self._begun.finish(candidate.number)
        self._reporter.forecast(self._budget.total(self._candidates))

    def _stage(self, name: str, missing: int, total: int) -> None:
        if missing:
            self._reporter.stage(name, total, total - missing)

    def _evaluate(self, candidate: Candidate) -> tuple[Candidate, ItemScores | None]:
        """Score a candidate that is not raced: a baseline, or what a winner is taken apart into."""
        candidate, scores = self._measured(candidate)
        return with_value(candidate, self._objective), scores

    def _measured(self, candidate: Candidate) -> tuple[Candidate, ItemScores | None]:
        """Score a candidate that is not raced; its scores are not combined yet."""
        start = time.monotonic()
        scores = self._scored(candidate, lambda _: False)
        return self._told_by(replace(candidate, seconds=time.monotonic() - start), scores, ())

    def _told_by(
        self, candidate: Candidate, scores: ItemScores | Failure, incumbents: tuple[ItemScores, ...]
    ) -> tuple[Candidate, ItemScores | None]:
        """A candidate with its scores by task and term; with estimates if it was stopped."""
        if isinstance(scores, Failure):
            return replace(candidate, failure=scores.reason), None
        if self._race is None or scores.n == self._evaluator.scorer.items(SEARCH):
            return with_scores(candidate, scores, self._objective), scores
        return with_estimates(candidate, scores, self._objective, self._race, incumbents), scores

    def _scored(
        self, candidate: Candidate, is_enough: Callable[[ItemScores], bool]
    ) -> ItemScores | Failure:
        """Score on the search items: rung by rung if there is a race, baselines at once."""
        if self._race is None or candidate.is_baseline:
            return self._evaluator.score(candidate.recipe, SEARCH)
        return self._evaluator.race(candidate.recipe, is_enough)

    def _keep(self, trial: FrozenTrial, candidate: Candidate, scores: ItemScores | None) -> None:
        """Write items first: a journal line promises that they are there."""
        self._journal.check_unchanged()
        if scores is not None and candidate.value is not None:
            self._written(lambda: self._store.append(candidate.number, SEARCH, scores))
        self._written(lambda: self._journal.append(trial))
        self._written(lambda: self._store.compact(least=FOLDED_AT))
        self._candidates.append(candidate)
        self._reporter.finished(candidate, scores.n if scores else 0)

    def _keep_given(
        self, candidate: Candidate, scores: ItemScores | None, params: Params | None
    ) -> None:
        """Keep a candidate that the sampler has not proposed."""
        self._keep(self._flights.add(params, candidate), candidate, scores)

    def _confirm(self) -> bool:
        """Score the finalists and all baselines on the items that the search never saw.

        Raced candidates that may be finalists are scored on all search items before.
        A stop that was asked for during the search ends the search alone; one that is asked for
        here ends this too, after the candidate in hand.
        """
        ended_early = self._should_stop()

        def is_time() -> bool:
            return not self._budget.is_over and (ended_early or not self._should_stop())

        _, self._finalists = finals(
            self._candidates,
            self._section.finalists,
            lambda c: self._confirmation.complete(c, self._objective, is_time),
        )
        chosen = sorted([*self._finalists, *self._scored_baselines()], key=lambda c: c.number)
        missing = [candidate for candidate in chosen if self._confirmation.missing(candidate)]
        self._stage("confirmation", len(missing), len(chosen))
        for candidate in missing:
            if self._should_stop() and not ended_early:
                return False
            self._reporter.finished(candidate, self._confirmation.confirm(candidate))
        self._written(self._store.compact)
        return True

    def _dissect(self) -> bool:
        """Take the winner apart; return whether that came to its end."""
        winner = self._winner()
        if not self._section.dissect or winner is None or winner.raced:
            return True
        if self._should_stop():
            return False
        is_over = False

        def score(variant: Variant) -> Candidate | None:
            nonlocal is_over
            found = self._variant(winner, variant)
            is_over = is_over or found is None
            return found

        def compare(candidate: Candidate) -> Difference:
            return self._objective.difference(self._items(candidate), self._items(winner))

        self._reporter.stage("dissection", None)
        params = self._journal.trials[winner.number].params
        space = self._flights.stage_of(winner).space
        dissect(winner, params, space, self._section.rerolls, score, compare)
        simplest = ablation_of(winner, self._candidates, compare).simplest
        if simplest is not None:
            self._confirmation.confirm(simplest)
        self._written(self._store.compact)
        return not is_over

    def _variant(self, winner: Candidate, variant: Variant) -> Candidate | None:
        """A variant that is scored already, or scored now; None if it is time to end."""
        for known in self._candidates:
            if known.of == winner.number and known.recipe == variant.recipe:
                return known
        if self._should_stop() or self._budget.is_over:
            return None
        blank = Candidate(
            len(self._candidates), variant.name, variant.kind, variant.recipe, of=winner.number
        )
        candidate, scores = self._evaluate(replace(blank, reset=variant.reset))
        self._keep_given(candidate, scores, None)
        if variant.kind == REROLL and scores is not None:
            self._confirmation.confirm(candidate)
        return candidate

    def _winner(self) -> Candidate | None:
        """The finalist that is best on the confirm items."""
        best, found = None, None
        for candidate in self._finalists:
            scores = self._store.read(candidate.number, CONFIRM)
            if scores is not None:
                value = self._objective.combined(scores).value
                if best is None or value > best:
                    best, found = value, candidate
        return found

    def _items(self, candidate: Candidate) -> ItemScores:
        scores = search_items(self._store, candidate)
        assert scores is not None  # `_restore_items` sees to it
        return scores

    def _scored_baselines(self) -> Iterator[Candidate]:
        return (c for c in self._candidates if c.is_baseline and c.value is not None)
