"""What the commands of the command line share: the screen, exit codes, quiet libraries."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def console() -> Console:
    """The screen: as wide as it is, or 200 columns where the output is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(width=width)


def say(console: Console, message: str) -> None:
    """Print a line as it is."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def quieten_libraries() -> None:
    """Leave the terminal to us: no progress bars, no banners of the libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("lm_eval", "datasets", "optuna", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import optuna

    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    quieten_transformers()


def quieten_transformers() -> None:
    """The same where transformers is all that speaks: no need to import the others."""
    for name in ("transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on stderr."""
    sys.stderr.write(f"heterosis: error: {message}\n")
    sys.exit(code)


StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A study's results folder, as results/NAME.")
]
