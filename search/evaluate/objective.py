"""The objective: from the scores of tasks to the number, or numbers, that the sampler maximises.

Pure. The rules are in `config/rules.py`. Scores that are better when lower (a perplexity, a length)
enter with their sign changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...evals.scores.scores import ItemScores, TaskScore
from ...evals.scores.term_columns import METRIC, TermColumn
from ...evals.scores.terms import Term, as_terms
from ...evals.stats.comparison import Difference, paired_difference
from ...evals.stats.significance import Floats
from ..config.config import ConfigError
from ..config.rules import RULES, Rule, Scores


@dataclass(frozen=True)
class Objective:
    """An objective: terms, and the rule that combines their scores.

    Attributes:
        rule: Name of the rule in RULES. With ``pareto`` the sampler gets each term's value; as one
            number it is their mean.
        weights: Term -> weight; any positive numbers.
        signs: Term -> +1, or -1 if lower is better.
        columns: Term -> (task, column); a missing term is the task's score.
        normalize: Whether each term is scaled from the worst parent's score (0) to the best
            parent's (1).
        scale: Term -> (score scaled to 0, score scaled to 1), signs changed; known once the parents
            are scored.
    """

    rule: str
    weights: Mapping[str, float]
    signs: Mapping[str, int]
    columns: Mapping[str, tuple[str, TermColumn]] = field(default_factory=dict)
    normalize: bool = False
    scale: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = sorted(term for term in self.weights if self._may_be_negative(term))
        if self._rule.needs_positive and not self.normalize and odd:
            raise ConfigError(
                f"search.objective `{self.rule}` needs scores above 0 that are better when higher, "
                f"got {', '.join(odd)}: use `mean`, another metric, or `search.normalize: true`"
            )
        units = {self._unit(term) for term in self.weights}
        if self._rule.needs_one_unit and not self.normalize and len(units) > 1:
            raise ConfigError(
                f"search.objective `{self.rule}` compares scores of one unit, got "
                f"{', '.join(sorted(units))}: set `search.normalize: true`, or use `weighted`"
            )

    @property
    def _rule(self) -> Rule:
        return RULES[self.rule]

    def _may_be_negative(self, term: str) -> bool:
        return self.signs[term] < 0 or self._unit(term) != METRIC

    def _unit(self, term: str) -> str:
        column = self.columns[term][1] if term in self.columns else METRIC
        return column if self.signs[term] > 0 or column != METRIC else "metric (lower is better)"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the terms: the "tasks" of item scores as this objective sees them."""
        return tuple(self.weights)

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The terms, in order."""
        return tuple(Term(name, *self.columns.get(name, (name, METRIC))) for name in self.weights)

    @property
    def is_plain(self) -> bool:
        """Whether every term is its task's score."""
        return all(term.is_plain for term in self.terms)

    @property
    def phrase(self) -> str:
        """The objective in words, for titles."""
        rule = self._rule
        parts = [
            f"{term.title} ({self.shares[term.name]:.0%})" if rule.uses_weights else term.title
            for term in self.terms
        ]
        scale = ", counted from the worst parent (0) to the best (1)" if self.normalize else ""
        return f"{rule.title} of {', '.join(parts)}{scale}"

    @property
    def has_several(self) -> bool:
        """Whether the sampler gets several values."""
        return self._rule.has_several

    @cached_property
    def shares(self) -> dict[str, float]:
        """Weights as shares that sum to 1."""
        total = sum(self.weights.values())
        return {term: weight / total for term, weight in self.weights.items()}

    @cached_property
    def criteria(self) -> tuple[Objective, ...]:
        """What a candidate must lose by to be stopped: the objective, or each of several terms."""
        if not self.has_several:
            return (self,)
        return tuple(replace(self, rule="mean", weights={term: 1.0}) for term in self.weights)

    def seen(self, scores: ItemScores) -> ItemScores:
        """Return item scores as this objective sees them: one "task" per term."""
        return as_terms(scores, self.terms)

    def scaled(self, parents: Iterable[Mapping[str, float]]) -> Objective:
        """Return the objective on the parents' scale, from the worst score to the best.

        A term on which all parents have the same score keeps its unit and counts from there.

        Args:
            parents: Scores of each parent, by term.
        """
        if not self.normalize:
            return self
        signed = [{t: self.signs[t] * scores[t] for t in self.weights} for scores in parents]
        ends = {t: (min(s[t] for s in signed), max(s[t] for s in signed)) for t in self.weights}
        scale = {t: (low, high if high > low else low + 1.0) for t, (low, high) in ends.items()}
        return replace(self, scale=scale)

    def value(self, values: Mapping[str, float]) -> float:
        """Combine one score per term; higher is better."""
        return float(self._rule.value(self._scaled(values), self.shares))

    def drawn_values(self, values: Mapping[str, Floats]) -> Floats:
        """Combine scores of draws (..., B), draw by draw; higher is better."""
        return self._rule.value(self._scaled(values), self.shares)

    def values(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Return the sampler's values: the combined one, or each term's; higher is better."""
        return tuple(criterion.value(values) for criterion in self.criteria)

    def gradient(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the derivative of `value` with respect to each term's score; 0 if left out."""
        return self._gradients(values)[0]

    def _gradients(self, values: Mapping[str, float]) -> list[dict[str, float]]:
        gradients = self._rule.gradients(self._scaled(values), self.shares)
        steps = {term: sign * unit for term, (sign, _, unit) in self._scales.items()}
        return [{t: slope * steps[t] for t, slope in slopes.items()} for slopes in gradients]

    def standard_error(self, scores: Mapping[str, TaskScore]) -> float:
        """Return the standard error of the value, terms independent (delta method).

        Where the value has a kink (several terms share the minimum), the largest of its sides.
        """
        return max(
            math.sqrt(sum((slope * scores[term].se) ** 2 for term, slope in slopes.items()))
            for slopes in self._gradients({term: scores[term].value for term in self.weights})
        )

    def combined(self, scores: ItemScores | Mapping[str, TaskScore]) -> TaskScore:
        """Combine item scores, or scores by term, into a value with its standard error."""
        by_term = self.seen(scores).task_scores() if isinstance(scores, ItemScores) else scores
        value = self.value({term: by_term[term].value for term in self.weights})
        n = sum(by_term[term].n for term in self.weights)
        return TaskScore(value, self.standard_error(by_term), n)

    def difference(self, a: ItemScores, b: ItemScores) -> Difference:
        """Return the paired difference of two models; see `paired_difference`."""
        return paired_difference(self.seen(a), self.seen(b), self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, which must be the same in a resumed study.

        The scale is left out: it follows from the parents' scores.
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

    def _scaled(self, scores: Scores) -> dict[str, Any]:
        """Return each term's score on the objective's scale; higher is better."""
        return {
            term: (sign * scores[term] - zero) * unit
            for term, (sign, zero, unit) in self._scales.items()
        }

    @cached_property
    def _scales(self) -> dict[str, tuple[int, float, float]]:
        """Term -> sign, signed score scaled to 0, and change of the scaled score per unit."""
        ends = {t: self.scale[t] if self.normalize else (0.0, 1.0) for t in self.weights}
        return {t: (self.signs[t], low, 1 / (high - low)) for t, (low, high) in ends.items()}


def task_alone(scores: ItemScores, task: str) -> Objective:
    """Return the objective that is one task's score; higher is better."""
    is_higher = scores.higher_is_better[scores.tasks.index(task)]
    return Objective("mean", {task: 1.0}, {task: 1 if is_higher else -1})
