"""The command `heterosis check`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import quieten_libraries


def check(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A search.yaml, its folder, `quickstart`, or a study's folder (results/NAME).",
        ),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Print delta statistics of every layer group.")
    ] = False,
) -> None:
    """Check parents, tasks, memory and time before a search; writes nothing.

    Of a study's folder: whether it can be continued and exported.
    """
    quieten_libraries()
    from ..check import check, check_study
    from ..config.load import load_with_options
    from ..storage.journal import JOURNAL

    if (Path(config) / JOURNAL).is_file():
        lines, ready = check_study(Path(config), layers), None
    else:
        lines = check(load_with_options(config), layers)
        ready = f"ready: heterosis search {shlex.quote(config)}"
    for line in lines:
        typer.echo(line)
    if ready:
        typer.echo(ready)
