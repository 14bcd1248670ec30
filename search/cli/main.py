"""The command line: its commands, exit codes and logging; no torch until a command needs it.

Exit codes: 0 success; 1 the run failed (a defect, or an export that does not verify); 2 the input
is wrong; 130 stopped early by Ctrl-C or SIGTERM, and the same command continues.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from typing import Annotated

import typer

from .chat import chat
from .check import check
from .common import FAILED, WRONG_INPUT, fail
from .dashboard import dashboard
from .evaluate import evaluate
from .export import export, reproduce
from .leaderboard import leaderboard
from .merge import merge
from .report import report
from .search import search
from .show import compare, show
from .tasks import tasks

app = typer.Typer(
    name="heterosis",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search for the best merge of fine-tuned language models, overnight and with a "
    "leaderboard that you can trust.",
)
app.command()(search)
app.command()(check)
app.command()(leaderboard)
app.command()(show)
app.command()(compare)
app.command()(report)
app.command()(dashboard)
app.command()(chat)
app.command()(export)
app.command()(reproduce)
app.command()(merge)
app.command()(tasks)
app.command("eval")(evaluate)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Set up logging."""
    if version:
        import importlib.metadata

        typer.echo(importlib.metadata.version("heterosis"))
        raise typer.Exit
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("heterosis").setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: drafts are removed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except OSError as error:
        fail(str(error), FAILED)
    except (ValueError, RuntimeError) as error:
        if not _is_ours(error):
            raise
        fail(str(error), WRONG_INPUT if isinstance(error, ValueError) else FAILED)


def _is_ours(error: BaseException) -> bool:
    """Return whether our code raised it, with a message for the user; all else is a defect."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("heterosis.")
