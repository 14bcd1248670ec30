"""The evaluator: a recipe in, item scores or a typed failure out.

Knows the engine and the scorer; no study. A candidate fails where weights or scores are not finite
or memory runs out; all other errors are defects of the program and propagate.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
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


class FailureKind(Enum):
    """Causes of a candidate's failure."""

    NON_FINITE = "weights or scores are not finite"
    MEMORY = "memory ran out"
    DEATH = "its worker died again and again"
    TIMEOUT = "it took too long"


@dataclass(frozen=True)
class Failure:
    """A candidate's failure.

    Attributes:
        kind: Its cause.
        reason: Text for the journal and the leaderboard.
    """

    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class Evaluator:
    """Engine, scorer and objective.

    Attributes:
        engine: Materialises recipes.
        scorer: Scores the resident model.
        objective: Combines the scores.
        halved: Makes a scorer of half the batch size, for a candidate that ran out of memory.
    """

    engine: MergeEngine
    scorer: Scorer
    objective: Objective
    halved: Callable[[], Scorer] | None = None

    def score(self, recipe: Recipe, split: str) -> ItemScores | Failure:
        """Materialise a recipe and score it on a split."""
        loaded = _attempt(lambda: self.engine.load(recipe))
        if isinstance(loaded, Failure):
            return loaded
        scores = _attempt(lambda: self.scorer.score(split))
        return self._retried(scores, split) if isinstance(scores, Failure) else scores

    def rungs(
        self, recipe: Recipe, partial: ItemScores | None = None
    ) -> Iterator[ItemScores | Failure]:
        """Materialise a recipe and yield its scores of the search items, rung after rung.

        A failure ends it, as do the scores of all items.

        Args:
            recipe: The recipe.
            partial: Scores of the first rungs, which are not scored again.
        """
        loaded = _attempt(lambda: self.engine.load(recipe))
        if isinstance(loaded, Failure):
            yield loaded
            return
        rungs = self.scorer.rungs(SEARCH, partial)
        while (scores := _attempt(lambda: next(rungs, None))) is not None:
            if isinstance(scores, Failure):
                yield self._retried(scores, SEARCH)
                return
            yield scores

    def _retried(self, failure: Failure, split: str) -> ItemScores | Failure:
        """Score all items of a split again in smaller batches, if memory ran out."""
        halved = self.halved
        if halved is None or failure.kind is not FailureKind.MEMORY:
            return failure
        log.warning("%s: scoring again in batches of half the size", failure.reason)
        again = _attempt(lambda: halved().score(split))
        if isinstance(again, Failure):
            return replace(again, reason=f"{again.reason} (in batches of half the size)")
        return again


def _attempt(work: Callable[[], T]) -> T | Failure:
    """Return the work's result, or a failure for the errors that a candidate may fail with."""
    try:
        return work()
    except (MergeFailure, NonFiniteScore) as error:
        return Failure(FailureKind.NON_FINITE, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory: {' '.join(str(error).split())[:200]}"
    # The traceback, which refers to the tensors, is released by now.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Failure(FailureKind.MEMORY, reason)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory of the host or a device ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "not enough memory" in text
