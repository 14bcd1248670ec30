"""The leaderboard: rows derived from journal and item store, and what may be said of them.

Knows candidates, item scores and paired tests; draws nothing. Imports no torch, so that a
leaderboard opens at once.
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
        candidate: What was scored.
        place: Line on the board from 1, by confirm score, then by search score; None if it failed.
        rank: Of a confirmed row: 1 and how many stand before the first of those with which it is
            tied (`Comparisons.ranks`). None where nothing is confirmed: search scores of those
            that were chosen by them, or stopped in a race, put nobody above anybody.
        search: Objective on the search items; None if it failed.
        confirm: The same on the confirm items; None where it was not scored there.
        confirm_tasks: Task -> score on the confirm items.
        guard: Guard task -> score.
        guard_to_base: Guard task -> paired difference to the base, positive is better.
        guard_to_parent: The same to the best parent.
        to_parent: Paired difference to the best parent on the confirm items.
        to_uniform: The same to the uniform merge.
        verdict: ``better`` than every baseline, ``worse`` than the best of them, ``tie`` if neither
            is shown; ``unconfirmed``, ``raced`` (stopped early), ``baseline`` or ``failed``.
        is_on_front: Whether no other row is as good in every term on the confirm items and better
            in one; of several values.
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
        name: Of the study.
        folder: Where it lies.
        objective: Rule and weights.
        rows: Best first; failures last.
        best_parent: Name of the parent that the differences refer to, or None.
        finished: Whether the search has spent what it was given.
        reroll_scores: Confirm scores of the winner under other masks.
        ablation: What the winner's variants say; None where it was not taken apart.
        selection_bias: By how much the best search score is expected to be too high.
        fingerprint_parts: What decides the scores of items, by name; empty of a study by an earlier
            version.
        stages: Names of the search's stages, by which a candidate's place is told.
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
        """Names of the tasks that make the objective."""
        return tuple(dict.fromkeys(term.task for term in self.objective.terms))

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the guard tasks that were scored."""
        return next((tuple(row.guard) for row in self.rows if row.guard), ())

    @property
    def other_terms(self) -> tuple[Term, ...]:
        """Terms of the objective that are no task's metric."""
        return tuple(term for term in self.objective.terms if term.column != METRIC)

    @property
    def audited(self) -> tuple[str, ...]:
        """Tasks of the objective whose answers are generated."""
        found = {task for row in self.rows for task in row.candidate.audit}
        return tuple(task for task in self.tasks if task in found)

    @property
    def searched(self) -> int:
        """Number of searched candidates."""
        return sum(row.candidate.is_searched for row in self.rows)

    @property
    def items(self) -> int:
        """Number of search items that were scored for all rows."""
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
        """The best searched candidate: confirmed ones first."""
        return next((row for row in self.rows if row.place and row.candidate.is_searched), None)

    @property
    def best_baseline(self) -> Row | None:
        """The best of the null baselines."""
        return next((row for row in self.rows if row.place and row.candidate.is_baseline), None)


def read_leaderboard(folder: Path, journal: Journal | None = None) -> Leaderboard:
    """Derive the leaderboard of the study in a folder.

    Confirm scores count for the baselines and for today's finalists alone: after an early end
    others may have been confirmed too, and who is on the board must not depend on that.

    Args:
        folder: The study's.
        journal: Its journal, where that has been read already.

    Raises:
        StudyError: If there is no study, or it has not begun, or it is damaged.
    """
    record, store = _record(folder, journal), ItemStore(folder / "items")
    config, identity = record.manifest["config"], record.manifest["identity"]
    _refuse_mixed(folder, store, identity.get("requests"))
    objective = objective_on_parents_scale(Objective(**identity["objective"]), record.candidates)
    complete = partial(completed, store, objective=objective)
    candidates, chosen = finals(record.candidates, config["search"]["finalists"], complete)
    baselines = [c for c in candidates if c.is_baseline and c.value is not None]
    confirmable = baselines + chosen
    confirmed, guards = (_read(store, confirmable, split) for split in (CONFIRM, GUARD))
    winner = best_confirmed(chosen, confirmed, objective)
    compare = partial(_on_search_items, store, objective)
    ablation = None
    if winner is not None and any(c.of == winner.number for c in candidates):
        ablation = ablation_of(winner, candidates, lambda c: compare(c, winner))
        simplest = [ablation.simplest] if ablation.simplest else []
        confirmed |= _read(store, simplest, CONFIRM)
        guards |= _read(store, simplest, GUARD)
    rows = [_row(c, objective, confirmed.get(c.number), guards.get(c.number)) for c in candidates]
    found = Comparisons.of(confirmed, [c.number for c in baselines], objective)
    rows = _with_front(_compared(rows, found), confirmed, objective)
    rows = _guarded(rows, guards)
    parent = _best(rows, "parent")
    return Leaderboard(
        name=config["name"],
        folder=folder,
        objective=objective,
        rows=_ranked(rows, found),
        best_parent=parent.candidate.name if parent else None,
        finished=is_spent(record.manifest, record.candidates),
        reroll_scores=tuple(
            objective.combined(scores)
            for scores in _read(store, ablation.rerolls if ablation else (), CONFIRM).values()
        ),
        ablation=ablation,
        selection_bias=_selection_bias(candidates, chosen, compare),
        fingerprint_parts=identity.get("requests", {}),
        stages=stage_names(record.manifest),
    )


def _record(folder: Path, journal: Journal | None) -> StudyRecord:
    """What a journal says: one that was read already, or read for what a leaderboard shows."""
    if journal is None:
        return read_record(folder)
    return StudyRecord(journal.begun, tuple(map(candidate_of, journal.trials)))


def _on_search_items(
    store: ItemStore, objective: Objective, candidate: Candidate, other: Candidate
) -> Difference:
    """Paired difference of two candidates on the search items.

    Raises:
        StudyError: If the store has lost the items of one.
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
    chosen: Sequence[Candidate],
    compare: Callable[[Candidate, Candidate], Difference],
) -> float | None:
    """Expected luck in the best search score; None where there is nothing to tell it by."""
    whole = [c for c in candidates if c.is_searched and c.value is not None and not c.raced]
    values = [c.value for c in whole if c.value is not None]
    chosen = [c for c in chosen if not c.raced]
    if len(chosen) < 2:
        return None
    errors = [compare(chosen[0], other).se for other in chosen[1:]]
    return selection_bias(values, fmean(errors) / math.sqrt(2))


def _refuse_mixed(folder: Path, store: ItemStore, known: object) -> None:
    """Raise StudyError if items were scored otherwise than the study's record says.

    Args:
        folder: The study's.
        store: Its items.
        known: Parts of the scorer's fingerprint in the study's manifest; a study of an earlier
            version has none, then the items need only agree among themselves.
    """
    found = sorted(store.fingerprints().items())
    own = fingerprint_of(known) if isinstance(known, dict) else None
    for (trial, split), fingerprint in found:
        try:
            refuse_incomparable(found[0][1] if own is None else own, fingerprint)
        except ValueError as error:
            raise StudyError(
                f"{folder}: the {split} items of trial {trial} are not of this study: {error}; or "
                f"remove them from {store.folder}: the same search command scores them again"
            ) from error


def _read(store: ItemStore, candidates: Sequence[Candidate], split: str) -> dict[int, ItemScores]:
    read = {c.number: store.read(c.number, split) for c in candidates}
    return {number: scores for number, scores in read.items() if scores is not None}


def _row(
    candidate: Candidate,
    objective: Objective,
    confirm: ItemScores | None,
    guard: ItemScores | None,
) -> Row:
    if candidate.value is None:
        return Row(candidate, verdict="failed")
    return Row(
        candidate,
        search=objective.combined(candidate.objective_scores),
        confirm_tasks=confirm.task_scores() if confirm else {},
        guard=guard.task_scores() if guard else {},
        verdict="baseline" if candidate.is_baseline else _unjudged(candidate),
    )


def _unjudged(candidate: Candidate) -> str:
    return "raced" if candidate.raced else "unconfirmed"


def _compared(rows: Sequence[Row], found: Comparisons) -> list[Row]:
    """Give the confirmed rows their scores and differences, and the searched ones a verdict."""
    out = list(rows)
    for number, score in found.scores.items():
        out[number] = replace(rows[number], confirm=score)
    others = {kind: _best(out, kind) for kind in ("parent", "uniform")}
    for number, mine in found.to_baseline.items():
        to_parent, to_uniform = (
            mine.get(other.candidate.number) if other else None for other in others.values()
        )
        row = replace(out[number], to_parent=to_parent, to_uniform=to_uniform)
        if mine and not row.candidate.is_baseline:
            verdict, unbeaten = found.verdict(number)
            name = None if unbeaten is None else rows[unbeaten].candidate.name
            row = replace(row, verdict=verdict, unbeaten=name)
        out[number] = row
    return out


def _guarded(rows: Sequence[Row], guards: Mapping[int, ItemScores]) -> list[Row]:
    """Say what is won and lost on the guard tasks against the base, and the best parent."""
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
    """Mark the rows that no other beats, where the objective has several values."""
    own = [row.candidate.number for row in rows if row.candidate.number in confirmed]
    if not objective.has_several or not own:
        return rows
    by_term = [objective.seen(confirmed[number]).task_scores() for number in own]
    values = [objective.values({t: s.value for t, s in found.items()}) for found in by_term]
    front = dict(zip(own, is_on_front(np.array(values)).tolist(), strict=True))
    return [replace(row, is_on_front=front.get(row.candidate.number, False)) for row in rows]


def _best(rows: Sequence[Row], kind: str | None) -> Row | None:
    """The confirmed baseline of a kind, or of any, with the highest confirm score."""
    found = [
        row
        for row in rows
        if row.confirm and row.candidate.is_baseline and kind in (None, row.candidate.kind)
    ]
    return max(found, key=_confirm_value) if found else None


def _confirm_value(row: Row) -> float:
    return row.confirm.value if row.confirm else -math.inf


def _ranked(rows: Sequence[Row], found: Comparisons) -> tuple[Row, ...]:
    """Put rows in order: places for all that have a score, ranks for those that are confirmed."""
    is_placed = [row.search is not None and not _is_hidden(row) for row in rows]
    scored = sorted((row for row, is_in in zip(rows, is_placed, strict=True) if is_in), key=_order)
    rest = [row for row, is_in in zip(rows, is_placed, strict=True) if not is_in]
    numbers = [row.candidate.number for row in scored if row.confirm is not None]
    ranks = found.ranks(numbers)
    placed = (
        replace(row, place=place, rank=ranks.get(row.candidate.number))
        for place, row in enumerate(scored, 1)
    )
    return (*placed, *rest)


def _is_hidden(row: Row) -> bool:
    """Whether a row is a winner's variant that only tells something of the winner."""
    return row.candidate.is_variant and row.confirm is None


def _order(row: Row) -> tuple[float, float, int]:
    search = row.search.value if row.search else -math.inf
    return -_confirm_value(row), -search, row.candidate.number
