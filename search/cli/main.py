"""The command line: names, options and exit codes of the commands; no torch until one needs it.

Exit codes: 0 done; 1 the run failed (a defect, or an export that does not verify); 2 the input is
wrong; 130 ended early by Ctrl-C or SIGTERM, to be continued by the same command.
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
from .common import FAILED, WRONG_INPUT, console, fail
from .dashboard import dashboard
from .evaluate import evaluate
from .export import export, reproduce
from .leaderboard import leaderboard
from .merge import merge
from .report import report
from .search import search
from .show import compare, show
from .tasks import list_or_show_tasks

app = typer.Typer(
    name="heterosis",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search overnight for the best merge of fine-tuned models; read in the morning a "
    "leaderboard that you can trust.",
)
ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A search.yaml, its folder, or `quickstart`.")
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    """Set up logging, quieten the libraries."""
    if version:
        import importlib.metadata

        console().print(importlib.metadata.version("heterosis"), highlight=False)
        raise typer.Exit
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("heterosis").setLevel(logging.INFO if verbose else logging.WARNING)


app.command()(search)
app.command()(check)
app.command()(export)
app.command()(merge)
app.command("tasks")(list_or_show_tasks)
app.command("eval")(evaluate)
app.command()(chat)
app.command()(reproduce)
app.command()(dashboard)
app.command()(leaderboard)
app.command()(show)
app.command()(compare)
app.command("report")(report)


def main() -> None:
    """Run the command line; what went wrong is one line on stderr, and an exit code."""
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
    """Whether our own code raised it, with a message for the person; all else is a defect."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("heterosis.")
