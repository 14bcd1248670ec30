"""From the tasks' scores to what the sampler maximises: one number, or one per task.

Pure. What is better when lower (a perplexity, a length) enters with its sign turned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...evals.scores.scores import ItemScores, TaskScore
from ...evals.scores.term_columns import METRIC, TermColumn
from ...evals.scores.terms import Term, as_terms
from ...evals.stats.comparison import Difference, paired_difference
from ..config.config import ConfigError
from ..config.search import Rule

NAMES: dict[Rule, str] = {
    "mean": "mean",
    "weighted": "weighted mean",
    "min": "minimum",
    "harmonic": "harmonic mean",
    "pareto": "Pareto front",
}
SHARES = re.compile(r"(\w+_)?acc(_\w+)?|exact_match|em|f1|pass(@|_at_)\w+")
"""Metrics that are shares of right answers, by lm-eval's names of them."""
BOUNDED_BELOW = ("harmonic",)
"""Rules that need values above 0: as they come, those of metrics alone are such."""


def default_rule(metrics: Sequence[str], weights: Sequence[float]) -> Rule:
    """The rule of a configuration that names none.

    The harmonic mean where it is known to be safe: a share of right answers is never negative, and
    better when higher. A single task is its own mean.

    Args:
        metrics: Of each term the metric, ``""`` where another column counts, or lower is better.
        weights: Of each term.
    """
    if len(metrics) > 1 and all(SHARES.fullmatch(metric) for metric in metrics):
        return "harmonic"
    return "weighted" if set(weights) - {1.0} else "mean"


@dataclass(frozen=True)
class Objective:
    """How scores are combined.

    Attributes:
        rule: ``mean``, ``weighted`` (a mean), ``min``, ``harmonic`` (weighted), or ``pareto``:
            each term for itself; where one number is asked for, it is their mean.
        weights: Term -> weight; any positive numbers.
        signs: Term -> +1, or -1 where lower is better.
        columns: Term -> (task, column); a term that is missing is the task's own score.
        normalize: Whether each term is counted from the worst parent's score (0) to the best
            parent's (1).
        scale: Term -> (score of 0, score of 1), signs turned; once the parents are scored.
    """

    rule: Rule
    weights: Mapping[str, float]
    signs: Mapping[str, int]
    columns: Mapping[str, tuple[str, TermColumn]] = field(default_factory=dict)
    normalize: bool = False
    scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = sorted(term for term in self.weights if self._is_open_below(term))
        if self.rule in BOUNDED_BELOW and not self.normalize and odd:
            raise ConfigError(
                f"search.objective `{self.rule}` needs scores above 0 that are better when higher, "
                f"got {', '.join(odd)}: use `mean`, another metric, or `search.normalize: true`"
            )
        units = {self._unit(term) for term in self.weights}
        if self.rule == "min" and not self.normalize and len(units) > 1:
            raise ConfigError(
                f"search.objective `{self.rule}` compares scores of one unit, got "
                f"{', '.join(sorted(units))}: set `search.normalize: true`, or use `weighted`"
            )

    def _is_open_below(self, term: str) -> bool:
        return self.signs[term] < 0 or self._unit(term) != METRIC

    def _unit(self, term: str) -> str:
        column = self.columns[term][1] if term in self.columns else METRIC
        return column if self.signs[term] > 0 or column != METRIC else "metric (lower is better)"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the terms: the "tasks" of items as this objective sees them."""
        return tuple(self.weights)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """What is looked at, in order."""
        return tuple(Term(name, *self.columns.get(name, (name, METRIC))) for name in self.weights)

    @property
    def is_plain(self) -> bool:
        """Whether every term is its task's own score."""
        return all(term.is_plain for term in self.terms)

    @property
    def phrase(self) -> str:
        """What is optimised, in words."""
        is_weighed = self.rule in ("weighted", "harmonic")
        parts = [
            f"{term.title} ({self.shares[term.name]:.0%})" if is_weighed else term.title
            for term in self.terms
        ]
        scale = ", counted from the worst parent (0) to the best (1)" if self.normalize else ""
        return f"{NAMES[self.rule]} of {', '.join(parts)}{scale}"

    @property
    def has_several(self) -> bool:
        """Whether the sampler is told several values."""
        return self.rule == "pareto"

    @cached_property
    def shares(self) -> dict[str, float]:
        """Weights as shares that sum to 1."""
        total = sum(self.weights.values())
        return {term: weight / total for term, weight in self.weights.items()}

    @cached_property
    def criteria(self) -> tuple[Objective, ...]:
        """What a candidate must lose by, each: the objective, or every term of several."""
        if not self.has_several:
            return (self,)
        return tuple(replace(self, rule="mean", weights={term: 1.0}) for term in self.weights)

    def seen(self, scores: ItemScores) -> ItemScores:
        """Item scores as this objective sees them: one "task" per term."""
        return as_terms(scores, self.terms)

    def scaled(self, parents: Iterable[Mapping[str, float]]) -> Objective:
        """The same, counted from the worst parent's score to the best parent's.

        A term on which all parents score alike is counted from there in its own unit.

        Args:
            parents: Scores of each, by term.
        """
        if not self.normalize:
            return self
        found = [{t: self.signs[t] * scores[t] for t in self.weights} for scores in parents]
        ends = {t: (min(s[t] for s in found), max(s[t] for s in found)) for t in self.weights}
        scale = {t: (low, high if high > low else low + 1.0) for t, (low, high) in ends.items()}
        return replace(self, scale=scale)

    def value(self, values: Mapping[str, float]) -> float:
        """Combine one value per term; higher is better.

        The harmonic mean of scores that hold a zero (or less) is 0.
        """
        turned = self._turned(values)
        if self.rule == "min":
            return min(turned.values())
        if self.rule != "harmonic":
            return sum(share * turned[term] for term, share in self.shares.items())
        if min(turned.values()) <= 0:
            return 0.0
        return 1 / sum(share / turned[term] for term, share in self.shares.items())

    def values(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """What the sampler maximises: the value, or every term's own; higher is better."""
        return tuple(criterion.value(values) for criterion in self.criteria)

    def gradient(self, values: Mapping[str, float]) -> dict[str, float]:
        """Derivative of `value` by each term's score; the lowest term's alone for `min`."""
        steps = {t: self._step(t) for t in self.weights}
        if self.rule not in ("min", "harmonic"):
            return {term: share * steps[term] for term, share in self.shares.items()}
        turned = self._turned(values)
        if self.rule == "min":
            lowest = min(turned, key=lambda term: turned[term])
            return {lowest: steps[lowest]}
        whole = self.value(values)
        return {
            term: share * (whole / turned[term]) ** 2 * steps[term] if whole else 0.0
            for term, share in self.shares.items()
        }

    def standard_error(self, scores: Mapping[str, TaskScore]) -> float:
        """Standard error of the combined value, tasks independent (delta method).

        Where several terms share the minimum, it is the largest of theirs.
        """
        values = {term: scores[term].value for term in self.weights}
        if self.rule == "min":
            turned = self._turned(values)
            lowest = min(turned.values())
            own = (term for term in turned if turned[term] == lowest)
            return max(abs(self._step(term)) * scores[term].se for term in own)
        slopes = self.gradient(values)
        return math.sqrt(sum((slopes[term] * scores[term].se) ** 2 for term in values))

    def combined(self, scores: ItemScores | Mapping[str, TaskScore]) -> TaskScore:
        """The value of item scores, or of scores by term, with its standard error."""
        by_term = self.seen(scores).task_scores() if isinstance(scores, ItemScores) else scores
        value = self.value({term: by_term[term].value for term in self.weights})
        n = sum(by_term[term].n for term in self.weights)
        return TaskScore(value, self.standard_error(by_term), n)

    def difference(self, a: ItemScores, b: ItemScores) -> Difference:
        """Paired difference of two models in this objective; see `paired_difference`."""
        return paired_difference(self.seen(a), self.seen(b), self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: what a resumed study must find unchanged.

        Without the scale: that follows from the parents' scores.
        """
        values: dict[str, Any] = {
            "rule": self.rule,
            "weights": dict(self.weights),
            "signs": dict(self.signs),
        }
        optional = {
            "columns": {term: list(column) for term, column in self.columns.items()},
            "normalize": self.normalize,
        }
        return values | {key: value for key, value in optional.items() if value}

    def _turned(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each term's value, higher is better, on the objective's scale."""
        return {
            term: (self.signs[term] * values[term] - self._zero(term)) * abs(self._step(term))
            for term in self.weights
        }

    def _zero(self, term: str) -> float:
        return self.scale[term][0] if self.normalize else 0.0

    def _step(self, term: str) -> float:
        """By what the term's part moves when its score moves by 1."""
        low, high = self.scale[term] if self.normalize else (0.0, 1.0)
        return self.signs[term] / (high - low)


def task_alone(scores: ItemScores, task: str) -> Objective:
    """The objective that is one task's own score; higher is better."""
    is_higher = scores.higher_is_better[scores.tasks.index(task)]
    return Objective("mean", {task: 1.0}, {task: 1 if is_higher else -1})
