"""The command `heterosis report`: pages of a study, or of all studies in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from .terminal import console, say


def report(
    study: Annotated[
        Path, typer.Argument(metavar="[STUDY]", help="A study's folder, or a folder of studies.")
    ] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; default: report.html or index.html."),
    ] = None,
) -> None:
    """Draw a study as one HTML page that needs no network.

    Of a folder of studies: a page for each, and one that lists them.
    """
    from .journal import JOURNAL, find_studies

    screen = console()
    if (study / JOURNAL).is_file():
        from .report import draw

        say(screen, f"report: {draw(study, out)[1]}")
        return
    say(screen, f"index: {_draw_all(study, find_studies(study), out)}")


def _draw_all(results: Path, folders: list[Path], out: Path | None) -> Path:
    """Draw every study's page, then the page that lists them; what cannot be read is told."""
    from .journal import StudyError
    from .report import INDEX, draw, index_entry, index_page
    from .views import write_whole

    goal = out or results / INDEX
    entries: list[dict[str, Any]] = []
    for folder in folders:
        try:
            board, path = draw(folder)
        except StudyError as error:
            sys.stderr.write(f"heterosis: {error}\n")
            entries.append({"name": folder.name, "error": str(error)})
        else:
            link = path.resolve().as_uri() if out else f"{quote(folder.name)}/{path.name}"
            entries.append(index_entry(board, link))
    write_whole(goal, index_page(entries))
    return goal
