"""Racing: which items come first, when a candidate has lost, and what its score would have been.

All candidates of a study meet the items in one order, rung after rung. Pure: item scores in,
decisions out. Knows no model and no study.

Legend: n items of a task, P references (the parents), s strata of a task.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .comparison import Combination
from .scores import MEAN, ItemScores, TaskScore

FIRST = 50
"""Items of the first rung: in simulations blocks of 50 lost no candidate that was better."""

INFORMED = 0.8
"""Share of a rung taken from the items on which the parents disagree, while there are such. The
rest is a sample of the others, without which a stopped candidate's score could not be told."""


def rung_ends(n: int, first: int = FIRST) -> tuple[int, ...]:
    """Items scored when each rung ends: doubling, the last is all.

    A last rung of less than half the one before is joined to it.

    Args:
        n: All items, at least 1.
        first: Items of the first rung, at least 1.
    """
    ends = []
    end = first
    while end < 0.75 * n:
        ends.append(end)
        end *= 2
    return (*ends, n)


def item_order(references: Sequence[ItemScores], seed: int) -> list[int]:
    """Places of all items in the order of a study: what tells models apart first.

    Within a task, items on which the references' values differ come before the others, INFORMED to
    one, both shuffled; tasks are interleaved so that each rung holds their shares.

    Args:
        references: Scores of the parents on all items, aligned.
        seed: Of the shuffle.
    """
    first = references[0]
    chance = np.random.default_rng(seed)
    position = np.empty(first.n)  # of each item in its task, in (0, 1)
    for task in first.tasks:
        rows = first.rows(task)
        rank = np.empty(rows.size)
        rank[_interleaved(_disagree(references, rows), chance)] = np.arange(rows.size)
        position[rows] = (rank + 0.5) / max(rows.size, 1)
    return np.lexsort((first.task_index, position)).tolist()


def _disagree(references: Sequence[ItemScores], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    values = np.stack([scores.value[rows] for scores in references])
    return (values != values[0]).any(axis=0)


def _interleaved(informative: NDArray[np.bool_], chance: np.random.Generator) -> NDArray[np.int64]:
    """Indices (n,): informative ones before the others, INFORMED to one while both last."""
    kinds = [chance.permutation(np.flatnonzero(informative == kind)) for kind in (True, False)]
    steps = [
        (np.arange(kind.size) + 0.5) / share
        for kind, share in zip(kinds, (INFORMED, 1 - INFORMED), strict=True)
    ]
    return np.concatenate(kinds)[np.argsort(np.concatenate(steps), kind="stable")]


@dataclass(frozen=True)
class Race:
    """What a study's candidates are raced by.

    Attributes:
        references: Scores of the parents on all items.
        combination: What is compared.
        alpha: One-sided level of each rung's test.
    """

    references: tuple[ItemScores, ...]
    combination: Combination
    alpha: float

    def is_lost(self, seen: ItemScores, incumbent: ItemScores) -> bool:
        """Whether a candidate is worse than the incumbent by the items that it has met.

        How likely the right answer is against its best rival is compared, which tells models apart
        by fewer items than right and wrong; values where a task has no margins. The tasks are
        weighed as the combination weighs them at the incumbent's scores. The test is a paired
        z-test, stratified by task.

        Args:
            seen: The candidate's scores so far.
            incumbent: Scores of the best so far, on all items.
        """
        other = restricted(incumbent, seen)
        scores = {task: incumbent.task_score(task).value for task in self.combination.tasks}
        slopes = self.combination.gradient(scores)
        total = variance = 0.0
        for task, slope in slopes.items():
            d = _differences(seen, other, task)
            if d.size > 1:
                total += slope * float(d.mean())
                variance += slope**2 * float(d.var(ddof=1)) / d.size
        if not variance > 0:
            return False
        return 0.5 * math.erfc(-total / math.sqrt(2 * variance)) < self.alpha

    def estimates(self, seen: ItemScores) -> dict[str, TaskScore]:
        """What a stopped candidate's tasks would have scored on all items.

        Control variate: the references' mean on all items, plus how far the candidate was from it
        on the items that it met, by stratum (references agree or not). The distance is shrunken by
        its own error: d * d^2 / (d^2 + se^2).

        Args:
            seen: Its scores so far.
        """
        return {task: self._estimate(seen, task) for task in seen.tasks}

    def _estimate(self, seen: ItemScores, task: str) -> TaskScore:
        whole, rows = self.references[0], seen.rows(task)
        mean = float(np.mean([r.task_score(task).value for r in self.references]))
        distance = variance = 0.0
        for share, d in self._strata(seen, task):
            distance += share * float(d.mean()) if d.size else 0.0
            spread = float(d.var(ddof=1)) if d.size > 1 else 0.25
            variance += share**2 * spread / max(d.size, 1)
        if whole.aggregations[whole.tasks.index(task)] != MEAN:
            distance, variance = self._ratio_distance(seen, task)
        square = distance**2
        shrunken = distance * square / (square + variance) if square else 0.0
        return TaskScore(mean + shrunken, math.sqrt(variance), rows.size)

    def _strata(self, seen: ItemScores, task: str) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """Share of each stratum in the task, and the candidate's distances in it (n,)."""
        whole = self.references[0]
        everywhere, mine = whole.rows(task), seen.rows(task)
        at = _places(seen, whole)[mine]
        disagree = _disagree(self.references, everywhere)
        informative = dict(zip(everywhere.tolist(), disagree.tolist(), strict=True))
        kinds = np.array([informative[place] for place in at.tolist()], dtype=bool)
        center = np.mean([scores.value[at] for scores in self.references], axis=0)
        d = seen.value[mine] - center
        for kind in (True, False):
            share = float((disagree == kind).mean()) if everywhere.size else 0.0
            if share:
                yield share, d[kinds == kind]

    def _ratio_distance(self, seen: ItemScores, task: str) -> tuple[float, float]:
        """Of a score that is no mean (perplexity): distance on what was met, and its variance."""
        others = [restricted(r, seen).task_score(task).value for r in self.references]
        own = seen.task_score(task)
        return own.value - float(np.mean(others)), own.se**2


def restricted(scores: ItemScores, seen: ItemScores) -> ItemScores:
    """The same items as those of ``seen``, of a model that was scored on all of them."""
    return scores.taken(_places(seen, scores))


def _places(seen: ItemScores, whole: ItemScores) -> NDArray[np.int64]:
    """Where each item of ``seen`` stands in ``whole`` (n,)."""
    return np.searchsorted(whole.keys, seen.keys)


def _differences(seen: ItemScores, other: ItemScores, task: str) -> NDArray[np.float64]:
    """Paired differences of a task (n,), whose mean estimates that of the two scores.

    Of answers that are right or wrong, the difference in how likely the right one is against its
    best rival, 1 / (1 + exp(-margin)): an answer that is nearly right counts for more than one that
    is far off, and one that is right by far for no more than right.
    """
    rows, at = seen.rows(task), seen.tasks.index(task)
    if rows.size == 0:
        return np.empty(0)
    if seen.aggregations[at] != MEAN:
        score = seen.task_score(task).value - other.task_score(task).value
        return score + rows.size * (seen.influence(task) - other.influence(task))
    margins = seen.margin[rows], other.margin[rows]
    if not all(np.isfinite(margin).all() for margin in margins):
        return seen.value[rows] - other.value[rows]
    mine, theirs = (1.0 / (1.0 + np.exp(-np.clip(margin, -500.0, 500.0))) for margin in margins)
    return (mine - theirs) if seen.higher_is_better[at] else (theirs - mine)
