"""From the tasks' scores to the one number that the sampler maximises.

Pure. A task whose metric is better when lower (perplexity) enters with its sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..evals.scores import TaskScore
from .config import ConfigError


@dataclass(frozen=True)
class Objective:
    """How scores are combined.

    Attributes:
        rule: ``mean`` (weighted), ``min`` or ``harmonic`` (weighted).
        weights: Task name -> weight; any positive numbers.
        signs: Task name -> +1, or -1 where lower is better.
    """

    rule: Literal["mean", "min", "harmonic"]
    weights: Mapping[str, float]
    signs: Mapping[str, int]

    def __post_init__(self) -> None:
        lower = sorted(task for task, sign in self.signs.items() if sign < 0)
        if self.rule != "mean" and lower:
            raise ConfigError(
                f"search.objective `{self.rule}` needs metrics that are better when higher; "
                f"{', '.join(lower)} is better when lower: use `mean`, or another metric"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that count."""
        return tuple(self.weights)

    @property
    def shares(self) -> dict[str, float]:
        """Weights as shares that sum to 1."""
        total = sum(self.weights.values())
        return {task: weight / total for task, weight in self.weights.items()}

    def value(self, values: Mapping[str, float]) -> float:
        """Combine one value per task; higher is better.

        The harmonic mean of scores that hold a zero (or less) is 0.
        """
        turned = {task: self.signs[task] * values[task] for task in self.weights}
        if self.rule == "min":
            return min(turned.values())
        if self.rule == "mean":
            return sum(share * turned[task] for task, share in self.shares.items())
        if min(turned.values()) <= 0:
            return 0.0
        return 1 / sum(share / turned[task] for task, share in self.shares.items())

    def gradient(self, values: Mapping[str, float]) -> dict[str, float]:
        """Derivative of `value` by each task's score; the lowest task's alone for `min`."""
        if self.rule == "mean":
            return {task: share * self.signs[task] for task, share in self.shares.items()}
        if self.rule == "min":
            lowest = min(self.weights, key=lambda task: values[task])
            return {lowest: 1.0}
        whole = self.value(values)
        return {
            task: share * (whole / values[task]) ** 2 if whole else 0.0
            for task, share in self.shares.items()
        }

    def standard_error(self, scores: Mapping[str, TaskScore]) -> float:
        """Standard error of the combined value, tasks independent (delta method).

        Where several tasks share the minimum, it is the largest of theirs.
        """
        values = {task: scores[task].value for task in self.weights}
        if self.rule == "min":
            return max(scores[t].se for t, value in values.items() if value == min(values.values()))
        slopes = self.gradient(values)
        return math.sqrt(sum((slopes[task] * scores[task].se) ** 2 for task in values))
