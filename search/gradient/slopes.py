"""Slopes of the objective's loss by every gene, at one genotype. Knows engine, losses and space.

The loss is the sum over the objective's terms of weight times smooth loss. Weights follow the chain
rule through the objective: the derivative of its value by each term's score, so that the harmonic
mean and the minimum attend to the term that is worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...evals.gradient.items import ItemKey
from ...evals.gradient.losses import LossReport, SmoothLosses
from ...evals.scores.term_columns import METRIC
from ...merge.engine.engine import MergeEngine
from ...merge.gradient.coefficient_gradient import CoefficientGradient
from ..evaluate.objective import Objective
from ..propose.space import Params, Space


class GradientMemoryError(RuntimeError):
    """Memory is too small for a backward pass of a single item."""


@dataclass(frozen=True)
class Slopes:
    """Result of one forward and backward pass.

    Attributes:
        genes: Gene -> derivative of the loss.
        report: Losses of the items.
    """

    genes: Mapping[str, float]
    report: LossReport


@dataclass(frozen=True, eq=False)
class SlopeEvaluator:
    """Engine, losses, space and objective of a descent."""

    engine: MergeEngine
    losses: SmoothLosses
    space: Space
    objective: Objective

    def slopes(
        self, params: Params, items: Sequence[ItemKey], weights: Mapping[str, float]
    ) -> Slopes:
        """Return the slopes of the weighted loss of some items at a genotype.

        Where memory runs out the pass is repeated in smaller microbatches.

        Args:
            params: A value for each gene and choice of the space.
            items: Items with a smooth loss.
            weights: Term -> weight (`loss_weights`).

        Raises:
            GradientMemoryError: If not even one item fits.
            MergeFailure: If a merged tensor holds NaN or infinity.
        """
        recipe = self.space.decode(params)
        while True:
            gradient = CoefficientGradient(self.engine, recipe)
            try:
                with gradient.collecting():
                    report = self.losses.backward(items, weights)
                return Slopes(self.space.gradient(params, gradient.take()), report)
            except torch.OutOfMemoryError as error:
                if not self.losses.shrink():
                    raise GradientMemoryError(
                        "memory is too small for the backward pass of one item, even with "
                        "activations computed twice; set `search.gradient: false`"
                    ) from error

    def evaluate(self, params: Params, items: Sequence[ItemKey]) -> LossReport:
        """Return the losses of some items at a genotype, without slopes."""
        self.engine.load(self.space.decode(params))
        return self.losses.evaluate(items)


def loss_weights(objective: Objective, report: LossReport | None) -> dict[str, float]:
    """Return the weight of each term's loss; they sum to 1.

    A term's score is estimated by its share of right items under teacher forcing, plus one right
    and one wrong, so that no derivative is infinite; that of a column of nats by its mean loss.

    Args:
        objective: The objective, on the parents' scale if it has one.
        report: Losses near the present genotype; None: every term at one half.
    """
    scores = {term.name: 0.5 for term in objective.terms}
    for term in objective.terms:
        if report is not None and report.losses.get(term.name):
            right, losses = report.right[term.name], report.losses[term.name]
            is_share = term.column == METRIC
            scores[term.name] = (
                (sum(right) + 1) / (len(right) + 2) if is_share else -sum(losses) / len(losses)
            )
    slopes = {term: abs(slope) for term, slope in objective.gradient(scores).items()}
    total = sum(slopes.values())
    if not total:
        return dict(objective.shares)
    return {term: slopes.get(term, 0.0) / total for term in objective.shares}


def total_loss(report: LossReport, weights: Mapping[str, float]) -> float:
    """Return the weighted sum of the terms' mean losses."""
    return sum(
        weights.get(term, 0.0) * sum(losses) / len(losses) for term, losses in report.losses.items()
    )
