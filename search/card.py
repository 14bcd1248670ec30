"""Model cards: what a merged model is made of, how well it does, and how to check that.

Knows leaderboard rows and the directories of base and parents; writes Markdown with the front
matter of a Hugging Face model card. Cards name models, never places on a disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from .format import p_value, recipe_line, score, signed
from .leaderboard import Leaderboard, Row
from .licences import licence_of, strictest
from .views import verdict_sentence

if TYPE_CHECKING:
    from ..merge.hub import Place
    from ..merge.parents import ParentSet
    from ..merge.standalone import FileMerge


def model_card(
    board: Leaderboard,
    row: Row,
    parents: ParentSet,
    commands: Sequence[str],
    metrics: Mapping[str, str],
) -> str:
    """Return README.md of an exported candidate.

    Args:
        board: Of its study.
        row: Its line there.
        parents: What was merged.
        commands: Shell lines by which lm-eval gives the confirm scores.
        metrics: Task name -> the metric that is scored.
    """
    sections = [
        _front(parents, f"{board.name}-{row.candidate.number}", _results(row, metrics)),
        f"# {board.name}: {row.candidate.name}",
        f"A merge found by heterosis in the study "
        f"`{board.name}`: `{recipe_line(row.candidate.recipe)}`. The full recipe is in "
        "`recipe.json`, how to make it again in `reproduce.md`.",
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
        _front(merge.parents, name),
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


def _front(parents: ParentSet, name: str, results: Sequence[EvalResult] = ()) -> str:
    """Front matter, as the hub reads it."""
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "heterosis"],
        base_model=list(dict.fromkeys(map(_name, parents.places.values()))),
        base_model_relation="merge",
        license=strictest(_licences(parents).values()),
        eval_results=list(results) or None,
        model_name=name if results else None,
    )
    return f"---\n{data}\n---"


def _results(row: Row, metrics: Mapping[str, str]) -> list[EvalResult]:
    """Confirm scores for the hub's model-index, with their standard errors."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            dataset_split="confirm",
            metric_type=metrics.get(task, "score"),
            metric_value=round(found.value, 6),
            metric_args={"stderr": round(found.se, 6), "items": found.n},
        )
        for task, found in row.confirm_tasks.items()
    ]


def _licences(parents: ParentSet) -> dict[str, str | None]:
    return {owner: licence_of(place.folder) for owner, place in parents.places.items()}


def _name(place: Place) -> str:
    """A model as others know it: its hub id without a commit, or the last part of its path."""
    return place.name if place.text == str(place.folder) else place.text.partition("@")[0]


def _parents(parents: ParentSet) -> str:
    licences = _licences(parents)
    lines = [
        f"- {owner}: `{_name(place)}` (licence: {licences[owner] or 'not stated on its card'})"
        for owner, place in parents.places.items()
    ]
    return "\n".join(lines) + "\n\n" + _licence_line(licences)


def _licence_line(licences: Mapping[str, str | None]) -> str:
    silent = [owner for owner, licence in licences.items() if licence is None]
    if silent:
        return (
            f"No licence is stated here, because the card of {', '.join(silent)} states none: ask "
            "the authors before passing this model on."
        )
    chosen, distinct = strictest(licences.values()), sorted({str(x) for x in licences.values()})
    if chosen is None:
        return (
            f"No licence is stated here: which of {', '.join(distinct)} asks most is for a person "
            "to say. All of them hold."
        )
    if len(distinct) == 1:
        return f"All of them are under {chosen}."
    others = ", ".join(licence for licence in distinct if licence != chosen)
    return f"The strictest of these licences is {chosen}; the others ({others}) hold, too."


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
