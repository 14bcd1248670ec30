"""Scores on the items that the search never saw, and of finalists on those that they had not met.

Knows the evaluator and the item store; who is confirmed, and when, is the study's matter.
"""

from __future__ import annotations

from collections.abc import Callable

from ...evals.scores.scores import ItemScores
from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import CONFIRM, GUARD, SEARCH
from ..evaluate.evaluator import Evaluator, Failure
from ..evaluate.objective import Objective
from ..format import score
from ..storage.candidate import Candidate
from .finalists import REST, completed


class Confirmation:
    """What candidates lack of a verdict.

    Args:
        evaluator: Scores recipes.
        store: Where their items are kept.
        write: Calls what writes, as often as the disk needs.
        note: Tells a person.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: ItemStore,
        write: Callable[[Callable[[], object]], object],
        note: Callable[[str], None],
    ) -> None:
        self._evaluator, self._store, self._write, self._note = evaluator, store, write, note

    def missing(self, candidate: Candidate) -> list[str]:
        """Splits of confirmation that a candidate is not scored on yet."""
        splits = (CONFIRM, GUARD) if self._evaluator.scorer.items(GUARD) else (CONFIRM,)
        return [split for split in splits if not self._store.has(candidate.number, split)]

    def confirm(self, candidate: Candidate) -> int:
        """Score a candidate on what it lacks of confirmation; return how many items that were."""
        return sum(self._confirm(candidate, split) for split in self.missing(candidate))

    def _confirm(self, candidate: Candidate, split: str) -> int:
        return self._kept(candidate, split, self._evaluator.score(candidate.recipe, split))

    def complete(
        self, candidate: Candidate, objective: Objective, is_time: Callable[[], bool]
    ) -> Candidate | None:
        """A raced candidate with the scores of all search items.

        Args:
            candidate: Stopped in the race.
            objective: What its scores make.
            is_time: Whether it may be scored now.

        Returns:
            None if it may not, or it has no score on the rest.
        """
        number = candidate.number
        if not self._store.has(number, REST):
            met = self._store.read(number, SEARCH)
            if met is None or not is_time():
                return None
            found = self._evaluator.race(candidate.recipe, lambda _: False, met)
            rest = found if isinstance(found, Failure) else found.added_to(met)
            if not self._kept(candidate, REST, rest):
                return None
            whole = completed(self._store, candidate, objective)
            self._note(
                f"{candidate.name} was stopped in the race, but is among the best by its estimate "
                f"of {score(candidate.value)}: on all search items it scores "
                f"{score(whole.value if whole else None)}"
            )
        return completed(self._store, candidate, objective)

    def _kept(self, candidate: Candidate, split: str, scores: ItemScores | Failure) -> int:
        """Keep items, or say why there are none; return how many."""
        if isinstance(scores, Failure):
            items = "the other search items" if split == REST else split
            self._note(f"{candidate.name}: not scored on {items}: {scores.reason}")
            return 0
        self._write(lambda: self._store.append(candidate.number, split, scores))
        return scores.n
