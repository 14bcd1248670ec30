"""Ablation of the winner: score its variants, and confirm the simplest that does as well.

Knows judge and keeper; which variants there are, and what they show, is in variants.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...evals.scores.scores import ItemScores
from ...evals.stats.comparison import Difference
from ..propose.ask_tell import TrialQueue
from ..storage.candidate import REROLL, RESET, SIMPLIFIED, Candidate
from .confirmation import Confirmation
from .variants import (
    Variant,
    ablation_of,
    gene_groups,
    rerolls,
    resets,
    shows_loss,
    simplify,
    without,
)


class WinnerAblation:
    """Scores variants of a winner; those of an earlier run are not scored again.

    Args:
        winner: The candidate to ablate.
        queue: Makes trials of variants; knows the space that the winner was proposed in.
        confirmation: Has confirmed the winner; judge, keeper and limits are the same here.
    """

    def __init__(self, winner: Candidate, queue: TrialQueue, confirmation: Confirmation) -> None:
        self._winner, self._queue, self._confirmation = winner, queue, confirmation
        self._judge, self._keeper = confirmation.judge, confirmation.keeper
        self._params = self._keeper.trials[winner.number].params
        self._space = queue.stage_of(winner).space
        self._is_ended = False

    def run(self, n_rerolls: int) -> bool:
        """Score the variants, then confirm the simplest.

        Args:
            n_rerolls: Number of other masks to try.

        Returns:
            Whether it came to its end; false after a stop, or when all time is spent.
        """
        self._score_variants(n_rerolls)
        variants = ablation_of(self._winner, self._keeper.candidates, self._compare)
        if variants.simplest is not None:
            self._confirmation.confirm(variants.simplest)
        self._keeper.compact()
        return not self._is_ended

    def _score_variants(self, n_rerolls: int) -> None:
        """Score other masks, genes reset one at a time, then as many together as show no loss."""
        effects = {}
        one_change = resets(self._winner, self._params, self._space)
        for variant in [*rerolls(self._winner, n_rerolls), *one_change]:
            candidate = self._scored(variant)
            if candidate is None:
                return
            if variant.kind == RESET and candidate.value is not None:
                effects[variant.reset[0]] = self._compare(candidate)
        simplify(effects, self._is_fine)

    def _is_fine(self, groups: Sequence[str]) -> bool | None:
        """Return whether the winner without groups of genes shows no loss; None ends the search."""
        total = len(gene_groups(self._space))
        name = f"{self._winner.name}, {len(groups)} of {total} genes reset"
        recipe = without(self._params, groups, self._space)
        candidate = self._scored(Variant(SIMPLIFIED, name, recipe, tuple(groups)))
        if candidate is None:
            return None
        return candidate.value is not None and not shows_loss(self._compare(candidate))

    def _scored(self, variant: Variant) -> Candidate | None:
        """Return a variant with its scores, scored now if need be; None if it is time to end."""
        for candidate in self._keeper.candidates:
            if candidate.of == self._winner.number and candidate.recipe == variant.recipe:
                return candidate
        self._is_ended = self._confirmation.should_stop() or self._confirmation.budget.is_over
        if self._is_ended:
            return None
        number = len(self._keeper.candidates)
        blank = Candidate(number, variant.name, variant.kind, variant.recipe)
        blank = replace(blank, of=self._winner.number, reset=variant.reset)
        candidate, scores = self._judge.measure(blank)
        candidate = self._judge.with_value(candidate)
        self._keeper.keep(self._queue.add(None, candidate), candidate, scores)
        if variant.kind == REROLL and isinstance(scores, ItemScores):
            self._confirmation.confirm(candidate)
        return candidate

    def _compare(self, candidate: Candidate) -> Difference:
        """Return the paired difference of a variant to the winner, on the search items."""
        items = map(self._keeper.search_items, (candidate, self._winner))
        return self._judge.objective.difference(*items)
