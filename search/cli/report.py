"""The command `heterosis report`: pages of a study, or of all studies in a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import console, say


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
    import optuna

    from ..report.page import draw
    from ..storage.journal import JOURNAL, find_studies

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    screen = console()
    if (study / JOURNAL).is_file():
        say(screen, f"report: {draw(study, out)[1]}")
        return
    from ..report.index import draw_index

    folders = find_studies(study)
    say(screen, f"index: {draw_index(study, folders, draw, _complain, out)}")


def _complain(error: str) -> None:
    sys.stderr.write(f"heterosis: {error}\n")
