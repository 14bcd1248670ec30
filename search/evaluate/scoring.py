"""Attach scores, estimates and the objective's value to candidates. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...evals.scores.audit import audits
from ...evals.scores.scores import ItemScores, TaskScore
from ...evals.scores.terms import plain_terms
from ...evals.stats.racing import Race
from ..storage.candidate import Candidate
from ..storage.journal import StudyError
from .objective import Objective


def objective_on_parents_scale(objective: Objective, candidates: Sequence[Candidate]) -> Objective:
    """The objective on the parents' scale, where it asks for one and any candidate is finished.

    Raises:
        StudyError: If it does, and no parent could be scored.
    """
    parents = [c for c in candidates if c.kind == "parent" and c.scores]
    if not objective.normalize or not candidates:
        return objective
    if not parents:
        raise StudyError(
            "`search.normalize` counts from the parents' scores, but none of them could be scored; "
            "leave it out, or mend the parents"
        )
    scores = ([(t, s.value) for t, s in c.objective_scores.items()] for c in parents)
    return objective.scaled(map(dict, scores))


Scores = dict[str, TaskScore]


def scored(candidate: Candidate, scores: ItemScores, objective: Objective) -> Candidate:
    """A candidate with the scores of all its items, not combined yet."""
    by_term = {} if objective.is_plain else objective.seen(scores).task_scores()
    return _with(candidate, scores, scores.task_scores(), by_term)


def estimated(
    candidate: Candidate,
    scores: ItemScores,
    objective: Objective,
    race: Race,
    rivals: tuple[ItemScores, ...],
) -> Candidate:
    """A candidate that was stopped, with what it would have scored on all items.

    Args:
        candidate: Whose they are.
        scores: Of the items that it has met.
        objective: What its terms are.
        race: In which it was stopped.
        rivals: Items of those whom it was raced against; it has lost against one at least.
    """
    best = next(rival for rival in rivals if race.is_lost(scores, rival))
    by_term = {} if objective.is_plain else race.estimates(scores, best, objective.terms)
    by_task = race.estimates(scores, best, plain_terms(scores.tasks))
    return replace(_with(candidate, scores, by_task, by_term), raced=True)


def _with(candidate: Candidate, scores: ItemScores, by_task: Scores, by_term: Scores) -> Candidate:
    return replace(candidate, scores=by_task, terms=by_term, audit=audits(scores), items=scores.n)


def with_value(candidate: Candidate, objective: Objective) -> Candidate:
    """A candidate with what its scores make; failed if that is no number."""
    if candidate.failure is not None:
        return candidate
    by_term = {term: score.value for term, score in candidate.objective_scores.items()}
    value, values = objective.value(by_term), objective.values(by_term)
    if not all(map(math.isfinite, (value, *values))):
        reason = f"the objective is {value}: a task's score has left the range of numbers"
        return replace(
            candidate, scores={}, terms={}, audit={}, items=0, raced=False, failure=reason
        )
    return replace(candidate, value=value, values=values if len(values) > 1 else ())
