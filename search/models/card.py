"""Model cards: what a merged model is made of, how well it does, and how to check that.

Knows leaderboard rows and the directories of base and parents; writes Markdown with the front
matter of a Hugging Face model card. Cards name models, never places on a disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.constants import REPO_ID_SEPARATOR

from ...merge.recipe.recipe import Recipe
from ..format import p_value, recipe_line, score, signed
from ..leaderboard.board import Leaderboard, Row
from ..leaderboard.sentences import verdict_sentence
from .licences import OTHER, Licence, kept_files, kept_names, licence_files, licence_of, strictest

if TYPE_CHECKING:
    from ...merge.files.file_merge import FileMerge
    from ...merge.parents.hub import Place
    from ...merge.parents.parent_set import ParentSet

HUB = "https://huggingface.co"
LONG = 60
"""Lines of mergekit's YAML from which the card folds it away."""


def model_card(
    board: Leaderboard,
    row: Row,
    parents: ParentSet,
    commands: Sequence[str],
    metrics: Mapping[str, str],
    dtype: str,
    tokenizer: str | None,
) -> str:
    """Return README.md of an exported candidate.

    Args:
        board: Of its study.
        row: Its line there.
        parents: What was merged.
        commands: Shell lines by which lm-eval gives the confirm scores.
        metrics: Task name -> the metric that is scored.
        dtype: Of its weights.
        tokenizer: The policy by which the parents were opened.
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
        "## Configuration",
        _configuration(row.candidate.recipe, parents, dtype, tokenizer),
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
        "## Configuration",
        _configuration(
            merge.recipe,
            merge.parents,
            None if merge.dtype is None else str(merge.dtype).removeprefix("torch."),
            merge.tokenizer,
        ),
    ]
    if merge.notes:
        sections += [
            f"## How this differs from what mergekit would make of `{merge.source.name}`",
            "\n".join(f"- {note}" for note in merge.notes),
        ]
    return "\n\n".join(sections) + "\n"


def licence_texts(parents: ParentSet) -> dict[str, str]:
    """File name -> text of the licence files of base and parents, to lie beside a merge."""
    return kept_files(_folders(parents))


def _front(parents: ParentSet, name: str, results: Sequence[EvalResult] = ()) -> str:
    """Front matter, as the hub reads it: it knows its own models alone as lineage."""
    licence, own_name, link = _licence_fields(parents)
    known = [hub_id for place in parents.places.values() if (hub_id := _hub_id(place))]
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "heterosis"],
        base_model=list(dict.fromkeys(known)) or None,
        base_model_relation="merge" if known else None,
        eval_results=list(results) or None,
        model_name=name if results else None,
        license=licence,
        license_name=own_name,
        license_link=link,
    )
    return f"---\n{data}\n---"


def _licence_fields(parents: ParentSet) -> tuple[str | None, str | None, str | None]:
    """Licence, and name and link of one of its own, as the hub's specification has them."""
    stated = _licences(parents)
    chosen = strictest(licence and licence.name for licence in stated.values())
    for owner, licence in stated.items():
        if licence is not None and licence.name == chosen:
            if not licence.is_own:
                return licence.name, None, None
            return OTHER, licence.name, _link(parents, owner, licence)
    return None, None, None


def _link(parents: ParentSet, owner: str, licence: Licence) -> str | None:
    """Where a licence of its own can be read: on the network, or beside the merge."""
    place, link = parents.places[owner], licence.link
    if link is not None and "://" in link:
        return link
    files = [path.name for path in licence_files(place.folder)]
    name = link or next(iter(files), None)
    if name in files:
        return kept_names(_folders(parents))[owner, name]
    hub_id = _hub_id(place)
    return f"{HUB}/{hub_id}/blob/main/{name}" if hub_id and name else None


def _folders(parents: ParentSet) -> dict[str, Path]:
    return {owner: place.folder for owner, place in parents.places.items()}


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


def _licences(parents: ParentSet) -> dict[str, Licence | None]:
    return {owner: licence_of(place.folder) for owner, place in parents.places.items()}


def _hub_id(place: Place) -> str | None:
    """A model's id on the hub; None if it is only known by a place on this disk.

    A directory inside the hub's local cache tells the id, too.
    """
    if place.text != str(place.folder):
        return place.text.partition("@")[0]
    kept = place.folder.parent.parent.name.split(REPO_ID_SEPARATOR)
    if place.folder.parent.name == "snapshots" and kept[0] == "models" and len(kept) == 3:
        return "/".join(kept[1:])
    return None


def _name(place: Place) -> str:
    """A model as others know it: its hub id without a commit, or the last part of its path."""
    return _hub_id(place) or place.name


def _parents(parents: ParentSet) -> str:
    licences, digests = _licences(parents), parents.digests()
    lines = []
    for owner, place in parents.places.items():
        local = "" if _hub_id(place) else f", known by its weights alone: SHA-256 {digests[owner]}"
        lines.append(f"- {owner}: `{_name(place)}` ({_said(place, licences[owner])}{local})")
    return "\n".join(lines) + "\n\n" + _licence_line(licences)


def _said(place: Place, licence: Licence | None) -> str:
    """What is known of a model's licence."""
    if licence is not None:
        return f"licence: {licence.name}"
    files = [path.name for path in licence_files(place.folder)]
    return f"licence: not named; see its {files[0]}" if files else "licence: not stated"


def _licence_line(licences: Mapping[str, Licence | None]) -> str:
    silent = [owner for owner, licence in licences.items() if licence is None]
    if silent:
        return (
            f"No licence is stated here, because {', '.join(silent)} names none: ask the authors "
            "before passing this model on."
        )
    names = [licence.name for licence in licences.values() if licence is not None]
    chosen, distinct = strictest(names), sorted(set(names))
    if chosen is None:
        return (
            f"No licence is stated here: which of {', '.join(distinct)} asks most is for a person "
            "to say. All of them hold."
        )
    if len(distinct) == 1:
        return f"All of them are under {chosen}."
    others = ", ".join(licence for licence in distinct if licence != chosen)
    return f"The strictest of these licences is {chosen}; the others ({others}) hold, too."


def _configuration(
    recipe: Recipe, parents: ParentSet, dtype: str | None, tokenizer: str | None
) -> str:
    """mergekit's YAML of a merge, models by name; or why mergekit has no words for it."""
    from ...merge.files.export import InexpressibleError, mergekit_text

    try:
        text = mergekit_text(recipe, parents, dtype, tokenizer, _name)
    except InexpressibleError as error:
        return (
            f"mergekit has no words for this recipe ({error}); `heterosis merge recipe.json "
            "--out DIR` makes it."
        )
    local = [owner for owner, place in parents.places.items() if not _hub_id(place)]
    where = f" Put your own directories in place of {', '.join(local)}." if local else ""
    block = f"```yaml\n{text.strip()}\n```"
    if text.count("\n") > LONG:
        block = f"<details>\n<summary>YAML</summary>\n\n{block}\n\n</details>"
    return f"The same merge in mergekit's YAML (`mergekit-yaml`).{where}\n\n{block}"


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
