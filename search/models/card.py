"""Model cards: parents, scores, configuration and how to check them.

Knows leaderboard rows and the directories of base and parents; writes Markdown with the front
matter of a Hugging Face model card. Cards name models, never paths.
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
"""Lines of mergekit's YAML above which the card folds it."""


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
        board: The study's leaderboard.
        row: The candidate's row.
        parents: Base and parents.
        commands: Shell lines with which lm-eval reproduces the confirm scores.
        metrics: Task name -> its metric.
        dtype: Data type of the weights.
        tokenizer: Tokenizer policy with which the parents were opened.
    """
    sections = [
        _front(parents, f"{board.name}-{row.candidate.number}", _results(row, metrics)),
        f"# {board.name}: {row.candidate.name}",
        f"A merge found by heterosis in the study `{board.name}`: "
        f"`{recipe_line(row.candidate.recipe)}`. The full recipe is in `recipe.json`; "
        "`reproduce.md` says how to reproduce the model.",
        "## Parents",
        _parents(parents),
        "## Scores",
        _scores(board, row),
        _comparison(board, row),
        "## Configuration",
        _configuration(row.candidate.recipe, parents, dtype, tokenizer),
        "## How to check the scores",
        "With lm-eval's command line, on the confirm items (which the search never saw); `$MODEL` "
        "is this directory, `$TASKS` the folder of the study's task files:",
        "```sh\n" + "\n".join(commands) + "\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def merge_card(merge: FileMerge, name: str) -> str:
    """Return README.md of a merge from files.

    Args:
        merge: The opened merge.
        name: Name of the output directory.
    """
    sections = [
        _front(merge.parents, name),
        f"# {name}",
        f"Merged by heterosis: `{recipe_line(merge.recipe)}`. The full recipe is in "
        "`recipe.json`, from which `heterosis merge` reproduces the weights.",
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
            f"## Differences from mergekit's result for `{merge.source.name}`",
            "\n".join(f"- {note}" for note in merge.notes),
        ]
    return "\n\n".join(sections) + "\n"


def licence_texts(parents: ParentSet) -> dict[str, str]:
    """Return file name -> text of the licence files of base and parents, to ship with a merge."""
    return kept_files(_folders(parents))


def _front(parents: ParentSet, name: str, results: Sequence[EvalResult] = ()) -> str:
    """Front matter; its `base_model` lists only models on the hub."""
    licence, own_name, link = _licence_fields(parents)
    hub_ids = [hub_id for place in parents.places.values() if (hub_id := _hub_id(place))]
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "heterosis"],
        base_model=list(dict.fromkeys(hub_ids)) or None,
        base_model_relation="merge" if hub_ids else None,
        eval_results=list(results) or None,
        model_name=name if results else None,
        license=licence,
        license_name=own_name,
        license_link=link,
    )
    return f"---\n{data}\n---"


def _licence_fields(parents: ParentSet) -> tuple[str | None, str | None, str | None]:
    """The hub's licence fields: licence, and name and link of a custom one."""
    stated = _licences(parents)
    chosen = strictest(licence and licence.name for licence in stated.values())
    for owner, licence in stated.items():
        if licence is not None and licence.name == chosen:
            if not licence.is_own:
                return licence.name, None, None
            return OTHER, licence.name, _link(parents, owner, licence)
    return None, None, None


def _link(parents: ParentSet, owner: str, licence: Licence) -> str | None:
    """URL or file name of a custom licence."""
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
            metric_value=round(scored.value, 6),
            metric_args={"stderr": round(scored.se, 6), "items": scored.n},
        )
        for task, scored in row.confirm_tasks.items()
    ]


def _licences(parents: ParentSet) -> dict[str, Licence | None]:
    return {owner: licence_of(place.folder) for owner, place in parents.places.items()}


def _hub_id(place: Place) -> str | None:
    """A model's id on the hub; None if only a local path is known.

    A directory inside the hub's local cache contains the id, too.
    """
    if place.text != str(place.folder):
        return place.text.partition("@")[0]
    kept = place.folder.parent.parent.name.split(REPO_ID_SEPARATOR)
    if place.folder.parent.name == "snapshots" and kept[0] == "models" and len(kept) == 3:
        return "/".join(kept[1:])
    return None


def _name(place: Place) -> str:
    """A model's public name: its hub id without a commit, or the last part of its path."""
    return _hub_id(place) or place.name


def _parents(parents: ParentSet) -> str:
    licences, digests = _licences(parents), parents.digests()
    lines = []
    for owner, place in parents.places.items():
        facts = _licence_text(place, licences[owner])
        if not _hub_id(place):
            facts += f", identified by its weights: SHA-256 {digests[owner]}"
        lines.append(f"- {owner}: `{_name(place)}` ({facts})")
    return "\n".join(lines) + "\n\n" + _licence_line(licences)


def _licence_text(place: Place, licence: Licence | None) -> str:
    """A model's licence in words."""
    if licence is not None:
        return f"licence: {licence.name}"
    files = [path.name for path in licence_files(place.folder)]
    return f"licence: not named; see its {files[0]}" if files else "licence: not stated"


def _licence_line(licences: Mapping[str, Licence | None]) -> str:
    silent = [owner for owner, licence in licences.items() if licence is None]
    if silent:
        *first, last = silent
        owners = f"{', '.join(first)} and {last} do" if first else f"{last} does"
        return (
            f"No licence is stated here because {owners} not name one: ask the authors before you "
            "redistribute this model."
        )
    names = [licence.name for licence in licences.values() if licence is not None]
    chosen, distinct = strictest(names), sorted(set(names))
    if chosen is None:
        return (
            f"No licence is stated here: which of {', '.join(distinct)} is strictest must be "
            "decided by hand. All of them apply."
        )
    if len(distinct) == 1:
        return f"All of them are under {chosen}."
    others = ", ".join(licence for licence in distinct if licence != chosen)
    return f"The strictest of these licences is {chosen}; the others ({others}) also apply."


def _configuration(
    recipe: Recipe, parents: ParentSet, dtype: str | None, tokenizer: str | None
) -> str:
    """mergekit's YAML of a merge, models by name; or why there is none."""
    from ...merge.files.export import InexpressibleError, mergekit_text

    try:
        text = mergekit_text(recipe, parents, dtype, tokenizer, _name)
    except InexpressibleError as error:
        return (
            f"mergekit cannot express this recipe ({error}); use `heterosis merge recipe.json "
            "--out DIR`."
        )
    local = [owner for owner, place in parents.places.items() if not _hub_id(place)]
    where = f" Replace {', '.join(local)} by your own directories." if local else ""
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
