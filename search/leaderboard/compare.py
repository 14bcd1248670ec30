"""One candidate or two in detail: recipe by layer and parent, scores, items won and lost.

Knows rows of a leaderboard and item scores; draws rich tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from ...evals.scores.fingerprint import refuse_incomparable
from ...evals.scores.scores import ItemScores
from ...evals.stats.comparison import Difference
from ...merge.recipe.groups import LayerGroup
from ...merge.recipe.recipe import Coefficients, Recipe
from ..evaluate.objective import Objective, task_alone
from ..format import p_value, score, signed
from ..storage.journal import JOURNAL, StudyError
from .board import Leaderboard, Row

WINNER = "winner"


def find_row(board: Leaderboard, word: str) -> Row:
    """Return the row of a trial number, a candidate's name, or ``winner``.

    Raises:
        StudyError: If there is no such row.
    """
    if word == WINNER and board.winner is not None:
        return board.winner
    for row in board.rows:
        if word in (str(row.candidate.number), row.candidate.name):
            return row
    raise StudyError(
        f"{board.folder}: there is no trial `{word}`; give a number from 0 to "
        f"{len(board.rows) - 1}, a name on the leaderboard, or `{WINNER}`"
    )


def study_and_trial(text: str) -> tuple[Path, str]:
    """Return study and trial of ``STUDY:TRIAL``; of a study's folder, its winner.

    A candidate's name may contain colons, as ``parent:code`` does: the first study counts.

    Raises:
        StudyError: If no part of it is a study.
    """
    if (Path(text) / JOURNAL).is_file():
        return Path(text), WINNER
    for place, letter in enumerate(text):
        folder, word = Path(text[:place]), text[place + 1 :]
        if letter == ":" and word and (folder / JOURNAL).is_file():
            return folder, word
    raise StudyError(
        f"`{text}` is neither a study's folder nor STUDY:TRIAL; give `compare STUDY A B` or "
        "`compare STUDY:TRIAL STUDY:TRIAL`"
    )


def shared_items(a: ItemScores, b: ItemScores, *, all_items: bool) -> tuple[ItemScores, ItemScores]:
    """Return the scores of two models on the items they share.

    Args:
        a: Scores of the first model.
        b: Scores of the second.
        all_items: Whether all their items must be the same.

    Raises:
        StudyError: If their fingerprints differ, or they share no item.
    """
    if a.tasks != b.tasks:
        raise StudyError(
            f"two candidates must have been scored on the same tasks, got {', '.join(a.tasks)} "
            f"and {', '.join(b.tasks)}; compare studies of the same tasks"
        )
    try:
        refuse_incomparable(a.fingerprint, b.fingerprint, "two candidates")
    except ValueError as error:
        raise StudyError(str(error)) from error
    keys = np.intersect1d(a.keys, b.keys)
    if not keys.size or (all_items and not a.n == b.n == keys.size):
        raise StudyError(
            f"two candidates must have been scored on the same items, got {a.n} and {b.n} of which "
            f"{keys.size} are the same; compare studies with the same `splits`"
        )
    ours, theirs = (scores.subset(np.flatnonzero(np.isin(scores.keys, keys))) for scores in (a, b))
    return ours, theirs


def recipe_table(recipe: Recipe) -> Table:
    """Return a recipe's coefficients: a line per layer, a column per parent and module kind."""
    groups = {LayerGroup.from_name(name): c for name, c in recipe.coefficients.items()}
    kinds = list(dict.fromkeys(group.kind for group in groups if group.layer is not None))
    layers = sorted({group.layer for group in groups if group.layer is not None})
    table = _table("recipe", ["layer"])
    for parent in recipe.parents:
        for kind in kinds:
            table.add_column(f"{parent} {kind}", justify="right")
    for layer in layers:
        cells = [
            _cell(groups.get(LayerGroup(layer, kind)), index)
            for index in range(len(recipe.parents))
            for kind in kinds
        ]
        table.add_row(str(layer), *cells)
    for group, coefficients in groups.items():
        if group.layer is None:
            cells = [
                _cell(coefficients, index) if kind == kinds[0] else ""
                for index in range(len(recipe.parents))
                for kind in kinds
            ]
            table.add_row(group.name, *cells)
    return table


def _cell(coefficients: Coefficients | None, parent: int) -> str:
    """A weight, and a drop rate where there is one."""
    if coefficients is None:
        return "-"
    rate = coefficients.drop_rates[parent]
    method = f" {coefficients.method}" if coefficients.method else ""
    drop = f" drop {rate:.2f}" if rate else ""
    return f"{coefficients.weights[parent]:.3f}{drop}{method}"


def recipe_difference(a: Recipe, b: Recipe, names: Sequence[str]) -> Table:
    """Return the mean weight and drop rate per parent of two recipes, and the largest gap."""
    table = _table("recipes: mean weight (and drop rate) over layer groups", ["parent", *names])
    table.add_column("largest difference", justify="right")
    for parent in dict.fromkeys((*a.parents, *b.parents)):
        first, second = (_of_parent(recipe, parent) for recipe in (a, b))
        gaps = {group: first[group][0] - second[group][0] for group in first if group in second}
        largest = max(gaps, key=lambda group: abs(gaps[group]), default=None)
        gap = "-" if largest is None else f"{gaps[largest]:+.3f} ({largest})"
        table.add_row(parent, _means(first), _means(second), gap)
    words = [f"{recipe.method}, lambda {recipe.lambda_:g}" for recipe in (a, b)]
    table.add_row("method", *words, "" if words[0] == words[1] else "differs")
    return table


def _of_parent(recipe: Recipe, parent: str) -> dict[str, tuple[float, float]]:
    """Layer group -> weight and drop rate of a parent."""
    if parent not in recipe.parents:
        return {}
    index = recipe.parents.index(parent)
    return {g: (c.weights[index], c.drop_rates[index]) for g, c in recipe.coefficients.items()}


def _means(coefficients: Mapping[str, tuple[float, float]]) -> str:
    if not coefficients:
        return "-"
    weight, rate = np.mean(list(coefficients.values()), axis=0)
    return f"{weight:.3f}" + (f" drop {rate:.2f}" if rate else "")


def score_table(board: Leaderboard, row: Row) -> Table:
    """Return the scores of a candidate on the search and the confirm items, a line per task."""
    table = _table("scores", ["task"])
    for title in ("search ± SE", "confirm ± SE"):
        table.add_column(title, justify="right")
    for task in board.tasks:
        both = (row.candidate.scores.get(task), row.confirm_tasks.get(task))
        table.add_row(task, *(score(s.value, s.se) if s else "-" for s in both))
    for task, guard in row.guard.items():
        table.add_row(f"{task} (guard)", "-", score(guard.value, guard.se))
    totals = (row.search, row.confirm)
    table.add_row(board.objective.phrase, *(score(s.value, s.se) if s else "-" for s in totals))
    return table


def difference_table(
    objective: Objective | None, a: ItemScores, b: ItemScores, names: Sequence[str]
) -> Table:
    """Return paired differences with intervals and p, a line per task and for the objective."""
    table = _table(f"{names[0]} minus {names[1]}, on the same {a.n} items", ["task"])
    for title in (*names, "Δ", "95 %", "p"):
        table.add_column(title, justify="right")
    for task in a.tasks:
        values = [scores.task_score(task).value for scores in (a, b)]
        _add_difference(table, task, values, task_alone(a, task).difference(a, b))
    if objective is not None:
        values = [objective.combined(scores).value for scores in (a, b)]
        _add_difference(table, objective.phrase, values, objective.difference(a, b))
    return table


def _add_difference(table: Table, name: str, values: Sequence[float], d: Difference) -> None:
    interval = f"{signed(d.low)} .. {signed(d.high)}"
    table.add_row(name, *map(score, values), signed(d.value), interval, p_value(d.p))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


@dataclass(frozen=True)
class Item:
    """An item on which two models differ.

    Attributes:
        task: Its task.
        doc_id: Row of its document in the task's data.
        won: Whether the first model does better.
        values: Metric of the first and of the second model.
    """

    task: str
    doc_id: int
    won: bool
    values: tuple[float, float]


def differing_items(a: ItemScores, b: ItemScores) -> Iterator[Item]:
    """Return the items on which the metric of two models differs, by task and document."""
    for index in np.flatnonzero(a.value != b.value):
        task = int(a.task_index[index])
        values = (float(a.value[index]), float(b.value[index]))
        won = (values[0] > values[1]) == a.higher_is_better[task]
        yield Item(a.tasks[task], int(a.doc_id[index]), won, values)
