"""The commands `heterosis export` and `heterosis reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    FAILED,
    OUT,
    DownloadOption,
    MaxShardSizeOption,
    MergeDeviceOption,
    StudyArgument,
    console,
    fail,
    quieten_libraries,
    quieten_transformers,
)


def export(
    study: StudyArgument,
    out: Annotated[Path, OUT],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Trial to export; default: the winner.")
    ] = None,
    max_shard_size: MaxShardSizeOption = "5GB",
) -> None:
    """Export a candidate as a Hugging Face model directory, verified by scoring its files."""
    quieten_libraries()
    from ..models.export import export as export_candidate

    done = export_candidate(study, out, trial, max_shard_size)
    typer.echo(f"{done.row.candidate.name} of {study} is in {done.folder}")
    typer.echo(f"verified: the saved files score the same on all {' and '.join(done.splits)} items")
    typer.echo("lm-eval's command line gives the confirm score:")
    for command in done.commands:
        typer.echo(f"  {command}")


def reproduce(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe.json, or the directory of an export.")
    ],
    out: Annotated[Path | None, OUT] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Current path of the base or a parent."),
    ] = None,
    device: MergeDeviceOption = "cpu",
    max_shard_size: MaxShardSizeOption = "5GB",
    download: DownloadOption = False,
) -> None:
    """Repeat a merge from its recipe.json, and compare the SHA-256 of every tensor.

    Exit code 0: all are equal; 1: some differ. Without --out nothing is written.
    """
    quieten_transformers()
    from ...merge.files.writer import check_goal
    from ..models.reproduce import open_reproduction
    from ..models.reproduce import reproduce as repeat
    from .merge import describe, progress_bar

    if out is not None:
        check_goal(out)
    merge, record = open_reproduction(recipe, _paths(model or ()), download=download)
    for line in describe(merge):
        typer.echo(line)
    with progress_bar(console()) as on_tensor:
        done = repeat(
            merge, record, out, device=device, max_shard_size=max_shard_size, on_tensor=on_tensor
        )
    if out is not None:
        typer.echo(f"wrote {out}")
    if done.differing:
        versions = "; ".join(done.other_versions) or "package versions are the same"
        fail(
            f"{len(done.differing)} of {len(record.weights)} tensors differ from "
            f"{merge.source}: {_first(done.differing)} ({versions})",
            FAILED,
        )
    typer.echo(f"reproduced: all {len(record.weights)} tensors have the recorded SHA-256")


def _paths(options: Sequence[str]) -> dict[str, str]:
    """Return the path of each model from `NAME=PATH`."""
    pairs = [text.partition("=") for text in options]
    for name, sign, path in pairs:
        if not (name and sign and path):
            raise ValueError(
                f"`--model` must be NAME=PATH, such as base=models/base, got `{name}{sign}{path}`"
            )
    return {name: path for name, _, path in pairs}


def _first(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
