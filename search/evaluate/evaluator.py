"""What scores a recipe: engine and scorer together, and what a candidate may fail for.

Knows no study. Weights or scores that are not finite and memory that ran out are reasons; all other
errors are ours and propagate.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ...evals.scorer.scorer import Scorer
from ...evals.scores.scores import ItemScores, NonFiniteScore
from ...evals.tasks.splits import SEARCH
from ...merge.engine.engine import MergeEngine, MergeFailure
from ...merge.recipe.recipe import Recipe
from .objective import Objective

log = logging.getLogger(__name__)
T = TypeVar("T")
_NO_MEMORY = "out of memory"


@dataclass(frozen=True)
class Evaluator:
    """What scores a recipe: the engine, the scorer and the objective."""

    engine: MergeEngine
    scorer: Scorer
    objective: Objective
    halved: Callable[[], Scorer] | None = None
    """Makes a scorer of half the batch, for a candidate whose scoring took too much memory."""

    def score(self, recipe: Recipe, split: str) -> ItemScores | str:
        """Materialise and score a recipe.

        Returns:
            Its scores, or the reason why there are none: weights or scores that are not finite,
            or memory that ran out. All other errors are ours and propagate.
        """
        return self._scored(recipe, lambda: self.scorer.score(split), split)

    def race(
        self,
        recipe: Recipe,
        is_enough: Callable[[ItemScores], bool],
        met: ItemScores | None = None,
    ) -> ItemScores | str:
        """Materialise a recipe and score it on the search items, rung by rung, until it is enough.

        Args:
            recipe: What to load.
            is_enough: Looks at the scores after each rung.
            met: Its scores of the first rungs, which are not scored again.

        Returns:
            As `score`; of the items that it has met.
        """

        def rungs() -> ItemScores:
            for scores in self.scorer.rungs(SEARCH, met):
                if is_enough(scores):
                    break
            return scores

        return self._scored(recipe, rungs, SEARCH)

    def _scored(
        self, recipe: Recipe, work: Callable[[], ItemScores], split: str
    ) -> ItemScores | str:
        loaded = _tried(lambda: self.engine.load(recipe))
        if isinstance(loaded, str):
            return loaded
        scores, make = _tried(work), self.halved
        if make is None or not isinstance(scores, str) or not scores.startswith(_NO_MEMORY):
            return scores
        log.warning("%s: scoring this candidate once more, in batches of half the size", scores)
        again = _tried(lambda: make().score(split))
        return f"{again} (in batches of half the size)" if isinstance(again, str) else again


def _tried(work: Callable[[], T]) -> T | str:
    """The work, or why it could not be done: what a candidate may fail for."""
    try:
        return work()
    except (MergeFailure, NonFiniteScore) as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{_NO_MEMORY}: {' '.join(str(error).split())[:200]}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an exhausted memory, of host or device, from other errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text
