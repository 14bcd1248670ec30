"""The command `heterosis check`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import console, quieten_libraries, say


def check(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A search.yaml, its folder, or a study's folder."),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Delta statistics of every layer group.")
    ] = False,
) -> None:
    """Check parents, tasks, memory and time before a search is started; writes nothing.

    Of a study's folder: whether it can be continued and exported as it was begun.
    """
    from ..storage.journal import JOURNAL

    screen = console()
    quieten_libraries()
    if (Path(config) / JOURNAL).is_file():
        from ..check import check_study

        for line in check_study(Path(config), layers):
            say(screen, line)
        return
    from ..check import check as lines
    from ..config.load import load_with_options

    for line in lines(load_with_options(config), layers):
        say(screen, line)
    say(screen, f"ready: heterosis search {shlex.quote(config)}")
