"""A candidate: a recipe and its scores, one row of a study.

Knows how a candidate is written as the user attribute of an Optuna trial, and how it is read back.
The journal is a study's only record: leaderboard and export are derived from what is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, PlainSerializer, TypeAdapter

from ...evals.scores.audit import Audit
from ...evals.scores.scores import TaskScore
from ...merge.recipe.recipe import Recipe
from .journal import StudyError

ATTRIBUTE = "candidate"
"""Name of the user attribute."""
SEARCHED = "candidate"
"""Kind of the candidates that a sampler proposes."""
REROLL, RESET, SIMPLIFIED = VARIANTS = ("reroll", "reset", "simplified")
"""Kinds of ablation variants (study/variants.py)."""
_OPTIONAL = ("elapsed", "terms", "stage", "origin")
"""Fields that are written only where they are set."""

_UNREAD = Field(default_factory=lambda: None, validation_alias="not in the journal")
"""A field that pydantic writes but does not read."""
_ROUNDED = PlainSerializer(lambda seconds: None if seconds is None else round(seconds, 4))


@dataclass(frozen=True)
class Candidate:
    """One row of a study; its fields are the keys of the journal's user attribute.

    Attributes:
        number: Trial number in the journal, from 0.
        name: Baseline's name as in ``baselines``, ``candidate NUMBER``, or the variant's name.
        kind: Baseline's kind, ``candidate``, or one of VARIANTS.
        recipe: Everything that determines the merge. Read from disk it is decoded on first use:
            few of thousands are looked at, and decoding takes longer than all the rest.
        value: Objective on the search items; None if the candidate failed.
        scores: Task name -> score on the search items.
        audit: Task name -> audit of its generated answers; no entry for other tasks.
        items: Number of items it was scored on.
        raced: Whether racing stopped it before all items; value and scores are then estimates.
        seconds: Time spent on loading and scoring.
        elapsed: Searched candidates: seconds of search time since the previous one was kept,
            however many are scored in parallel; None in studies that did not record it.
        failure: Reason why there is no value, or None.
        terms: Objective term -> score, for terms that are not a task's metric.
        of: Variants: the winner's number.
        reset: Variants: the groups of genes set as in the uniform merge.
        stage: Searched candidates: index of the search stage; None in a search of one stage.
        origin: Name of the warm-start candidate it was copied from, or None.
        values: Values of a multi-objective search, as the sampler got them; stored with the trial.
    """

    number: int
    name: str
    kind: str
    recipe: Annotated[Recipe, _UNREAD, PlainSerializer(Recipe.to_dict)]
    value: float | None = None
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    audit: Mapping[str, Audit] = field(default_factory=dict)
    items: int = 0
    raced: bool = False
    seconds: Annotated[float, _ROUNDED] = 0.0
    elapsed: Annotated[float | None, _ROUNDED] = None
    failure: str | None = None
    terms: Mapping[str, TaskScore] = field(default_factory=dict)
    of: int | None = None
    reset: tuple[str, ...] = ()
    stage: int | None = None
    origin: str | None = None
    values: tuple[float, ...] = ()

    def __getattr__(self, name: Literal["recipe"]) -> Recipe:
        """Decode the recipe of a candidate that was read from disk."""
        if name != "recipe" or "_decode" not in vars(self):
            raise AttributeError(name)
        recipe = vars(self)["recipe"] = vars(self)["_decode"]()
        return recipe

    @property
    def objective_scores(self) -> dict[str, TaskScore]:
        """Scores of everything that an objective may use, by term."""
        return {**self.scores, **self.terms}

    @property
    def sampler_values(self) -> tuple[float, ...] | None:
        """Value or values for the sampler; None if the candidate failed."""
        return None if self.value is None else self.values or (self.value,)

    @property
    def is_searched(self) -> bool:
        """Whether a sampler proposed it."""
        return self.kind == SEARCHED

    @property
    def is_baseline(self) -> bool:
        """Whether it is a baseline."""
        return not self.is_searched and not self.is_variant

    @property
    def is_variant(self) -> bool:
        """Whether it is an ablation variant of a winner."""
        return self.kind in VARIANTS

    def to_attribute(self) -> dict[str, Any]:
        """Return the user attribute of the candidate's trial."""
        left_out = {"values"} if self.values else {"values", "value"}
        if not self.is_variant:
            left_out |= {"of", "reset"}
        left_out |= {key for key in _OPTIONAL if getattr(self, key) in (None, {})}
        vars(self)["recipe"] = self.recipe  # decoded, and where pydantic reads it
        return CANDIDATE.dump_python(self, exclude=left_out)


CANDIDATE = TypeAdapter(Candidate)


def candidate_of(trial: FrozenTrial) -> Candidate:
    """Read a candidate back from a finished trial of the journal; raises as `with_trial`."""
    attribute = trial.user_attrs[ATTRIBUTE]
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return with_trial(
        CANDIDATE.validate_python(attribute),
        trial.number,
        values or (),
        lambda: Recipe.from_dict(attribute["recipe"]),
    )


def with_trial(
    candidate: Candidate, place: int, values: Sequence[float], decode: Callable[[], Recipe]
) -> Candidate:
    """Complete a candidate that was just validated, in place, with what its trial says.

    Args:
        candidate: As its user attribute has it, without a recipe.
        place: Number of the trial in the journal.
        values: Values of the trial, as the sampler got them; none if the candidate failed.
        decode: Returns its recipe; called on first use.

    Raises:
        StudyError: If a record is missing or doubled: items would go to the wrong recipe.
    """
    if candidate.number != place:
        raise StudyError(
            f"the journal's records must be complete and in order, got number {candidate.number} "
            f"in place {place} ({candidate.name}); restore the journal from a backup"
        )
    state = vars(candidate)
    del state["recipe"]
    state["_decode"] = decode
    if len(values) == 1:
        state["value"] = values[0]
    else:
        state["values"] = tuple(values)
    if not candidate.items:  # studies before racing did not record it
        state["items"] = sum(score.n for score in candidate.scores.values())
    return candidate
