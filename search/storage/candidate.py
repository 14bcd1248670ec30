"""A candidate: a recipe and its scores, as the study keeps it.

Knows how a candidate is written into an Optuna trial and read back: user attributes and values.
The study's journal is the only record; leaderboard and export are derived from what is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Self, TypeVar, overload

from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from ...evals.scores.audit import Audit
from ...evals.scores.scores import TaskScore
from ...merge.recipe.recipe import Recipe
from .journal import StudyError

ATTRIBUTE = "candidate"
SEARCHED = "candidate"
"""Kind of what the sampler proposes."""
REROLL, RESET, SIMPLIFIED = VARIANTS = ("reroll", "reset", "simplified")
"""Kinds of what a winner is taken apart into (dissection.py)."""
T = TypeVar("T")


class Lazy(Generic[T]):
    """A dataclass field that holds a value, or what makes it: then the first look does, once.

    As ``field: Lazy[T] = Lazy()``. The field takes a ``T`` or a function without arguments that
    returns one, is always read as a ``T``, and has no default.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn where in its owner the value is kept."""
        self._made, self._maker = f"_{name}", f"_make_{name}"

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: object, kind: type) -> T: ...
    def __get__(self, owner: object | None, kind: type) -> T | Self:
        """Return the value; AttributeError of the class itself says that there is no default."""
        if owner is None:
            raise AttributeError(self._made)
        held = vars(owner)
        if self._made not in held:
            held[self._made] = held.pop(self._maker)()
        return held[self._made]

    def __set__(self, owner: object, value: T | Callable[[], T]) -> None:
        """Keep a value, or what makes it."""
        vars(owner)[self._maker if callable(value) else self._made] = value


@dataclass(frozen=True)
class Candidate:
    """One row of the study.

    Attributes:
        number: Trial number in the journal, from 0.
        name: Of a baseline as in ``baselines``; of a candidate ``candidate NUMBER``.
        kind: A baseline's kind, ``candidate``, or one of VARIANTS.
        recipe: All that determines the merge. Of thousands few are looked at, and decoding takes
            longer than all else: it may be given as what decodes it.
        value: Objective on the search items; None if the candidate failed.
        scores: Task name -> score on the search items.
        audit: Task name -> how its generated answers came about; no entry for other tasks.
        values: What the sampler was told, where that is several values.
        terms: Term of the objective -> its score there, of those that are no task's own score.
        items: How many items it was scored on.
        raced: Whether it was stopped before it had met all items; value and scores are estimates.
        seconds: Spent on loading and scoring.
        elapsed: Of a searched one, seconds of the search since the one before it was kept, however
            many are scored side by side; None where that was not kept.
        failure: Why there is no value, or None.
        of: Of a variant, the winner's number.
        reset: Of a variant, the groups of genes that are as in the uniform merge.
        stage: Of a searched one, the place of its stage in the search's; None where there is one.
        origin: Whose recipe of a former study it is, or None.
    """

    number: int
    name: str
    kind: str
    recipe: Lazy[Recipe] = Lazy()
    value: float | None = None
    scores: Mapping[str, TaskScore] = field(default_factory=dict)
    audit: Mapping[str, Audit] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    terms: Mapping[str, TaskScore] = field(default_factory=dict)
    items: int = 0
    raced: bool = False
    seconds: float = 0.0
    elapsed: float | None = None
    failure: str | None = None
    of: int | None = None
    reset: tuple[str, ...] = ()
    stage: int | None = None
    origin: str | None = None

    @property
    def objective_scores(self) -> dict[str, TaskScore]:
        """Scores of all that an objective may look at, by term."""
        return {**self.scores, **self.terms}

    @property
    def told(self) -> tuple[float, ...] | None:
        """What a sampler hears: one value or several; None if the candidate failed."""
        return None if self.value is None else self.values or (self.value,)

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
            "raced": self.raced,
            "seconds": round(self.seconds, 4),
            **({} if self.elapsed is None else {"elapsed": round(self.elapsed, 4)}),
            "failure": self.failure,
            **({"value": self.value} if self.values else {}),
            **(
                {"terms": {t: asdict(score) for t, score in self.terms.items()}}
                if self.terms
                else {}
            ),
            **({"of": self.of, "reset": list(self.reset)} if self.is_variant else {}),
            **({} if self.stage is None else {"stage": self.stage}),
            **({} if self.origin is None else {"origin": self.origin}),
        }


@dataclass
class Kept:
    """A candidate as the user attribute of a trial has it; what older versions did not keep is
    optional. See `Candidate` for what each is.
    """

    number: int
    name: str
    kind: str
    scores: dict[str, TaskScore]
    seconds: float
    failure: str | None
    audit: dict[str, Audit] = field(default_factory=dict)
    value: float | None = None
    terms: dict[str, TaskScore] = field(default_factory=dict)
    items: int | None = None
    raced: bool = False
    elapsed: float | None = None
    of: int | None = None
    reset: tuple[str, ...] = ()
    stage: int | None = None
    origin: str | None = None

    def candidate(
        self, place: int, values: Sequence[float], recipe: Callable[[], Recipe]
    ) -> Candidate:
        """The candidate of a trial.

        Args:
            place: The trial's number in the journal.
            values: What the sampler was told; none if it failed.
            recipe: Decodes its recipe.

        Raises:
            StudyError: If a record is missing or stands twice: items would go to the wrong recipe.
        """
        if self.number != place:
            raise StudyError(
                f"the journal's records must be whole and in order, got number {self.number} in "
                f"place {place} ({self.name}); restore the journal from a backup"
            )
        scored = sum(score.n for score in self.scores.values())
        return Candidate(
            number=self.number,
            name=self.name,
            kind=self.kind,
            recipe=recipe,
            value=values[0] if len(values) == 1 else self.value,
            values=tuple(values) if len(values) > 1 else (),
            scores=self.scores,
            terms=self.terms,
            audit=self.audit,
            items=scored if self.items is None else self.items,
            raced=self.raced,
            seconds=self.seconds,
            elapsed=self.elapsed,
            failure=self.failure,
            of=self.of,
            reset=self.reset,
            stage=self.stage,
            origin=self.origin,
        )


_KEPT = TypeAdapter(Kept)


def candidate_of(trial: FrozenTrial) -> Candidate:
    """Read a candidate back from a finished trial of the journal; raises as `Kept.candidate`."""
    kept = trial.user_attrs[ATTRIBUTE]
    values = tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else ()
    recipe = kept["recipe"]
    return _KEPT.validate_python(kept).candidate(
        trial.number, values, lambda: Recipe.from_dict(recipe)
    )
