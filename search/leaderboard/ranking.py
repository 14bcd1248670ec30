"""Who is told apart from whom on the confirm items, and the verdicts and ranks that follow.

Knows item scores by trial number; no rows, no recipes. Told apart are two whose paired difference
has a p-value below ALPHA, corrected by Holm: of a candidate and a baseline over the candidates, as
for the verdict; of two candidates, or of two baselines, over all pairs of that kind.
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
    """All that were scored on the confirm items, held against each other.

    Attributes:
        scores: Number -> objective on the confirm items.
        to_baseline: Number -> baseline's number -> difference; the p-values of candidates are
            corrected for their number.
        worse: Pairs (a, b) where a is shown to be worse than b.
    """

    scores: Mapping[int, TaskScore]
    to_baseline: Mapping[int, Mapping[int, Difference]]
    worse: frozenset[Pair]

    @classmethod
    def of(
        cls, confirmed: Mapping[int, ItemScores], baselines: Sequence[int], objective: Objective
    ) -> Comparisons:
        """Compare all with every baseline, candidates and baselines also among themselves.

        Args:
            confirmed: Number -> confirm items.
            baselines: Numbers of those that are baselines.
            objective: What is compared.
        """
        seen = {number: objective.seen(scores) for number, scores in confirmed.items()}
        given = [number for number in seen if number in set(baselines)]
        searched = [number for number in seen if number not in set(baselines)]
        by_baseline = {b: _against(b, [n for n in seen if n != b], seen, objective) for b in given}
        for b, found in by_baseline.items():
            by_baseline[b] = found | _corrected({n: found[n] for n in searched})
        mixed = {(n, b): by_baseline[b][n] for b in given for n in searched}
        alike = {(n, b): by_baseline[b][n] for b in given for n in given if n < b}
        rivals = {
            (n, other): difference
            for place, other in enumerate(searched)
            for n, difference in _against(other, searched[:place], seen, objective).items()
        }
        every = mixed | _corrected(alike) | _corrected(rivals)
        return cls(
            {number: objective.combined(scores) for number, scores in confirmed.items()},
            {n: {b: by_baseline[b][n] for b in given if b != n} for n in seen},
            frozenset(_worse_first(pair, d) for pair, d in every.items() if is_shown(d)),
        )

    def verdict(self, number: int) -> tuple[str, int | None]:
        """What may be said of a candidate, and the best baseline that it is not shown to beat."""
        against = self.to_baseline[number]
        unbeaten = [b for b, d in against.items() if not (d.value > 0 and is_shown(d))]
        if not unbeaten:
            return "better", None
        best = max(against, key=lambda b: self.scores[b].value)
        to_best = against[best]
        verdict = "worse" if to_best.value < 0 and is_shown(to_best) else "tie"
        return verdict, max(unbeaten, key=lambda b: self.scores[b].value)

    def ranks(self, order: Sequence[int]) -> dict[int, int]:
        """Ranks of numbers that are in order, best first; those not told apart share one.

        Going down, a number opens a new rank as soon as it is shown to be worse than any that
        shares the rank so far: of those that share a rank no two are told apart. The converse does
        not hold, and cannot: "not told apart" is not transitive. The rank is 1 and how many stand
        before its first.
        """
        ranks: dict[int, int] = {}
        shared: list[int] = []
        for place, number in enumerate(order, 1):
            if any((number, other) in self.worse for other in shared):
                shared = []
            shared.append(number)
            ranks[number] = place + 1 - len(shared)
        return ranks


def is_shown(difference: Difference) -> bool:
    """Whether a difference is told from none, at ALPHA."""
    return difference.p < ALPHA


def task_differences(
    scores: Mapping[int, ItemScores], other: int
) -> dict[int, dict[str, Difference]]:
    """Number -> task -> paired difference to another number; none where that has no scores.

    Each task by itself, positive is better; p-values are not corrected, so that a loss shows.
    """
    if other not in scores:
        return {}
    alone = {task: task_alone(scores[other], task) for task in scores[other].tasks}
    numbers = [number for number in scores if number != other]
    by_task = {task: _against(other, numbers, scores, one) for task, one in alone.items()}
    return {n: {task: by_task[task][n] for task in by_task} for n in numbers}


def _against(
    other: int, numbers: Sequence[int], seen: Mapping[int, ItemScores], objective: Objective
) -> dict[int, Difference]:
    """Differences of numbers to another one."""
    if not numbers:
        return {}
    found = paired_differences([seen[n] for n in numbers], seen[other], objective)
    return {n: found[place] for place, n in enumerate(numbers)}


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
    """By how much the best of K search scores is expected to be above its own true value.

    Scores are taken for true values, normal over the candidates, plus independent normal noise; the
    best one is shrunken towards the mean by the noise's share of the variance: by nothing without
    noise, to the mean where noise explains all that they differ.

    Args:
        values: Search scores (K,) of all candidates that were scored on the same items.
        noise: Standard error of one candidate's score against the others on the same items.

    Source:
        Morris, JASA 78 (1983), pp. 47-55 (parametric empirical Bayes); as a remedy for the bias of
        a maximum, Efron, JASA 106 (2011), pp. 1602-1614.
    """
    if len(values) < 2 or noise <= 0:
        return 0.0
    spread = variance(values)
    share = 1.0 if spread <= noise**2 else noise**2 / spread
    return share * (max(values) - fmean(values))
