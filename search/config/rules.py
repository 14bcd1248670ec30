"""The rules of `search.objective`: how the scores of an objective's terms become one number.

Knows numbers; no tasks, items or models. A new rule is a row in RULES: the configuration accepts
it, the objective computes its value, gradient and standard error, and titles name it.

numpy is imported where it is used: reading a configuration does not need it.

Legend: x maps each term to its score on the objective's scale, higher is better; w maps each term
to its share of the weights, which sum to 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...merge.hints import hint

Numbers = Mapping[str, float]
Scores = Mapping[str, Any]
"""Scores by term: numbers, or numpy arrays of one shape, which are combined entry by entry."""
SHARES = re.compile(r"(\w+_)?acc(_\w+)?|exact_match|em|f1|pass(@|_at_)\w+")
"""Metrics that are shares of right answers, by lm-eval's names for them."""


@dataclass(frozen=True)
class Rule:
    """A rule that combines the scores of several terms."""

    title: str
    """Its name on leaderboards, before "of" and the terms."""
    value: Callable[[Scores, Numbers], Any]
    """(x, w) -> combined score; higher is better. Works on arrays as on numbers."""
    gradients: Callable[[Numbers, Numbers], Sequence[Numbers]]
    """(x, w) -> derivative of the value with respect to each term's x; terms left out have 0.
    At a kink of the value, one gradient for each side."""
    uses_weights: bool = False
    """Whether the tasks' weights may differ."""
    is_mean: bool = False
    """Whether it is an arithmetic mean, which one term without bounds may dominate."""
    has_several: bool = False
    """Whether the sampler gets the terms' values instead of the combined one."""
    needs_positive: bool = False
    """Whether all scores must be above 0."""
    needs_one_unit: bool = False
    """Whether all scores must have the same unit."""


def _mean(x: Scores, w: Numbers) -> Any:
    return sum(share * x[term] for term, share in w.items())


def _mean_gradients(_: Numbers, w: Numbers) -> list[Numbers]:
    return [w]


def _minimum(x: Scores, _: Numbers) -> Any:
    import numpy as np

    return np.minimum.reduce(list(x.values()))


def _minimum_gradients(x: Numbers, _: Numbers) -> list[Numbers]:
    lowest = min(x.values())
    return [{term: 1.0} for term in x if x[term] == lowest]


def _harmonic(x: Scores, w: Numbers) -> Any:
    """Return the weighted harmonic mean; 0 if any score is 0 or less."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        value = 1 / sum(share / np.asarray(x[term]) for term, share in w.items())
    return np.where(_minimum(x, w) <= 0, 0.0, value)


def _harmonic_gradients(x: Numbers, w: Numbers) -> list[Numbers]:
    value = float(_harmonic(x, w))
    return [{t: share * (value / x[t]) ** 2 if value else 0.0 for t, share in w.items()}]


RULES: dict[str, Rule] = {
    "mean": Rule("mean", _mean, _mean_gradients, is_mean=True),
    "weighted": Rule("weighted mean", _mean, _mean_gradients, uses_weights=True, is_mean=True),
    "min": Rule("minimum", _minimum, _minimum_gradients, needs_one_unit=True),
    "harmonic": Rule(
        "harmonic mean", _harmonic, _harmonic_gradients, uses_weights=True, needs_positive=True
    ),
    "pareto": Rule("Pareto front", _mean, _mean_gradients, has_several=True),
}
"""Name in `search.objective` -> rule."""


def check_rule(name: str) -> str:
    """Return a rule's name, or raise ValueError if there is no such rule."""
    if name not in RULES:
        raise ValueError(f"must be a rule for objectives, got `{name}`; {hint(name, RULES)}")
    return name


def default_rule(metrics: Sequence[str], weights: Sequence[float]) -> str:
    """Return the rule of a configuration that names none.

    The harmonic mean if all terms are shares of right answers, which are never negative; else a
    mean, and for one term its score.

    Args:
        metrics: Metric of each term; ``""`` if it is another column, or lower is better.
        weights: Weight of each term.
    """
    if len(metrics) > 1 and all(SHARES.fullmatch(metric) for metric in metrics):
        return "harmonic"
    return "weighted" if set(weights) - {1.0} else "mean"
