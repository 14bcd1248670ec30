"""The commands `heterosis show` and `heterosis compare`: one candidate laid open, or two.

Their options, and what a person reads. Loads tasks for their prompts, never weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .morning_commands import StudyArgument
from .terminal import console, quieten_libraries, say

if TYPE_CHECKING:
    from rich.console import Console

    from ..evals.scores import ItemScores
    from ..evals.tasks import FrozenTask
    from .leaderboard import Leaderboard, Row
    from .show import Item

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
    from .format import recipe_line
    from .leaderboard import read_leaderboard
    from .show import find_row, recipe_table, score_table

    screen, board = console(), read_leaderboard(study)
    row = find_row(board, trial)
    say(screen, f"{row.candidate.name} of {board.name}: {row.verdict}")
    say(screen, recipe_line(row.candidate.recipe))
    if row.candidate.failure:
        say(screen, f"failed: {row.candidate.failure}")
        return
    screen.print(recipe_table(row.candidate.recipe))
    screen.print(score_table(board, row))
    other = against or board.best_parent
    if other is not None and find_row(board, other) is not row:
        _print_difference(screen, board, (row, find_row(board, other)), items)


def compare(
    study: StudyArgument,
    a: Annotated[str, typer.Argument(metavar="A", help=TRIAL)],
    b: Annotated[str, typer.Argument(metavar="B", help=TRIAL)],
    items: ItemsOption = 3,
) -> None:
    """Compare two candidates of a study: paired differences, recipes, the items that differ."""
    quieten_libraries()
    from .leaderboard import read_leaderboard
    from .show import find_row, recipe_difference

    screen, board = console(), read_leaderboard(study)
    rows = (find_row(board, a), find_row(board, b))
    names = [row.candidate.name for row in rows]
    recipes = [row.candidate.recipe for row in rows]
    screen.print(recipe_difference(recipes[0], recipes[1], names))
    _print_difference(screen, board, rows, items)


def _print_difference(
    screen: Console, board: Leaderboard, rows: tuple[Row, Row], count: int
) -> None:
    """Paired differences, then the items that one wins and the other loses."""
    from .show import difference_table, differing_items

    split, (ours, theirs) = _shared(board, rows)
    names = [row.candidate.name for row in rows]
    screen.print(difference_table(board.objective, ours, theirs, names))
    found = list(differing_items(ours, theirs))
    won = [item for item in found if item.won]
    lost = [item for item in found if not item.won]
    say(screen, f"{split} items won: {len(won)}, lost: {len(lost)}, alike: {ours.n - len(found)}")
    if count and found:
        tasks = {task.name: task for task in _tasks(board.folder)}
        for word, some in (("won", won), ("lost", lost)):
            for item in some[:count]:
                _print_item(screen, word, item, tasks[item.task])


def _shared(board: Leaderboard, rows: tuple[Row, Row]) -> tuple[str, Sequence[ItemScores]]:
    """The scores of both on the confirm items, or where one has none, on shared search items."""
    import numpy as np

    from ..evals.splits import CONFIRM, SEARCH
    from ..evals.store import ItemStore
    from .journal import StudyError

    store = ItemStore(board.folder / "items")
    for split in (CONFIRM, SEARCH):
        found = [store.read(row.candidate.number, split) for row in rows]
        scores = [each for each in found if each is not None]
        if len(scores) == len(rows):
            keys = np.intersect1d(scores[0].keys, scores[1].keys)
            return split, [each.taken(np.flatnonzero(np.isin(each.keys, keys))) for each in scores]
    without = next(row.candidate.name for row, each in zip(rows, found, strict=True) if not each)
    raise StudyError(
        f"{board.folder}: {without} has no stored items (it failed, or they are lost); compare "
        "others, or run the search again"
    )


def _tasks(study: Path) -> Sequence[FrozenTask]:
    """The study's tasks, prompts built."""
    from .assembly import open_parts
    from .config import Config
    from .journal import Journal

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
