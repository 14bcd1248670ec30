"""The commands `heterosis show` and `heterosis compare`: one candidate laid open, or two.

Their options, and what a person reads. Loads tasks for their prompts, never weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import StudyArgument, console, quieten_libraries, say

if TYPE_CHECKING:
    from rich.console import Console

    from ...evals.scores.scores import ItemScores
    from ...evals.tasks.tasks import FrozenTask
    from ..leaderboard.board import Leaderboard, Row
    from ..leaderboard.compare import Item

    Sides = tuple[tuple[Leaderboard, Row], tuple[Leaderboard, Row]]

ItemsOption = Annotated[
    int, typer.Option("--items", min=0, help="Items won and lost to print, of each this many.")
]
TRIAL = "Trial number, name, or `winner`."


def show(
    study: StudyArgument,
    trial: Annotated[str, typer.Argument(metavar="[TRIAL]", help=TRIAL)] = "winner",
    against: Annotated[
        str | None, typer.Option("--against", help="Trial or name; default: the best parent.")
    ] = None,
    items: ItemsOption = 3,
) -> None:
    """Show a candidate: its recipe by layer, its scores, the questions it won and lost."""
    quieten_libraries()
    from ..format import recipe_line
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import find_row, recipe_table, score_table

    screen, board = console(), read_leaderboard(study)
    row = find_row(board, trial)
    say(screen, f"{row.candidate.name} of {board.name}{_stage(board, row)}: {row.verdict}")
    say(screen, recipe_line(row.candidate.recipe, row.candidate.origin))
    if row.candidate.failure:
        say(screen, f"failed: {row.candidate.failure}")
        return
    screen.print(recipe_table(row.candidate.recipe))
    screen.print(score_table(board, row))
    other = against or board.best_parent
    if other is not None and find_row(board, other) is not row:
        sides = ((board, row), (board, find_row(board, other)))
        _print_difference(screen, sides, _shared(sides), items)


def _stage(board: Leaderboard, row: Row) -> str:
    """The stage of the search that a candidate is of, where there are several."""
    place = row.candidate.stage
    return "" if place is None else f", {board.stages[place]}"


def compare(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A study's folder; or A, as STUDY:TRIAL.")
    ],
    a: Annotated[str, typer.Argument(metavar="A", help=f"{TRIAL} Or B, as STUDY:TRIAL.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help=TRIAL)] = None,
    items: ItemsOption = 3,
) -> None:
    """Compare two candidates: paired differences, recipes, the items on which they differ.

    Of one study: `compare STUDY A B`. Of two: `compare STUDY:TRIAL STUDY:TRIAL`, where a STUDY
    alone stands for its winner; they must have been scored on the same items, in the same way.
    """
    quieten_libraries()
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import find_row, recipe_difference, split_place

    places = [(Path(study), a), (Path(study), b)] if b else [split_place(t) for t in (study, a)]
    read = {folder: read_leaderboard(folder) for folder, _ in places}
    screen, boards = console(), [read[folder] for folder, _ in places]
    rows = [find_row(board, word) for board, (_, word) in zip(boards, places, strict=True)]
    recipes = [row.candidate.recipe for row in rows]
    sides = ((boards[0], rows[0]), (boards[1], rows[1]))
    shared = _shared(sides)
    screen.print(recipe_difference(recipes[0], recipes[1], _names(sides)))
    _print_difference(screen, sides, shared, items)


def _names(sides: Sides) -> list[str]:
    """Names of two candidates; with their folders where they are of two studies."""
    same = sides[0][0].folder == sides[1][0].folder
    return [
        row.candidate.name if same else f"{board.folder.name}: {row.candidate.name}"
        for board, row in sides
    ]


def _print_difference(
    screen: Console, sides: Sides, shared: tuple[str, Sequence[ItemScores]], count: int
) -> None:
    """Paired differences, then the items that one wins and the other loses."""
    from ..leaderboard.compare import difference_table, differing_items

    split, (ours, theirs) = shared
    board, other = (board for board, _ in sides)
    one_rule = board.objective == other.objective
    objective = board.objective if one_rule else None
    screen.print(difference_table(objective, ours, theirs, _names(sides)))
    if not one_rule:
        phrases = " and ".join(b.objective.phrase for b in (board, other))
        say(screen, f"objectives differ ({phrases}): compared task by task alone")
    found = list(differing_items(ours, theirs))
    won = [item for item in found if item.won]
    lost = [item for item in found if not item.won]
    say(screen, f"{split} items won: {len(won)}, lost: {len(lost)}, alike: {ours.n - len(found)}")
    if count and found:
        tasks = {task.name: task for task in _tasks(board.folder)}
        for word, some in (("won", won), ("lost", lost)):
            for item in some[:count]:
                _print_item(screen, word, item, tasks[item.task])


def _shared(sides: Sides) -> tuple[str, Sequence[ItemScores]]:
    """The scores of both on the confirm items, or where one has none, on shared search items."""
    from ...evals.scores.store import ItemStore
    from ...evals.tasks.splits import CONFIRM, SEARCH
    from ..leaderboard.compare import on_shared_items
    from ..storage.journal import StudyError
    from ..study.finalists import search_items

    for split in (CONFIRM, SEARCH):
        own = [(ItemStore(board.folder / "items"), row.candidate) for board, row in sides]
        found = [
            search_items(store, c) if split == SEARCH else store.read(c.number, split)
            for store, c in own
        ]
        scores = [each for each in found if each is not None]
        if len(scores) == len(sides):
            if sides[0][0].folder != sides[1][0].folder and not scores[0].fingerprint:
                raise StudyError(
                    f"{sides[0][0].folder}: scored by an earlier version, which kept no "
                    "fingerprint: whether another study asked the same cannot be told; search again"
                )
            return split, on_shared_items(scores[0], scores[1], whole=split == CONFIRM)
    (board, row), _ = next(pair for pair in zip(sides, found, strict=True) if pair[1] is None)
    raise StudyError(
        f"{board.folder}: {row.candidate.name} has no stored items (it failed, or they are lost); "
        "compare others, or run the search again"
    )


def _tasks(study: Path) -> Sequence[FrozenTask]:
    """The study's tasks, prompts built."""
    from ..config.config import Config
    from ..storage.journal import Journal
    from ..study.parts import open_parts

    return open_parts(Config.model_validate(Journal(study).begun["config"])).tasks


def _print_item(screen: Console, word: str, item: Item, task: FrozenTask) -> None:
    requests = task.prompts.instances[item.doc_id]
    values = " against ".join(f"{value:g}" for value in item.values)
    say(screen, f"--- {word}: {item.task}, document {item.doc_id} ({values})")
    say(screen, str(requests[0].args[0]))
    gold = task.prompts.gold.get(item.doc_id, ())
    choices: list[Any] = [list(request.args)[-1] for request in requests] if gold else []
    right = [repr(choices[index]) for index in gold]
    say(screen, f"--- right: {', '.join(right) or repr(task.prompts.targets[item.doc_id])}")
