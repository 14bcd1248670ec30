"""The leaderboard: rows derived from the journal and the item store.

Knows candidates, item scores and paired tests; draws nothing. Imports no torch, so it opens fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from ...evals.scores.fingerprint import fingerprint_of, refuse_incomparable
from ...evals.scores.scores import ItemScores, TaskScore
from ...evals.scores.store import ItemStore
from ...evals.scores.term_columns import METRIC
from ...evals.scores.terms import Term
from ...evals.stats.comparison import Difference
from ...evals.tasks.splits import CONFIRM, GUARD
from ..evaluate.objective import Objective
from ..evaluate.pareto import is_on_front
from ..evaluate.scoring import objective_on_parents_scale
from ..propose.stages import stage_names
from ..storage.candidate import Candidate, candidate_of
from ..storage.journal import Journal, StudyError
from ..storage.read import StudyRecord, read_record
from ..study.budget import is_spent
from ..study.finalists import best_confirmed, completed, finals, search_items
from ..study.variants import Ablation, ablation_of
from .ranking import Comparisons, selection_bias, task_differences


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Attributes:
        candidate: The candidate.
        place: Line on the board from 1, by confirm score, then by search score; None if it failed.
        rank: Rank on the confirm items; rows of equal rank are not significantly different
            (`Comparisons.ranks`). None without confirm scores: search scores are biased, by
            selection or because they are estimates, so they rank nothing.
        search: Objective on the search items; None if it failed.
        confirm: Objective on the confirm items; None if it was not scored there.
        confirm_tasks: Task -> score on the confirm items.
        guard: Guard task -> score.
        guard_to_base: Guard task -> paired difference to the base, positive is better.
        guard_to_parent: The same to the best parent.
        to_parent: Paired difference to the best parent on the confirm items.
        to_uniform: The same to the uniform merge.
        verdict: ``better`` than every baseline, ``worse`` than the best one, ``tie`` if neither is
            shown; ``unconfirmed``, ``raced`` (stopped early), ``baseline`` or ``failed``.
        is_on_front: Whether it is on the Pareto front of the terms on the confirm items; False for
            other objectives.
        unbeaten: The best baseline that a ``tie`` or ``worse`` is not shown to beat.
    """

    candidate: Candidate
    place: int | None = None
    rank: int | None = None
    search: TaskScore | None = None
    confirm: TaskScore | None = None
    confirm_tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    guard: Mapping[str, TaskScore] = field(default_factory=dict)
    guard_to_base: Mapping[str, Difference] = field(default_factory=dict)
    guard_to_parent: Mapping[str, Difference] = field(default_factory=dict)
    to_parent: Difference | None = None
    to_uniform: Difference | None = None
    verdict: str = "unconfirmed"
    is_on_front: bool = False
    unbeaten: str | None = None


@dataclass(frozen=True)
class Leaderboard:
    """All rows of a study, best first.

    Attributes:
        name: The study's name.
        folder: The study's folder.
        objective: Rule and weights.
        rows: Best first; failures last.
        best_parent: Name of the parent that differences refer to, or None.
        finished: Whether the search's budget is spent.
        reroll_scores: Confirm scores of the winner with other masks.
        ablation: Results of the winner's variants; None without an ablation.
        selection_bias: By how much the best search score is expected to be too high.
        fingerprint_parts: Name -> value of what determines item scores; empty for a study of an
            earlier version.
        stages: Names of the search's stages; empty if there is one.
    """

    name: str
    folder: Path
    objective: Objective
    rows: tuple[Row, ...]
    best_parent: str | None
    finished: bool
    reroll_scores: tuple[TaskScore, ...] = ()
    ablation: Ablation | None = None
    selection_bias: float | None = None
    fingerprint_parts: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the objective."""
        return tuple(dict.fromkeys(term.task for term in self.objective.terms))

    @property
    def guards(self) -> tuple[str, ...]:
        """Guard tasks that were scored."""
        return next((tuple(row.guard) for row in self.rows if row.guard), ())

    @property
    def other_terms(self) -> tuple[Term, ...]:
        """Terms of the objective that are not a task's metric."""
        return tuple(term for term in self.objective.terms if term.column != METRIC)

    @property
    def audited(self) -> tuple[str, ...]:
        """Tasks of the objective whose answers are generated."""
        generated = {task for row in self.rows for task in row.candidate.audit}
        return tuple(task for task in self.tasks if task in generated)

    @property
    def searched(self) -> int:
        """Number of searched candidates."""
        return sum(row.candidate.is_searched for row in self.rows)

    @property
    def items(self) -> int:
        """Number of search items scored, summed over all rows."""
        return sum(row.candidate.items for row in self.rows)

    @property
    def in_points(self) -> bool:
        """Whether scores are shares, so that a hundredth of them is a point.

        Estimates do not count: they may be outside of [0, 1].
        """
        signs = self.objective.signs.values()
        if self.other_terms or self.objective.normalize or min(signs, default=1) < 0:
            return False
        complete = [row.candidate.scores.values() for row in self.rows if not row.candidate.raced]
        return all(0 <= s.value <= 1 for own in complete for s in own if not math.isnan(s.value))

    def stage_of(self, row: Row) -> str | None:
        """Return the stage of the search that proposed a row's candidate; None without stages."""
        place = row.candidate.stage
        return None if place is None else self.stages[place]

    @property
    def winner(self) -> Row | None:
        """The best searched candidate; confirmed ones come first."""
        return next((row for row in self.rows if row.place and row.candidate.is_searched), None)

    @property
    def best_baseline(self) -> Row | None:
        """The best baseline."""
        return next((row for row in self.rows if row.place and row.candidate.is_baseline), None)


def read_leaderboard(folder: Path, journal: Journal | None = None) -> Leaderboard:
    """Read the leaderboard of the study in a folder.

    Only baselines and the current finalists get confirm scores: a search that ended early and went
    on may have confirmed others too, and the leaderboard must not depend on that.

    Args:
        folder: The study's folder.
        journal: Its journal, if that has been read already.

    Raises:
        StudyError: If there is no study, or it has not begun, or it is damaged.
    """
    record, store = _record(folder, journal), ItemStore(folder / "items")
    config, identity = record.manifest["config"], record.manifest["identity"]
    _refuse_mixed(folder, store, identity.get("requests"))
    objective = objective_on_parents_scale(Objective(**identity["objective"]), record.candidates)
    complete = partial(completed, store, objective=objective)
    candidates, finalists = finals(record.candidates, config["search"]["finalists"], complete)
    baselines = [c for c in candidates if c.is_baseline and c.value is not None]
    confirmed, guards = (_read(store, baselines + finalists, split) for split in (CONFIRM, GUARD))
    winner = best_confirmed(finalists, confirmed, objective)
    compare = partial(_on_search_items, store, objective)
    ablation = None
    if winner is not None and any(c.of == winner.number for c in candidates):
        ablation = ablation_of(winner, candidates, lambda c: compare(c, winner))
        simplest = [ablation.simplest] if ablation.simplest else []
        confirmed |= _read(store, simplest, CONFIRM)
        guards |= _read(store, simplest, GUARD)
    rows = [_row(c, objective, confirmed.get(c.number), guards.get(c.number)) for c in candidates]
    comparisons = Comparisons.of(confirmed, [c.number for c in baselines], objective)
    rows = _with_front(_with_verdicts(rows, comparisons), confirmed, objective)
    rows = _with_guards(rows, guards)
    parent = _best(rows, "parent")
    return Leaderboard(
        name=config["name"],
        folder=folder,
        objective=objective,
        rows=_ranked(rows, comparisons),
        best_parent=parent.candidate.name if parent else None,
        finished=is_spent(record.manifest, record.candidates),
        reroll_scores=tuple(
            objective.combined(scores)
            for scores in _read(store, ablation.rerolls if ablation else (), CONFIRM).values()
        ),
        ablation=ablation,
        selection_bias=_selection_bias(candidates, finalists, compare),
        fingerprint_parts=identity.get("requests", {}),
        stages=stage_names(record.manifest),
    )


def _record(folder: Path, journal: Journal | None) -> StudyRecord:
    """The record of a study, from its journal or by the fast reader."""
    if journal is None:
        return read_record(folder)
    return StudyRecord(journal.begun, tuple(map(candidate_of, journal.trials)))


def _on_search_items(
    store: ItemStore, objective: Objective, candidate: Candidate, other: Candidate
) -> Difference:
    """Paired difference of two candidates on the search items.

    Raises:
        StudyError: If the store has lost the items of either.
    """
    items = []
    for c in (candidate, other):
        scores = search_items(store, c)
        if scores is None:
            raise StudyError(
                f"{store.folder}: the search items of {c.name} are lost; the search command "
                "scores them again"
            )
        items.append(scores)
    return objective.difference(items[0], items[1])


def _selection_bias(
    candidates: Sequence[Candidate],
    finalists: Sequence[Candidate],
    compare: Callable[[Candidate, Candidate], Difference],
) -> float | None:
    """Selection bias of the best search score; None with fewer than two complete finalists."""
    complete = [c for c in candidates if c.is_searched and not c.raced]
    values = [c.value for c in complete if c.value is not None]
    finalists = [c for c in finalists if not c.raced]
    if len(finalists) < 2:
        return None
    errors = [compare(finalists[0], other).se for other in finalists[1:]]
    return selection_bias(values, fmean(errors) / math.sqrt(2))


def _refuse_mixed(folder: Path, store: ItemStore, parts: object) -> None:
    """Raise StudyError if items have another fingerprint than the study.

    Args:
        folder: The study's folder.
        store: Its items.
        parts: Parts of the fingerprint in the study's manifest; a study of an earlier version has
            none, then the fingerprints only need to be equal.
    """
    fingerprints = sorted(store.fingerprints().items())
    expected = fingerprint_of(parts) if isinstance(parts, dict) else None
    for (trial, split), fingerprint in fingerprints:
        try:
            refuse_incomparable(fingerprints[0][1] if expected is None else expected, fingerprint)
        except ValueError as error:
            raise StudyError(
                f"{folder}: the {split} items of trial {trial} are not of this study: {error}; or "
                f"remove them from {store.folder}: the same search command scores them again"
            ) from error


def _read(store: ItemStore, candidates: Sequence[Candidate], split: str) -> dict[int, ItemScores]:
    items = {c.number: store.read(c.number, split) for c in candidates}
    return {number: scores for number, scores in items.items() if scores is not None}


def _row(
    candidate: Candidate,
    objective: Objective,
    confirm: ItemScores | None,
    guard: ItemScores | None,
) -> Row:
    if candidate.value is None:
        return Row(candidate, verdict="failed")
    unconfirmed = "raced" if candidate.raced else "unconfirmed"
    return Row(
        candidate,
        search=objective.combined(candidate.objective_scores),
        confirm_tasks=confirm.task_scores() if confirm else {},
        guard=guard.task_scores() if guard else {},
        verdict="baseline" if candidate.is_baseline else unconfirmed,
    )


def _with_verdicts(rows: Sequence[Row], comparisons: Comparisons) -> list[Row]:
    """Add scores, differences and verdicts on the confirm items."""
    out = list(rows)
    for number, score in comparisons.scores.items():
        out[number] = replace(rows[number], confirm=score)
    others = [_best(out, kind) for kind in ("parent", "uniform")]
    for number, differences in comparisons.to_baseline.items():
        to_parent, to_uniform = (
            differences.get(other.candidate.number) if other else None for other in others
        )
        row = replace(out[number], to_parent=to_parent, to_uniform=to_uniform)
        if differences and not row.candidate.is_baseline:
            verdict, unbeaten = comparisons.verdict(number)
            name = None if unbeaten is None else rows[unbeaten].candidate.name
            row = replace(row, verdict=verdict, unbeaten=name)
        out[number] = row
    return out


def _with_guards(rows: Sequence[Row], guards: Mapping[int, ItemScores]) -> list[Row]:
    """Add differences on the guard tasks to the base and to the best parent."""
    base = next((row for row in rows if row.candidate.kind == "base"), None)
    to_base, to_parent = (
        task_differences(guards, other.candidate.number) if other else {}
        for other in (base, _best(rows, "parent"))
    )
    out = list(rows)
    for number in guards:
        out[number] = replace(
            rows[number],
            guard_to_base=to_base.get(number, {}),
            guard_to_parent=to_parent.get(number, {}),
        )
    return out


def _with_front(
    rows: list[Row], confirmed: Mapping[int, ItemScores], objective: Objective
) -> list[Row]:
    """Mark the rows on the front, if the objective has several values."""
    numbers = [row.candidate.number for row in rows if row.candidate.number in confirmed]
    if not objective.has_several or not numbers:
        return rows
    by_term = [objective.seen(confirmed[number]).task_scores() for number in numbers]
    values = [objective.values({t: s.value for t, s in scores.items()}) for scores in by_term]
    front = dict(zip(numbers, is_on_front(np.array(values)).tolist(), strict=True))
    return [replace(row, is_on_front=front.get(row.candidate.number, False)) for row in rows]


def _best(rows: Sequence[Row], kind: str) -> Row | None:
    """The confirmed baseline of a kind with the highest confirm score."""
    confirmed = [row for row in rows if row.confirm and row.candidate.kind == kind]
    return max(confirmed, key=_confirm_value, default=None)


def _confirm_value(row: Row) -> float:
    return row.confirm.value if row.confirm else -math.inf


def _ranked(rows: Sequence[Row], comparisons: Comparisons) -> tuple[Row, ...]:
    """Sort rows: those with a score get a place, those with a confirm score a rank."""
    scored = sorted(filter(_has_place, rows), key=_order)
    rest = [row for row in rows if not _has_place(row)]
    ranks = comparisons.ranks([row.candidate.number for row in scored if row.confirm is not None])
    placed = (
        replace(row, place=place, rank=ranks.get(row.candidate.number))
        for place, row in enumerate(scored, 1)
    )
    return (*placed, *rest)


def _has_place(row: Row) -> bool:
    """Whether a row has a score and is no unconfirmed variant of the winner."""
    return row.search is not None and (row.confirm is not None or not row.candidate.is_variant)


def _order(row: Row) -> tuple[float, float, int]:
    search = row.search.value if row.search else -math.inf
    return -_confirm_value(row), -search, row.candidate.number
