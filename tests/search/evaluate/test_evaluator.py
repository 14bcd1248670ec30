"""The evaluator: typed failures, and errors that are none."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from heterosis.evals.scores.scores import NonFiniteScore
from heterosis.merge.engine.engine import MergeFailure
from heterosis.search.evaluate.evaluator import Evaluator, Failure, FailureKind

from .test_ray_workers import RECIPE, SOME


def evaluator_that_raises(error: Exception) -> Evaluator:
    def load(_):
        raise error

    engine: Any = SimpleNamespace(load=load)
    scorer: Any = SimpleNamespace(score=lambda _: SOME)
    objective: Any = None
    return Evaluator(engine, scorer, objective)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MergeFailure("merged tensor x holds NaN"), FailureKind.NON_FINITE),
        (NonFiniteScore("t", 3, "the score", float("nan")), FailureKind.NON_FINITE),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), FailureKind.MEMORY),
        (RuntimeError("not enough memory: you tried to allocate 9 bytes"), FailureKind.MEMORY),
        (MemoryError("big"), FailureKind.MEMORY),
    ],
)
def test_a_failure_has_a_kind_and_a_reason(error, kind):
    failure = evaluator_that_raises(error).score(RECIPE, "search")
    prefix = "out of memory: " if kind is FailureKind.MEMORY else ""
    assert failure == Failure(kind, prefix + str(error))


def test_other_errors_are_raised():
    with pytest.raises(RuntimeError, match="a defect"):
        evaluator_that_raises(RuntimeError("a defect")).score(RECIPE, "search")
