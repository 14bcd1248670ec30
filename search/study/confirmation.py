"""Confirmation: finalists and baselines are scored on items that the search never saw.

Knows judge and keeper; which candidates are finalists is decided in finalists.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...evals.scores.scores import ItemScores
from ...evals.tasks.splits import CONFIRM, GUARD, SEARCH
from ..evaluate.evaluator import Failure
from ..evaluate.judge import Judge
from ..format import score
from ..storage.candidate import Candidate
from .budget import Budget
from .finalists import REST, best_confirmed, completed, finals
from .keeper import Keeper
from .progress import Reporter


@dataclass
class Confirmation:
    """Scores what candidates lack of a verdict.

    Attributes:
        judge: Scores recipes.
        keeper: Has the candidates, and keeps their items.
        budget: Ends it when all time is spent.
        reporter: Shows progress.
        should_stop: Asked before each candidate; one stop ends the search, a second one ends this.
        finalists: Best first; empty before `run`.
    """

    judge: Judge
    keeper: Keeper
    budget: Budget
    reporter: Reporter
    should_stop: Callable[[], bool]
    finalists: Sequence[Candidate] = ()
    _was_stopped: bool = False

    def run(self, n_finalists: int) -> bool:
        """Confirm the finalists and all baselines; return whether it was not stopped.

        Raced candidates that may be finalists are scored on the other search items first. A stop
        during the search ends the search alone; one from now on ends the confirmation, after the
        candidate that is being scored.
        """
        self._was_stopped = self.should_stop()
        _, self.finalists = finals(self.keeper.candidates, n_finalists, self._complete)
        chosen = [*self.finalists, *self.keeper.scored_baselines]
        missing = sorted(filter(self._missing, chosen), key=lambda c: c.number)
        if missing:
            done = len(chosen) - len(missing)
            self.reporter.stage("confirmation", len(chosen), done)
        for candidate in missing:
            if self.should_stop() and not self._was_stopped:
                return False
            self.reporter.finished(candidate, self.confirm(candidate))
        self.keeper.compact()
        return True

    def confirm(self, candidate: Candidate) -> int:
        """Score a candidate on the splits of confirmation it lacks; return the number of items."""
        return sum(
            self._keep(candidate, split, self.judge.evaluator.score(candidate.recipe, split))
            for split in self._missing(candidate)
        )

    @property
    def winner(self) -> Candidate | None:
        """The finalist with the best score on the confirm items."""
        read = {c.number: self.keeper.store.read(c.number, CONFIRM) for c in self.finalists}
        scores = {number: scores for number, scores in read.items() if scores is not None}
        return best_confirmed(self.finalists, scores, self.judge.objective)

    def _missing(self, candidate: Candidate) -> list[str]:
        """Return the splits of confirmation that a candidate is not scored on yet."""
        splits = (CONFIRM, GUARD) if self.judge.evaluator.scorer.items(GUARD) else (CONFIRM,)
        return [split for split in splits if not self.keeper.store.has(candidate.number, split)]

    def _complete(self, candidate: Candidate) -> Candidate | None:
        """Return a raced candidate with its scores on all search items.

        Returns:
            None if there is no time left to score the rest, or it has no score there.
        """
        store, objective = self.keeper.store, self.judge.objective
        if store.has(candidate.number, REST):
            return completed(store, candidate, objective)
        partial = store.read(candidate.number, SEARCH)
        if partial is None or not self._is_time():
            return None
        *_, scores = self.judge.evaluator.rungs(candidate.recipe, partial)
        rest = scores if isinstance(scores, Failure) else scores.without(partial)
        if not self._keep(candidate, REST, rest):
            return None
        complete = completed(store, candidate, objective)
        self.reporter.note(
            f"{candidate.name} was stopped in the race, but is among the best by its estimate "
            f"of {score(candidate.value)}: on all search items it scores "
            f"{score(complete.value if complete else None)}"
        )
        return complete

    def _is_time(self) -> bool:
        return not self.budget.is_over and (self._was_stopped or not self.should_stop())

    def _keep(self, candidate: Candidate, split: str, scores: ItemScores | Failure) -> int:
        """Keep items, or report why there are none; return their number."""
        if isinstance(scores, Failure):
            items = "the other search items" if split == REST else split
            self.reporter.note(f"{candidate.name}: not scored on {items}: {scores.reason}")
            return 0
        self.keeper.keep_items(candidate, split, scores)
        return scores.n
