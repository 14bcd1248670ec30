"""The command line: names, options and exit codes of the commands; no torch until one needs it.

Exit codes: 0 done; 1 the run failed (a defect, or an export that does not verify); 2 the input is
wrong; 130 ended early by Ctrl-C or SIGTERM, to be continued by the same command.
"""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .board_commands import leaderboard
from .eval_commands import evaluate, list_or_show_tasks
from .morning_commands import StudyArgument, chat, dashboard, reproduce
from .report_commands import report
from .show_commands import compare, show
from .terminal import (
    FAILED,
    INTERRUPTED,
    WRONG_INPUT,
    console,
    fail,
    quieten_libraries,
    quieten_transformers,
    say,
)

if TYPE_CHECKING:
    from .config import Config

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
ResultsOption = Annotated[
    Path | None, typer.Option("--results", help="Folder of the study; default results/NAME.")
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


@app.command()
def search(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A search.yaml, its folder, or `quickstart`."),
    ] = None,
    results: ResultsOption = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=0, help="Candidates to propose, overrides search.trials; with --continue: more."
        ),
    ] = None,
    run_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the samplers; overrides search.run_seed.")
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="STUDY", help="A former study, whose best recipes are tried first."),
    ] = None,
    continue_: Annotated[
        Path | None,
        typer.Option("--continue", metavar="STUDY", help="Go on with a study, in place of CONFIG."),
    ] = None,
    menu: Annotated[
        bool, typer.Option("--menu/--no-menu", help="Ask on a terminal what to do at the end.")
    ] = True,
    show_: Annotated[bool, typer.Option("--show", help="At the end: show the winner.")] = False,
    compare_: Annotated[
        str | None,
        typer.Option("--compare", metavar="TRIAL", help="At the end: compare the winner with it."),
    ] = None,
    export_: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="At the end: write the winner there."),
    ] = None,
    chat_: Annotated[bool, typer.Option("--chat", help="At the end: chat with it.")] = False,
) -> None:
    """Search for the best merge, or continue the search that lies in the results folder.

    The same command continues after Ctrl-C, a crash or a kill; no finished candidate is lost. What
    is to be done at the end is done if the search ends by itself, and then no menu asks.
    """
    from .menu import Wishes, ask_what_next

    wishes = Wishes(show_, compare_, export_, chat_)
    wishes.check()
    loaded = _chosen(config, continue_, results, trials, run_seed, warm_start)
    _run(loaded)
    wishes.fulfil(loaded.results_folder)
    if menu and not wishes:
        ask_what_next(loaded.results_folder, _run)


def _chosen(
    config: str | None,
    study: Path | None,
    results: Path | None,
    trials: int | None,
    run_seed: int | None,
    warm_start: Path | None,
) -> Config:
    """The configuration that is named, or that of a study."""
    if (config is None) == (study is None):
        raise ValueError(
            "a search needs one of CONFIG and --continue STUDY; give a search.yaml or a study"
        )
    if study is None:
        search = {"trials": trials, "run_seed": run_seed, "warm_start": warm_start}
        return _load(str(config), results, **search)
    if any(given is not None for given in (results, run_seed, warm_start)):
        raise ValueError(
            "--continue keeps the study's folder, its seed and what it began with; leave out "
            "--results, --run-seed and --warm-start"
        )
    from .continuing import continued

    return continued(study, trials)


def _run(loaded: Config) -> None:
    """Run a search, and print what it found."""
    from .progress import make_reporter
    from .run import run_search, soft_stop
    from .views import found_lines, table

    screen = console()
    quieten_libraries()
    remedy = "nothing finished is lost; the same command continues"
    try:
        with make_reporter(screen) as reporter, soft_stop(reporter.note) as should_stop:
            outcome = run_search(loaded, reporter, should_stop)
    except KeyboardInterrupt:
        fail(f"interrupted; {remedy}", INTERRUPTED)
    except OSError as error:
        fail(f"{error}; {remedy}", FAILED)
    folder = loaded.results_folder
    screen.print(table(outcome.board, width=screen.width))
    for line in found_lines(outcome.board):
        say(screen, line)
    say(screen, f"report: {folder}/report.html, leaderboard.md and leaderboard.csv")
    if not outcome.finished:
        say(screen, "ended early: the same command continues")
        raise typer.Exit(INTERRUPTED)
    if outcome.board.winner:
        say(screen, f"export the winner: heterosis export {shlex.quote(str(folder))} --out DIR")


@app.command()
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
    from .journal import JOURNAL

    screen = console()
    quieten_libraries()
    if (Path(config) / JOURNAL).is_file():
        from .check import check_study

        for line in check_study(Path(config), layers):
            say(screen, line)
        return
    loaded = _load(config)
    from .check import check as lines

    for line in lines(loaded, layers):
        say(screen, line)
    say(screen, f"ready: heterosis search {shlex.quote(config)}")


@app.command()
def export(
    study: StudyArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to write.")],
    trial: Annotated[
        int | None, typer.Option(min=0, help="Trial to export; default: the winner.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
) -> None:
    """Write a candidate as a Hugging Face model directory, scored again from its own files."""
    quieten_libraries()
    from .export import export as export_candidate

    screen = console()
    done = export_candidate(study, out, trial, max_shard_size)
    say(screen, f"{done.row.candidate.name} of {study} is in {done.folder}")
    say(
        screen,
        f"scored again from the saved files: all {' and '.join(done.splits)} items come out alike",
    )
    say(screen, "lm-eval's own command line gives the confirm score:")
    for command in done.commands:
        say(screen, f"  {command}")


@app.command()
def merge(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="mergekit's YAML, a recipe.json, or its folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to write.")],
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
    device: Annotated[
        str, typer.Option(help="Where tensors are merged: cpu, cuda, cuda:1.")
    ] = "cpu",
    mask_seed: Annotated[
        int | None, typer.Option(min=0, help="Of random masks; default: the recipe's, else 0.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: RECIPE's, else the base's."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Where vocabularies differ: base or union.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models from the hub that are not here.")
    ] = False,
) -> None:
    """Merge models file to file, as mergekit's YAML or a recipe.json says.

    One tensor of each model is in memory at a time. Relative paths of models are taken from
    RECIPE's directory, then from the working directory. What cannot be had as RECIPE asks is
    refused; what is equal only in expectation or up to rounding is told in a note.
    """
    try:
        quieten_transformers()
        from ..merge.standalone import open_merge
        from ..merge.writer import check_goal, shard_bytes
        from .merging import describe, run_merge

        screen = console()
        check_goal(out)
        shard_bytes(max_shard_size)
        opened = open_merge(
            recipe, mask_seed=mask_seed, dtype=dtype, tokenizer=tokenizer, download=download
        )
        for line in describe(opened):
            say(screen, line)
        for line in run_merge(opened, out, screen, device=device, max_shard_size=max_shard_size):
            say(screen, line)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", INTERRUPTED)
    except OSError as error:
        fail(f"{out}: {error}; nothing was written", FAILED)


app.command("tasks")(list_or_show_tasks)
app.command("eval")(evaluate)
app.command()(chat)
app.command()(reproduce)
app.command()(dashboard)
app.command()(leaderboard)
app.command()(show)
app.command()(compare)
app.command("report")(report)


def _load(name: str, results: Path | None = None, **search: int | Path | None) -> Config:
    """Read a configuration and lay the command line's options over it, those of `search` by key."""
    from .config import find_config, load_config

    loaded = load_config(find_config(name))
    given = {key: value for key, value in search.items() if value is not None}
    given |= {key: value.absolute() for key, value in given.items() if isinstance(value, Path)}
    section = loaded.search.model_copy(update=given)
    update = {"search": section} | ({} if results is None else {"results": results})
    return loaded.model_copy(update=update)


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
