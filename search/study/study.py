"""A study, in the order of things: restore, baselines, search, confirmation, ablation.

The journal and the item store are its record. Knows judge, keeper and loop by what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import SEARCH
from ..config.search import SearchSection
from ..evaluate.evaluator import Evaluator, Failure
from ..evaluate.judge import Judge
from ..evaluate.racing import open_race
from ..evaluate.scoring import objective_on_parents_scale
from ..evaluate.workers import LocalWorkers
from ..propose.ask_tell import TrialQueue
from ..propose.baselines import Baseline
from ..propose.stages import Stage
from ..storage.candidate import Candidate
from ..storage.journal import Journal, StudyError
from .ablation import WinnerAblation
from .budget import Budget
from .confirmation import Confirmation
from .keeper import Keeper
from .loop import MakeWorkers, SearchLoop
from .progress import Reporter


class Study:
    """Runs a search to its end, from wherever an earlier run left off.

    Args:
        evaluator: Scores recipes.
        stages: Spaces that are searched, and their pace.
        section: Sampler, racing, number of finalists, ablation.
        baselines: Trials 0..k.
        journal: The study's journal, open for writing.
        store: Item scores.
        reporter: Shows progress.
        budget: Decides when it is enough.
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
        self._section, self._baselines, self._make_workers = section, baselines, make_workers
        self._reporter, self._budget, self._should_stop = reporter, budget, should_stop
        self._judge = Judge(evaluator, evaluator.objective)
        self._queue = TrialQueue(stages, section, len(evaluator.objective.criteria))
        self._keeper = Keeper(journal, store, reporter, should_stop)

    def run(self) -> bool:
        """Score the baselines, search, confirm the finalists and ablate the winner.

        Returns:
            Whether the budget is spent, and everything after the search is done.
        """
        self._keeper.clean_up()
        self._queue.restore(self._keeper.trials, self._keeper.candidates)
        self._reporter.known(self._keeper.candidates)
        self._restore_items(baselines=True)
        self._score_baselines()
        if not self._missing_baselines:
            self._judge = self._with_race()
        self._restore_items(baselines=False)
        parts = (self._keeper, self._budget, self._reporter, self._should_stop)
        SearchLoop(self._judge, self._queue, *parts).run(self._make_workers)
        confirmation = Confirmation(self._judge, *parts)
        is_complete = confirmation.run(self._section.finalists) and self._ablate(confirmation)
        is_spent = self._budget.spent(self._keeper.candidates) is not None
        return is_complete and is_spent and not self._missing_baselines

    def _restore_items(self, *, baselines: bool) -> None:
        """Score again the items that the store has lost; the journal says which must exist."""
        stored = self._keeper.store.keys()
        for candidate in self._keeper.candidates:
            is_stored = candidate.value is None or (candidate.number, SEARCH) in stored
            if is_stored or candidate.is_baseline != baselines:
                continue
            scores = self._judge.score(candidate.recipe, candidate.items)
            if isinstance(scores, Failure):
                raise StudyError(
                    f"{candidate.name}: its lost items cannot be scored again: {scores.reason}"
                )
            self._keeper.keep_items(candidate, SEARCH, scores)
            self._reporter.note(f"{candidate.name}: items were lost and have been scored again")

    @property
    def _missing_baselines(self) -> tuple[Baseline, ...]:
        """Baselines that are not scored yet; they are the first trials, in a fixed order."""
        return self._baselines[len(self._keeper.candidates) :]

    def _score_baselines(self) -> None:
        missing, total = self._missing_baselines, len(self._baselines)
        if not missing:
            return
        self._reporter.stage("baselines", total, total - len(missing))
        waiting = []
        for baseline in missing:
            if self._should_stop():
                return
            number = len(self._keeper.candidates) + len(waiting)
            blank = Candidate(number, baseline.name, baseline.kind, baseline.recipe)
            waiting.append((baseline, *self._judge.measure(blank)))
            # On the parents' scale no value is known before the last parent is scored.
            if self._judge.objective.normalize and self._parents_after(number):
                continue
            measured = (candidate for _, candidate, _ in waiting)
            self._judge = self._on_parents_scale([*self._keeper.candidates, *measured])
            for given, candidate, scores in waiting:
                candidate = self._judge.with_value(candidate)
                self._keeper.keep(self._queue.add(given.params, candidate), candidate, scores)
            waiting = []
        values = {c.value for c in self._keeper.scored_baselines}
        if len(values) == 1:
            self._reporter.note(
                f"every baseline scores {values.pop():g}: do the tasks' `doc_to_target` and metric "
                "say what you mean?"
            )

    def _parents_after(self, number: int) -> bool:
        return any(baseline.kind == "parent" for baseline in self._baselines[number + 1 :])

    def _on_parents_scale(self, candidates: list[Candidate]) -> Judge:
        objective = objective_on_parents_scale(self._judge.objective, candidates)
        return replace(self._judge, objective=objective)

    def _with_race(self) -> Judge:
        """Return the judge with the race, whose items are fixed by the scored baselines."""
        judge = self._on_parents_scale(self._keeper.candidates)
        scorer, store = judge.evaluator.scorer, self._keeper.store
        race = open_race(scorer, store, self._keeper.candidates, self._section, judge.objective)
        return replace(judge, race=race)

    def _ablate(self, confirmation: Confirmation) -> bool:
        """Ablate the winner, if requested; return whether that came to its end."""
        winner = confirmation.winner
        if not self._section.dissect or winner is None or winner.raced:
            return True
        if self._should_stop():
            return False
        self._reporter.stage("ablation", None)
        return WinnerAblation(winner, self._queue, confirmation).run(self._section.rerolls)
