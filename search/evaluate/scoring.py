"""Attach scores, estimates and the objective's value to candidates.

Knows candidates, item scores and the objective; no model.
"""

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
    """Return the objective on the parents' scale, if it asks for one and any candidate is finished.

    Raises:
        StudyError: If it asks for one and no parent has scores.
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


def with_scores(candidate: Candidate, scores: ItemScores, objective: Objective) -> Candidate:
    """Return a candidate with its scores by task and term, before they are combined."""
    by_term = {} if objective.is_plain else objective.seen(scores).task_scores()
    return _with(candidate, scores, scores.task_scores(), by_term)


def with_estimates(
    candidate: Candidate,
    scores: ItemScores,
    objective: Objective,
    race: Race,
    incumbents: tuple[ItemScores, ...],
) -> Candidate:
    """Return a candidate that the race has stopped, with estimates of its scores on all items.

    Args:
        candidate: The candidate.
        scores: Scores of the items before it was stopped.
        objective: Names the terms.
        race: The race.
        incumbents: Items of its incumbents; it has lost against at least one.
    """
    best = next(incumbent for incumbent in incumbents if race.is_lost(scores, incumbent))
    by_term = {} if objective.is_plain else race.estimates(scores, best, objective.terms)
    by_task = race.estimates(scores, best, plain_terms(scores.tasks))
    return replace(_with(candidate, scores, by_task, by_term), raced=True)


def _with(candidate: Candidate, scores: ItemScores, by_task: Scores, by_term: Scores) -> Candidate:
    return replace(candidate, scores=by_task, terms=by_term, audit=audits(scores), items=scores.n)


def with_value(candidate: Candidate, objective: Objective) -> Candidate:
    """Return a candidate with the objective's value; failed if that is not finite."""
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
