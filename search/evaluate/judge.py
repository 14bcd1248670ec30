"""The judge of a study: scores candidates outside the race, and turns item scores into a result.

Knows the evaluator, the objective and the race; nothing of samplers, of the journal or of who asks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from ...evals.scores.scores import ItemScores
from ...evals.stats.racing import Race
from ...evals.tasks.splits import SEARCH
from ...merge.recipe.recipe import Recipe
from ..storage.candidate import Candidate
from .evaluator import Evaluator, Failure
from .objective import Objective
from .scoring import with_estimates, with_scores, with_value


@dataclass(frozen=True)
class Judge:
    """Evaluator, objective and race of a study.

    Attributes:
        evaluator: Scores recipes.
        objective: On the parents' scale, once they are scored.
        race: None before all baselines are scored, and in a search without racing.
    """

    evaluator: Evaluator
    objective: Objective
    race: Race | None = None

    def score(self, recipe: Recipe, n_items: int | None = None) -> ItemScores | Failure:
        """Score a recipe on the search items: by the rungs of the race, if there is one.

        Args:
            recipe: The recipe.
            n_items: Number of items after which the scoring ends, at a rung; None: all items.
        """
        if self.race is None:
            return self.evaluator.score(recipe, SEARCH)
        for scores in self.evaluator.rungs(recipe):
            if n_items is not None and isinstance(scores, ItemScores) and scores.n >= n_items:
                break
        return scores

    def measure(self, candidate: Candidate) -> tuple[Candidate, ItemScores | Failure]:
        """Score a candidate that is not raced; return it with its scores, but without a value."""
        start = time.monotonic()
        scores = self.score(candidate.recipe)
        candidate = replace(candidate, seconds=time.monotonic() - start)
        return self.with_result(candidate, scores), scores

    def with_result(
        self,
        candidate: Candidate,
        scores: ItemScores | Failure,
        incumbents: tuple[ItemScores, ...] = (),
    ) -> Candidate:
        """Return a candidate with its scores, its estimates if it was stopped, or its failure.

        Args:
            candidate: The candidate.
            scores: Its item scores, or why there are none.
            incumbents: Items of the incumbents that it was raced against.
        """
        if isinstance(scores, Failure):
            return replace(candidate, failure=scores.reason)
        if self.race is None or scores.n == self.evaluator.scorer.items(SEARCH):
            return with_scores(candidate, scores, self.objective)
        return with_estimates(candidate, scores, self.objective, self.race, incumbents)

    def with_value(self, candidate: Candidate) -> Candidate:
        """Return a candidate with the objective's value; failed if that is not finite."""
        return with_value(candidate, self.objective)
