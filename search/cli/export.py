"""The commands `heterosis export` and `heterosis reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    FAILED,
    StudyArgument,
    console,
    fail,
    quieten_libraries,
    quieten_transformers,
    say,
)


def export(
    study: StudyArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to write.")],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Trial to export; default: the winner.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
) -> None:
    """Write a candidate as a Hugging Face model directory, scored again from its own files."""
    quieten_libraries()
    from ..models.export import export as export_candidate

    screen = console()
    done = export_candidate(study, out, trial, max_shard_size)
    say(screen, f"{done.row.candidate.name} of {study} is in {done.folder}")
    say(
        screen,
        f"scored again from the saved files: all {' and '.join(done.splits)} items come out alike",
    )
    say(screen, "lm-eval's own command line gives the confirm score:")
    for command in done.commands:
        say(screen, f"  {command}")


def reproduce(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="recipe.json, or the directory of an export.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the model there.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=PATH", help="Where base or a parent is now."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where tensors are merged: cpu, cuda, cuda:1.")
    ] = "cpu",
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models from the hub that are not here.")
    ] = False,
) -> None:
    """Make a merge again from its recipe.json, and compare every tensor's SHA-256.

    Exit code 0: all are equal; 1: some differ. Without --out nothing is written.
    """
    quieten_transformers()
    from ...merge.files.writer import check_goal
    from ..models.reproduce import open_reproduction
    from ..models.reproduce import reproduce as make_again
    from .merge import describe, shown

    if out is not None:
        check_goal(out)
    screen = console()
    merge, record = open_reproduction(recipe, _places(model or ()), download=download)
    for line in describe(merge):
        say(screen, line)
    with shown(screen) as on_tensor:
        done = make_again(
            merge, record, out, device=device, max_shard_size=max_shard_size, on_tensor=on_tensor
        )
    if out is not None:
        say(screen, f"wrote {out}")
    if done.differing:
        versions = "; ".join(done.other_versions) or "packages are of the same versions"
        fail(
            f"{len(done.differing)} of {len(record.weights)} tensors differ from what "
            f"{merge.source} states: {_few(done.differing)} ({versions})",
            FAILED,
        )
    say(screen, f"reproduced: all {len(record.weights)} tensors have the SHA-256 that it states")


def _places(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, sign, path in pairs:
        if not (name and sign and path):
            raise ValueError(
                f"`--model` must be NAME=PATH, as base=models/base, got `{name}{sign}{path}`"
            )
    return {name: path for name, _, path in pairs}


def _few(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
