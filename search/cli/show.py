"""The commands `heterosis show` and `heterosis compare`: one candidate in detail, or two.

Loads tasks for their prompts, never weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import StudyArgument, console, quieten_libraries

if TYPE_CHECKING:
    from ...evals.scores.scores import ItemScores
    from ...evals.tasks.tasks import FrozenTask
    from ..leaderboard.board import Leaderboard, Row
    from ..leaderboard.compare import Item

    Sides = tuple[tuple[Leaderboard, Row], tuple[Leaderboard, Row]]

ItemsOption = Annotated[
    int, typer.Option("--items", min=0, help="Number of items won, and of items lost, to print.")
]
TRIAL = "Trial number, name or `winner`."


def show(
    study: StudyArgument,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help=TRIAL)] = "winner",
    against: Annotated[
        str | None,
        typer.Option(metavar="TRIAL", help="Compare with it; default: the best parent."),
    ] = None,
    items: ItemsOption = 3,
) -> None:
    """Show a candidate: its recipe by layer, its scores, the items it won and lost."""
    quieten_libraries()
    from ..format import recipe_line
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import find_row, recipe_table, score_table

    screen, board = console(), read_leaderboard(study)
    row = find_row(board, trial)
    candidate = row.candidate
    stage = "" if candidate.stage is None else f", {board.stages[candidate.stage]}"
    typer.echo(f"{candidate.name} of {board.name}{stage}: {row.verdict}")
    typer.echo(recipe_line(candidate.recipe, candidate.origin))
    if candidate.failure:
        typer.echo(f"failed: {candidate.failure}")
        return
    screen.print(recipe_table(candidate.recipe))
    screen.print(score_table(board, row))
    other = against or board.best_parent
    if other is not None and find_row(board, other) is not row:
        sides = ((board, row), (board, find_row(board, other)))
        _print_difference(sides, _shared_scores(sides), items)


def compare(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", help="Results folder of a study; or A, as STUDY:TRIAL."),
    ],
    a: Annotated[str, typer.Argument(metavar="A", help=f"{TRIAL} Or B, as STUDY:TRIAL.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help=TRIAL)] = None,
    items: ItemsOption = 3,
) -> None:
    """Compare two candidates: paired differences, recipes, the items on which they differ.

    Of one study: `compare STUDY A B`. Of two: `compare STUDY:TRIAL STUDY:TRIAL`, where STUDY
    alone means its winner; both must have been scored on the same items in the same way.
    """
    quieten_libraries()
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import find_row, recipe_difference, study_and_trial

    places = [(Path(study), a), (Path(study), b)] if b else [study_and_trial(t) for t in (study, a)]
    boards = {folder: read_leaderboard(folder) for folder, _ in places}
    first, second = ((boards[folder], find_row(boards[folder], word)) for folder, word in places)
    sides = (first, second)
    scores = _shared_scores(sides)
    recipes = [row.candidate.recipe for _, row in sides]
    console().print(recipe_difference(recipes[0], recipes[1], _names(sides)))
    _print_difference(sides, scores, items)


def _names(sides: Sides) -> list[str]:
    """Return the names of two candidates, with their folders if they are of two studies."""
    same = sides[0][0].folder == sides[1][0].folder
    return [
        row.candidate.name if same else f"{board.folder.name}: {row.candidate.name}"
        for board, row in sides
    ]


def _print_difference(sides: Sides, shared: tuple[str, Sequence[ItemScores]], n_items: int) -> None:
    """Print paired differences, then items that only one answers better."""
    from ..leaderboard.compare import difference_table, differing_items

    split, (ours, theirs) = shared
    board, other = (board for board, _ in sides)
    same_objective = board.objective == other.objective
    objective = board.objective if same_objective else None
    console().print(difference_table(objective, ours, theirs, _names(sides)))
    if not same_objective:
        phrases = " and ".join(b.objective.phrase for b in (board, other))
        typer.echo(f"objectives differ ({phrases}): compared task by task only")
    differing = list(differing_items(ours, theirs))
    won = [item for item in differing if item.won]
    lost = [item for item in differing if not item.won]
    ties = ours.n - len(differing)
    typer.echo(f"{split} items won: {len(won)}, lost: {len(lost)}, tied: {ties}")
    if n_items and differing:
        tasks = {task.name: task for task in _tasks(board.folder)}
        for word, some in (("won", won), ("lost", lost)):
            for item in some[:n_items]:
                _print_item(word, item, tasks[item.task])


def _shared_scores(sides: Sides) -> tuple[str, Sequence[ItemScores]]:
    """Return both scores on the confirm items, or on the shared search items if one has none."""
    from ...evals.scores.store import ItemStore
    from ...evals.tasks.splits import CONFIRM, SEARCH
    from ..leaderboard.compare import shared_items
    from ..storage.journal import StudyError
    from ..study.finalists import search_items

    candidates = [(ItemStore(board.folder / "items"), row.candidate) for board, row in sides]
    for split in (CONFIRM, SEARCH):
        ours, theirs = (
            search_items(store, c) if split == SEARCH else store.read(c.number, split)
            for store, c in candidates
        )
        if ours is None or theirs is None:
            lacking = sides[0] if ours is None else sides[1]
            continue
        if sides[0][0].folder != sides[1][0].folder and not ours.fingerprint:
            raise StudyError(
                f"{sides[0][0].folder}: scored by an earlier version without fingerprints, so it "
                "cannot be compared with another study; search again"
            )
        return split, shared_items(ours, theirs, all_items=split == CONFIRM)
    board, row = lacking
    raise StudyError(
        f"{board.folder}: {row.candidate.name} has no stored items (it failed, or they are lost); "
        "compare others, or run the search again"
    )


def _tasks(study: Path) -> Sequence[FrozenTask]:
    """Return the study's tasks with their prompts."""
    from ..config.config import Config
    from ..storage.journal import Journal
    from ..study.parts import open_parts

    return open_parts(Config.model_validate(Journal(study).begun["config"])).tasks


def _print_item(word: str, item: Item, task: FrozenTask) -> None:
    requests = task.prompts.instances[item.doc_id]
    values = " against ".join(f"{value:g}" for value in item.values)
    typer.echo(f"--- {word}: {item.task}, document {item.doc_id} ({values})")
    typer.echo(str(requests[0].args[0]))
    gold = task.prompts.gold.get(item.doc_id, ())
    choices: list[Any] = [list(request.args)[-1] for request in requests] if gold else []
    answers = [repr(choices[index]) for index in gold]
    typer.echo(f"--- right: {', '.join(answers) or repr(task.prompts.targets[item.doc_id])}")
