"""Pairwise significance on the confirm items: verdicts, ranks, and the selection bias.

Knows item scores by trial number; no rows, no recipes. Two models are significantly different if
the p-value of their paired difference is below ALPHA after Holm's correction: for a candidate and
a baseline over the candidates, for two candidates or two baselines over all pairs of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import TypeVar

from ...evals.scores.scores import ItemScores, TaskScore
from ...evals.stats.comparison import Difference, paired_differences
from ..evaluate.objective import Objective, task_alone

ALPHA = 0.05
"""Two-sided level of a verdict and of a rank, after Holm's correction."""
Pair = tuple[int, int]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Comparisons:
    """Pairwise comparisons of the models that were scored on the confirm items.

    Attributes:
        scores: Number -> objective on the confirm items.
        to_baseline: Number -> baseline's number -> difference; the p-values of candidates are
            Holm-corrected for their number.
        worse: Pairs (a, b) where a is significantly worse than b.
    """

    scores: Mapping[int, TaskScore]
    to_baseline: Mapping[int, Mapping[int, Difference]]
    worse: frozenset[Pair]

    @classmethod
    def of(
        cls, confirmed: Mapping[int, ItemScores], baselines: Sequence[int], objective: Objective
    ) -> Comparisons:
        """Compare every model with every baseline, and candidates and baselines with each other.

        Args:
            confirmed: Number -> scores of the confirm items.
            baselines: Numbers of the baselines.
            objective: The objective compared.
        """
        items = {number: objective.seen(scores) for number, scores in confirmed.items()}
        given = [number for number in items if number in set(baselines)]
        searched = [number for number in items if number not in set(baselines)]
        to = {b: _to(b, [n for n in items if n != b], items, objective) for b in given}
        for b, differences in to.items():
            to[b] = differences | _corrected({n: differences[n] for n in searched})
        mixed = {(n, b): to[b][n] for b in given for n in searched}
        among_baselines = {(n, b): to[b][n] for b in given for n in given if n < b}
        among_candidates = {
            (n, other): difference
            for place, other in enumerate(searched)
            for n, difference in _to(other, searched[:place], items, objective).items()
        }
        pairs = mixed | _corrected(among_baselines) | _corrected(among_candidates)
        return cls(
            {number: objective.combined(scores) for number, scores in confirmed.items()},
            {n: {b: to[b][n] for b in given if b != n} for n in items},
            frozenset(_worse_first(pair, d) for pair, d in pairs.items() if is_significant(d)),
        )

    def verdict(self, number: int) -> tuple[str, int | None]:
        """Return a candidate's verdict, and the best baseline that it is not shown to beat."""
        differences = self.to_baseline[number]
        unbeaten = [b for b, d in differences.items() if not (d.value > 0 and is_significant(d))]
        if not unbeaten:
            return "better", None
        to_best = differences[max(differences, key=lambda b: self.scores[b].value)]
        verdict = "worse" if to_best.value < 0 and is_significant(to_best) else "tie"
        return verdict, max(unbeaten, key=lambda b: self.scores[b].value)

    def ranks(self, order: Sequence[int]) -> dict[int, int]:
        """Return the ranks of numbers that are sorted best first.

        Going down, a number gets a new rank if it is significantly worse than any of those of the
        current rank, so that no two of equal rank are significantly different. The converse cannot
        hold: not being significantly different is not transitive. A rank is 1 plus the count of
        numbers above its first.
        """
        ranks: dict[int, int] = {}
        equal: list[int] = []
        for place, number in enumerate(order, 1):
            if any((number, other) in self.worse for other in equal):
                equal = []
            equal.append(number)
            ranks[number] = place + 1 - len(equal)
        return ranks


def is_significant(difference: Difference) -> bool:
    """Whether a difference is significant at ALPHA."""
    return difference.p < ALPHA


def task_differences(
    scores: Mapping[int, ItemScores], other: int
) -> dict[int, dict[str, Difference]]:
    """Return number -> task -> paired difference to another number; empty if that has no scores.

    Positive is better. P-values are not corrected, so that a loss shows.
    """
    if other not in scores:
        return {}
    alone = {task: task_alone(scores[other], task) for task in scores[other].tasks}
    numbers = [number for number in scores if number != other]
    by_task = {task: _to(other, numbers, scores, one) for task, one in alone.items()}
    return {n: {task: by_task[task][n] for task in by_task} for n in numbers}


def _to(
    other: int, numbers: Sequence[int], items: Mapping[int, ItemScores], objective: Objective
) -> dict[int, Difference]:
    """Paired differences of numbers to another one."""
    if not numbers:
        return {}
    differences = paired_differences([items[n] for n in numbers], items[other], objective)
    return {n: differences[index] for index, n in enumerate(numbers)}


def _corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    p_values = holm([difference.p for difference in differences.values()])
    pairs = zip(differences.items(), p_values, strict=True)
    return {key: replace(difference, p=p) for (key, difference), p in pairs}


def _worse_first(pair: Pair, difference: Difference) -> Pair:
    return pair if difference.value < 0 else (pair[1], pair[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure.

    Source:
        Holm, Scandinavian Journal of Statistics 6 (1979), pp. 65-70.
    """
    corrected, running = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for step, index in enumerate(order):
        running = max(running, min((len(p_values) - step) * p_values[index], 1.0))
        corrected[index] = running
    return corrected


def selection_bias(values: Sequence[float], noise: float) -> float:
    """Return by how much the best of K search scores is expected to be above its true value.

    The model: true values are normal over the candidates, scores add independent normal noise. The
    best score is shrunk towards the mean by the noise's share of the variance: not at all without
    noise, all the way if noise explains all differences.

    Args:
        values: Search scores (K,) of all candidates that were scored on the same items.
        noise: Standard error of one candidate's score against the others on the same items.

    Source:
        Morris, JASA 78 (1983), pp. 47-55 (parametric empirical Bayes); as a remedy for the bias of
        a maximum, Efron, JASA 106 (2011), pp. 1602-1614.
    """
    if len(values) < 2 or noise <= 0:
        return 0.0
    total = variance(values)
    share = 1.0 if total <= noise**2 else noise**2 / total
    return share * (max(values) - fmean(values))
