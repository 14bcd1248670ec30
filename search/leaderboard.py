"""The leaderboard: rows derived from journal and item store, and what may be said of them.

Knows candidates, item scores and paired tests; draws nothing. Imports no torch, so that a
leaderboard opens at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..evals.scores import Difference, ItemScores, TaskScore, paired_difference
from ..evals.splits import CONFIRM, GUARD
from ..evals.store import ItemStore
from .candidate import Candidate, candidate_of
from .journal import Journal
from .objective import Objective

ALPHA = 0.05
"""Two-sided level of a verdict, after Holm's correction over the finalists."""


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Attributes:
        candidate: What was scored.
        rank: From 1, by confirm score, then by search score; None if it failed.
        search: Objective on the search items; None if it failed.
        confirm: The same on the confirm items; None where it was not scored there.
        confirm_tasks: Task -> score on the confirm items.
        guard: Guard task -> score.
        to_parent: Paired difference to the best parent on the confirm items.
        to_uniform: The same to the uniform merge.
        verdict: ``better`` than every baseline, ``tie``, ``worse`` than the best of them,
            ``unconfirmed``, ``baseline`` or ``failed``.
    """

    candidate: Candidate
    rank: int | None = None
    search: TaskScore | None = None
    confirm: TaskScore | None = None
    confirm_tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    guard: Mapping[str, TaskScore] = field(default_factory=dict)
    to_parent: Difference | None = None
    to_uniform: Difference | None = None
    verdict: str = "unconfirmed"


@dataclass(frozen=True)
class Leaderboard:
    """All rows of a study, best first.

    Attributes:
        name: Of the study.
        folder: Where it lies.
        tasks: Names of the tasks that make the objective.
        objective: Rule and weights.
        rows: Best first; failures last.
        best_parent: Name of the parent that the differences refer to, or None.
        finished: Whether all trials that were asked for are there.
    """

    name: str
    folder: Path
    tasks: tuple[str, ...]
    objective: Objective
    rows: tuple[Row, ...]
    best_parent: str | None
    finished: bool

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the guard tasks that were scored."""
        return next((tuple(row.guard) for row in self.rows if row.guard), ())

    @property
    def winner(self) -> Row | None:
        """The best searched candidate: confirmed ones first."""
        return next((row for row in self.rows if row.rank and not row.candidate.is_baseline), None)

    @property
    def best_baseline(self) -> Row | None:
        """The best of the null baselines."""
        return next((row for row in self.rows if row.rank and row.candidate.is_baseline), None)


def read_leaderboard(folder: Path) -> Leaderboard:
    """Derive the leaderboard of the study in a folder.

    Raises:
        StudyError: If there is no study, or it is damaged.
    """
    journal, store = Journal(folder), ItemStore(folder / "items")
    manifest = journal.manifest
    objective = Objective(
        manifest["objective"]["rule"],
        manifest["objective"]["weights"],
        manifest["objective"]["signs"],
    )
    candidates = [candidate_of(trial) for trial in journal.trials]
    confirmed = {c.number: s for c in candidates if (s := store.read(c.number, CONFIRM))}
    guards = {c.number: s for c in candidates if (s := store.read(c.number, GUARD))}
    rows = [_row(c, objective, confirmed.get(c.number), guards.get(c.number)) for c in candidates]
    parent, rows = _with_differences(rows, confirmed, objective)
    rows = _with_verdicts(rows, confirmed, objective)
    searched = sum(not c.is_baseline for c in candidates)
    return Leaderboard(
        name=manifest["config"]["name"],
        folder=folder,
        tasks=tuple(objective.weights),
        objective=objective,
        rows=_ranked(rows),
        best_parent=parent,
        finished=searched >= manifest["config"]["search"]["trials"],
    )


def combined(scores: Mapping[str, TaskScore], objective: Objective) -> TaskScore:
    """Return the objective of several tasks, with its standard error."""
    value = objective.value({task: scores[task].value for task in objective.weights})
    n = sum(scores[task].n for task in objective.weights)
    return TaskScore(value, objective.standard_error(scores), n)


def _row(
    candidate: Candidate,
    objective: Objective,
    confirm: ItemScores | None,
    guard: ItemScores | None,
) -> Row:
    if candidate.value is None:
        return Row(candidate, verdict="failed")
    tasks = confirm.task_scores() if confirm else {}
    return Row(
        candidate,
        search=combined(candidate.scores, objective),
        confirm=combined(tasks, objective) if confirm else None,
        confirm_tasks=tasks,
        guard=guard.task_scores() if guard else {},
        verdict="baseline" if candidate.is_baseline else "unconfirmed",
    )


def _with_differences(
    rows: Sequence[Row], confirmed: Mapping[int, ItemScores], objective: Objective
) -> tuple[str | None, list[Row]]:
    """Add the paired differences to the best parent and to the uniform merge."""
    parent = _best([row for row in rows if row.candidate.kind == "parent"])
    uniform = _best([row for row in rows if row.candidate.kind == "uniform"])

    def difference(row: Row, other: Row | None) -> Difference | None:
        if other is None or row is other or row.confirm is None:
            return None
        mine, theirs = confirmed[row.candidate.number], confirmed[other.candidate.number]
        return paired_difference(mine, theirs, objective.weights)

    compared = [
        replace(row, to_parent=difference(row, parent), to_uniform=difference(row, uniform))
        for row in rows
    ]
    return parent.candidate.name if parent else None, _holm_corrected(compared)


def _best(rows: Sequence[Row]) -> Row | None:
    confirmed = [row for row in rows if row.confirm]
    return max(confirmed, key=_confirm_value) if confirmed else None


def _confirm_value(row: Row) -> float:
    return row.confirm.value if row.confirm else -math.inf


def _holm_corrected(rows: list[Row]) -> list[Row]:
    """Correct the p-values of the searched candidates for their number; baselines stay."""
    for name in ("to_parent", "to_uniform"):
        tested = [
            (index, difference)
            for index, row in enumerate(rows)
            if not row.candidate.is_baseline and (difference := getattr(row, name))
        ]
        for (index, difference), p in zip(tested, holm([d.p for _, d in tested]), strict=True):
            rows[index] = replace(rows[index], **{name: replace(difference, p=p)})
    return rows


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


def _with_verdicts(
    rows: Sequence[Row], confirmed: Mapping[int, ItemScores], objective: Objective
) -> list[Row]:
    """Judge every confirmed candidate against every baseline."""
    baselines = [row for row in rows if row.candidate.is_baseline and row.confirm]
    judged = [i for i, row in enumerate(rows) if row.verdict == "unconfirmed" and row.confirm]
    if not baselines:
        return list(rows)
    best = max(baselines, key=_confirm_value)
    against = {
        index: {
            b.candidate.number: paired_difference(
                confirmed[rows[index].candidate.number],
                confirmed[b.candidate.number],
                objective.weights,
            )
            for b in baselines
        }
        for index in judged
    }
    corrected = {
        b.candidate.number: dict(
            zip(judged, holm([against[i][b.candidate.number].p for i in judged]), strict=True)
        )
        for b in baselines
    }
    out = list(rows)
    for index in judged:
        verdict = _verdict(index, against[index], corrected, best.candidate.number)
        out[index] = replace(rows[index], verdict=verdict)
    return out


def _verdict(
    index: int,
    against: Mapping[int, Difference],
    corrected: Mapping[int, Mapping[int, float]],
    best: int,
) -> str:
    significant = {number: corrected[number][index] < ALPHA for number in against}
    if all(significant[number] and against[number].value > 0 for number in against):
        return "better"
    if significant[best] and against[best].value < 0:
        return "worse"
    return "tie"


def _ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    scored = sorted((row for row in rows if row.search), key=_order)
    failed = [row for row in rows if not row.search]
    return (*(replace(row, rank=rank) for rank, row in enumerate(scored, 1)), *failed)


def _order(row: Row) -> tuple[float, float, int]:
    search = row.search.value if row.search else -math.inf
    return -_confirm_value(row), -search, row.candidate.number
