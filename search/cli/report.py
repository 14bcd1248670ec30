"""The command `heterosis report`: the HTML page of a study, or of all studies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Results folder of a study, or of many.")
    ] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Page to write; default: report.html or index.html."
        ),
    ] = None,
) -> None:
    """Write the report of a study as one self-contained HTML page.

    For a folder of studies: a page for each, and an index.
    """
    import optuna

    from ..report.index import write_index
    from ..report.page import draw
    from ..storage.files import FULL
    from ..storage.journal import JOURNAL, find_studies

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    is_study = (study / JOURNAL).is_file()
    try:
        if is_study:
            typer.echo(f"report: {draw(study, out)[1]}")
        else:
            index = write_index(study, find_studies(study), draw, _warn, out)
            typer.echo(f"index: {index}")
    except OSError as error:
        if error.errno in FULL:
            raise
        folder = study if out is None or not is_study else out.absolute().parent
        command = "--out FILE" if is_study else "heterosis report STUDY --out FILE"
        raise ValueError(
            f"{folder}: not a folder that a page can be written to ({error.strerror}); make it "
            f"writable, or name a file elsewhere: {command}"
        ) from error


def _warn(error: str) -> None:
    typer.echo(f"heterosis: {error}", err=True)
