"""`heterosis merge`: a merge from files to files, and what a person sees of it.

Knows rich and the merge room's stand-alone merge; no study, no scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..merge.export import MERGEKIT_FILE
from ..merge.standalone import FileMerge, merge_files
from .card import licence_texts, merge_card
from .format import duration, recipe_line


def describe(merge: FileMerge) -> Iterator[str]:
    """Say what will be merged, and in what it differs from what the file asks for."""
    for owner, place in merge.parents.places.items():
        yield f"{owner}: {place.text}"
    yield f"recipe: {recipe_line(merge.recipe)}"
    for note in merge.notes:
        yield f"note: {note}"


@contextmanager
def shown(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields what is told bytes done and bytes in all."""
    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        bar = progress.add_task("merging", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def run_merge(
    merge: FileMerge, out: Path, console: Console, *, device: str, max_shard_size: str
) -> Iterator[str]:
    """Merge into a directory, with a progress bar on a terminal; then say what was written."""
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
