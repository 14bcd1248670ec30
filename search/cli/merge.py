"""The command `heterosis merge`: a merge from files to files, without a study."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import FAILED, INTERRUPTED, console, fail, quieten_transformers, say

if TYPE_CHECKING:
    from rich.console import Console

    from ...merge.files.file_merge import FileMerge


def merge(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="mergekit's YAML, a recipe.json, or its folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to write.")],
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
    device: Annotated[
        str, typer.Option(help="Where tensors are merged: cpu, cuda, cuda:1.")
    ] = "cpu",
    mask_seed: Annotated[
        int | None, typer.Option(min=0, help="Of random masks; default: the recipe's, else 0.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: RECIPE's, else the base's."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Where vocabularies differ: base or union.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models from the hub that are not here.")
    ] = False,
) -> None:
    """Merge models file to file, as mergekit's YAML or a recipe.json says.

    One tensor of each model is in memory at a time. Relative paths of models are taken from
    RECIPE's directory, then from the working directory. What cannot be had as RECIPE asks is
    refused; what is equal only in expectation or up to rounding is told in a note.
    """
    try:
        quieten_transformers()
        from ...merge.files.file_merge import open_merge
        from ...merge.files.writer import check_goal, shard_bytes

        screen = console()
        check_goal(out)
        shard_bytes(max_shard_size)
        opened = open_merge(
            recipe, mask_seed=mask_seed, dtype=dtype, tokenizer=tokenizer, download=download
        )
        for line in describe(opened):
            say(screen, line)
        for line in run_merge(opened, out, screen, device=device, max_shard_size=max_shard_size):
            say(screen, line)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", INTERRUPTED)
    except OSError as error:
        fail(f"{out}: {error}; nothing was written", FAILED)


def describe(merge: FileMerge) -> Iterator[str]:
    """Say what will be merged, and in what it differs from what the file asks for."""
    from ..format import recipe_line

    for owner, place in merge.parents.places.items():
        yield f"{owner}: {place.text}"
    yield f"recipe: {recipe_line(merge.recipe)}"
    for note in merge.notes:
        yield f"note: {note}"


@contextmanager
def shown(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields what is told bytes done and bytes in all."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        bar = progress.add_task("merging", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def run_merge(
    merge: FileMerge, out: Path, console: Console, *, device: str, max_shard_size: str
) -> Iterator[str]:
    """Merge into a directory, with a progress bar on a terminal; then say what was written."""
    from ...merge.files.export import MERGEKIT_FILE
    from ...merge.files.file_merge import merge_files
    from ..format import duration
    from ..models.card import licence_texts, merge_card

    begun = time.monotonic()
    with shown(console) as on_tensor:
        folder = merge_files(
            merge,
            out,
            card=merge_card(merge, out.absolute().name),
            device=device,
            max_shard_size=max_shard_size,
            extra_files=licence_texts(merge.parents),
            provenance={"source": merge.source.name},
            on_tensor=on_tensor,
        )
    files = list(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    yield (
        f"wrote {folder}: {size / 1e6:,.1f} MB in {len(files)} weight file{'s'[: len(files) - 1]}, "
        f"{duration(time.monotonic() - begun)}"
    )
    if not (folder / MERGEKIT_FILE).is_file():
        yield f"no {MERGEKIT_FILE}: mergekit has no words for this recipe (recipe.json says why)"
