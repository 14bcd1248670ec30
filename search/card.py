"""Model cards: what a merged model is made of, how well it does, and how to check that.

Knows leaderboard rows and the directories of base and parents; writes Markdown with the front
matter of a Hugging Face model card. Cards name models, never places on a disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .format import p_value, recipe_line, score, signed
from .leaderboard import Leaderboard, Row
from .views import verdict_sentence

if TYPE_CHECKING:
    from ..merge.hub import Place
    from ..merge.parents import ParentSet
    from ..merge.standalone import FileMerge


def model_card(board: Leaderboard, row: Row, parents: ParentSet, commands: Sequence[str]) -> str:
    """Return README.md of an exported candidate."""
    sections = [
        _front(parents),
        f"# {board.name}: {row.candidate.name}",
        f"A merge found by heterosis in the study "
        f"`{board.name}`: `{recipe_line(row.candidate.recipe)}`. The full recipe is in "
        "`recipe.json`.",
        "## Parents",
        _parents(parents),
        "## Scores",
        _scores(board, row),
        _comparison(board, row),
        "## How to check",
        "lm-eval's own command line, on the confirm items (which the search never saw); `$MODEL` "
        "is this directory, `$TASKS` the folder of the study's task files:",
        "```sh\n" + "\n".join(commands) + "\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def merge_card(merge: FileMerge, name: str) -> str:
    """Return README.md of a merge from files.

    Args:
        merge: As opened.
        name: Of the directory that is written.
    """
    sections = [
        _front(merge.parents),
        f"# {name}",
        f"Merged by heterosis: `{recipe_line(merge.recipe)}`. The full recipe is in "
        "`recipe.json`; `heterosis merge` makes the same weights from it again.",
        "## Parents",
        _parents(merge.parents),
    ]
    if merge.notes:
        sections += [
            f"## How this differs from what mergekit would make of `{merge.source.name}`",
            "\n".join(f"- {note}" for note in merge.notes),
        ]
    return "\n\n".join(sections) + "\n"


def _front(parents: ParentSet) -> str:
    places = parents.places.values()
    front: dict[str, object] = {
        "library_name": "transformers",
        "tags": ["merge", "heterosis"],
        "base_model": list(dict.fromkeys(map(_name, places))),
    }
    licences = {licence_of(place.folder) for place in places}
    if len(licences) == 1 and None not in licences:
        front["license"] = licences.pop()
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def _name(place: Place) -> str:
    """A model as others know it: its hub id without a commit, or the last part of its path."""
    return place.name if place.text == str(place.folder) else place.text.partition("@")[0]


def _parents(parents: ParentSet) -> str:
    def lines() -> Iterator[str]:
        for owner, place in parents.places.items():
            licence = licence_of(place.folder)
            yield f"- {owner}: `{_name(place)}`" + (f" (licence: {licence})" if licence else "")

    return "\n".join(lines())


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's card states in its front matter, or None."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    parts = text.split("---\n", maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None


def _scores(board: Leaderboard, row: Row) -> str:
    lines = ["| task | search ± SE | confirm ± SE |", "| --- | --- | --- |"]
    for task in board.tasks:
        search, confirm = row.candidate.scores.get(task), row.confirm_tasks.get(task)
        lines.append(
            f"| {task} | {score(search.value, search.se) if search else '-'} "
            f"| {score(confirm.value, confirm.se) if confirm else '-'} |"
        )
    for task, guard in row.guard.items():
        lines.append(f"| {task} (guard) | - | {score(guard.value, guard.se)} |")
    return "\n".join(lines)


def _comparison(board: Leaderboard, row: Row) -> str:
    lines = [verdict_sentence(board)] if row is board.winner else []
    for other, difference in (
        (board.best_parent, row.to_parent),
        ("the uniform merge", row.to_uniform),
    ):
        if difference is not None:
            lines.append(
                f"Paired difference to {other} on {difference.n} confirm items: "
                f"{signed(difference.value)} ± {difference.se:.4f} (p {p_value(difference.p)})."
            )
    return "\n".join(lines)
