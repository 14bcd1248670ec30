"""The command `heterosis merge`: a merge from files to files, without a study."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    FAILED,
    INTERRUPTED,
    OUT,
    DownloadOption,
    MaxShardSizeOption,
    MergeDeviceOption,
    console,
    fail,
    quieten_transformers,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ...merge.files.file_merge import FileMerge


def merge(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="mergekit's YAML, a recipe.json, or its folder."),
    ],
    out: Annotated[Path, OUT],
    max_shard_size: MaxShardSizeOption = "5GB",
    device: MergeDeviceOption = "cpu",
    mask_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of random masks; default: RECIPE's, or 0.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: RECIPE's, or the base's."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Vocabulary if the parents' differ: base or union.")
    ] = None,
    download: DownloadOption = False,
) -> None:
    """Merge models from files to files, as mergekit's YAML or a recipe.json specifies.

    Memory holds one tensor of each model at a time. Relative model paths are taken from
    RECIPE's directory, then from the working directory. Settings that cannot be
    followed are errors; results equal only in expectation or up to rounding are noted.
    """
    try:
        quieten_transformers()
        from ...merge.files.file_merge import open_merge
        from ...merge.files.writer import check_goal, shard_bytes

        check_goal(out)
        shard_bytes(max_shard_size)
        opened = open_merge(
            recipe, mask_seed=mask_seed, dtype=dtype, tokenizer=tokenizer, download=download
        )
        for line in describe(opened):
            typer.echo(line)
        for line in _write(opened, out, device=device, max_shard_size=max_shard_size):
            typer.echo(line)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", INTERRUPTED)
    except OSError as error:
        fail(f"{out}: {error}; nothing was written", FAILED)


def describe(merge: FileMerge) -> Iterator[str]:
    """Yield the models, the recipe, and the notes on what differs from the file."""
    from ..format import recipe_line

    for owner, place in merge.parents.places.items():
        yield f"{owner}: {place.text}"
    yield f"recipe: {recipe_line(merge.recipe)}"
    for note in merge.notes:
        yield f"note: {note}"


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; yields a function of bytes done and bytes in total."""
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


def _write(merge: FileMerge, out: Path, *, device: str, max_shard_size: str) -> Iterator[str]:
    """Write the merged model, then yield what was written."""
    from ...merge.files.export import MERGEKIT_FILE
    from ..format import duration
    from ..models.reproduce import write_merge

    start = time.monotonic()
    with progress_bar(console()) as on_tensor:
        folder = write_merge(
            merge, out, device=device, max_shard_size=max_shard_size, on_tensor=on_tensor
        )
    files = list(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    yield (
        f"wrote {folder}: {size / 1e6:,.1f} MB in {len(files)} weight file{'s'[: len(files) - 1]}, "
        f"{duration(time.monotonic() - start)}"
    )
    if not (folder / MERGEKIT_FILE).is_file():
        yield f"no {MERGEKIT_FILE}: mergekit cannot express this recipe (recipe.json says why)"
