"""A candidate: a recipe and its scores, as the study keeps it.

Knows how a candidate is written into an Optuna trial and read back: user attributes and values.
The study's journal is the only record; leaderboard and export are derived from what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..evals.audit import Audit
from ..evals.scores import TaskScore
from ..merge.recipe import Recipe
from .journal import StudyError

ATTRIBUTE = "candidate"
SEARCHED = "candidate"
"""Kind of what the sampler proposes."""
REROLL, RESET, SIMPLIFIED = VARIANTS = ("reroll", "reset", "simplified")
"""Kinds of what a winner is taken apart into (dissection.py)."""


@dataclass(frozen=True)
class Candidate:
    """One row of the study.

    Attributes:
        number: Trial number in the journal, from 0.
        name: Of a baseline as in ``baselines``; of a candidate ``candidate NUMBER``.
        kind: A baseline's kind, ``candidate``, or one of VARIANTS.
        recipe: All that determines the merge.
        value: Objective on the search items; None if the candidate failed.
        scores: Task name -> score on the search items.
        audit: Task name -> how its generated answers came about; no entry for other tasks.
        items: How many items it was scored on.
        seconds: Spent on loading and scoring.
        failure: Why there is no value, or None.
        of: Of a variant, the winner's number.
        reset: Of a variant, the groups of genes that are as in the uniform merge.
    """

    number: int
    name: str
    kind: str
    recipe: Recipe
    value: float | None = None
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    audit: Mapping[str, Audit] = field(default_factory=dict)
    items: int = 0
    seconds: float = 0.0
    failure: str | None = None
    of: int | None = None
    reset: tuple[str, ...] = ()

    @property
    def is_searched(self) -> bool:
        """Whether the sampler has proposed it."""
        return self.kind == SEARCHED

    @property
    def is_baseline(self) -> bool:
        """Whether it was given beforehand."""
        return not self.is_searched and not self.is_variant

    @property
    def is_variant(self) -> bool:
        """Whether it is a winner's, but for what is asked about."""
        return self.kind in VARIANTS

    def to_attribute(self) -> dict[str, Any]:
        """Return what is kept in the trial's user attributes."""
        return {
            "number": self.number,
            "name": self.name,
            "kind": self.kind,
            "recipe": self.recipe.to_dict(),
            "scores": {task: asdict(score) for task, score in self.scores.items()},
            "audit": {task: asdict(audit) for task, audit in self.audit.items()},
            "items": self.items,
            "seconds": round(self.seconds, 4),
            "failure": self.failure,
            **({"of": self.of, "reset": list(self.reset)} if self.is_variant else {}),
        }


def candidate_of(trial: FrozenTrial) -> Candidate:
    """Read a candidate back from a finished trial of the journal.

    Raises:
        StudyError: If a record is missing or stands twice: items would go to the wrong recipe.
    """
    kept = trial.user_attrs[ATTRIBUTE]
    if kept["number"] != trial.number:
        raise StudyError(
            f"the journal's records must be whole and in order, got number {kept['number']} in "
            f"place {trial.number} ({kept['name']}); restore the journal from a backup"
        )
    return Candidate(
        number=trial.number,
        name=kept["name"],
        kind=kept["kind"],
        recipe=Recipe.from_dict(kept["recipe"]),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        scores={task: TaskScore(**score) for task, score in kept["scores"].items()},
        audit={task: Audit(**audit) for task, audit in kept.get("audit", {}).items()},
        items=kept.get("items", sum(score["n"] for score in kept["scores"].values())),
        seconds=kept["seconds"],
        failure=kept["failure"],
        of=kept.get("of"),
        reset=tuple(kept.get("reset", ())),
    )


def finalists(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the best candidates on the search items, baselines left out; ties by number."""
    scored = [c for c in candidates if c.is_searched and c.value is not None]
    return sorted(scored, key=lambda c: (-(c.value or 0.0), c.number))[:count]
