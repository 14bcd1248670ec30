"""The command `heterosis search`, with a soft stop on Ctrl-C."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from .common import CONFIG, FAILED, INTERRUPTED, console, fail, quieten_libraries

if TYPE_CHECKING:
    from ..config.config import Config


def search(
    config: Annotated[str | None, CONFIG] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results folder of the study; default: results/NAME."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=0, help="Candidates to propose (search.trials); with --continue: how many more."
        ),
    ] = None,
    run_seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the samplers (search.run_seed).")
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(metavar="STUDY", help="An earlier study whose best recipes are tried first."),
    ] = None,
    continue_: Annotated[
        Path | None,
        typer.Option("--continue", metavar="STUDY", help="Study to continue, instead of CONFIG."),
    ] = None,
    menu: Annotated[
        bool, typer.Option("--menu/--no-menu", help="On a terminal: show a menu after the search.")
    ] = True,
    show_: Annotated[bool, typer.Option("--show", help="Afterwards: show the winner.")] = False,
    compare_: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="TRIAL", help="Afterwards: compare the winner with TRIAL."
        ),
    ] = None,
    export_: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Afterwards: export the winner to DIR."),
    ] = None,
    chat_: Annotated[
        bool, typer.Option("--chat", help="Afterwards: chat with the winner.")
    ] = False,
) -> None:
    """Search for the best merge, or continue the search in the results folder.

    The same command continues after Ctrl-C, a crash or a kill; no finished candidate is lost.
    `--show`, `--compare`, `--export` and `--chat` run after a complete search, without the menu.
    """
    from .menu import EndActions, ask_what_next

    actions = EndActions(show_, compare_, export_, chat_)
    actions.check()
    loaded = _load(config, continue_, results, trials, run_seed, warm_start)
    _run(loaded)
    actions.run(loaded.results_folder)
    if menu and not actions:
        ask_what_next(loaded.results_folder, _run)


def _load(
    config: str | None,
    study: Path | None,
    results: Path | None,
    trials: int | None,
    run_seed: int | None,
    warm_start: Path | None,
) -> Config:
    """Return the configuration that is named, or that of the study to continue."""
    if (config is None) == (study is None):
        raise ValueError(
            "a search needs one of CONFIG and --continue STUDY; give a search.yaml or a study"
        )
    if study is None:
        from ..config.load import load_with_options

        options = {"trials": trials, "run_seed": run_seed, "warm_start": warm_start}
        return load_with_options(str(config), results, **options)
    if any(option is not None for option in (results, run_seed, warm_start)):
        raise ValueError(
            "--continue keeps the study's folder, seed and warm start; leave out --results, "
            "--run-seed and --warm-start"
        )
    from ..study.resume import continued

    return continued(study, trials)


def _run(config: Config) -> None:
    """Run a search and print its result."""
    from ..leaderboard.sentences import summary_lines
    from ..leaderboard.views import table
    from ..run import run_search
    from ..study.progress import make_reporter

    screen = console()
    quieten_libraries()
    remedy = "finished candidates are kept; the same command continues"
    try:
        with make_reporter(screen) as reporter, soft_stop(reporter.note) as should_stop:
            outcome = run_search(config, reporter, should_stop)
    except KeyboardInterrupt:
        fail(f"interrupted; {remedy}", INTERRUPTED)
    except OSError as error:
        fail(f"{error}; {remedy}", FAILED)
    folder = config.results_folder
    screen.print(table(outcome.board, width=screen.width))
    for line in summary_lines(outcome.board):
        typer.echo(line)
    written = "report: {}/report.html, " if outcome.has_page else "leaderboard: {}/"
    typer.echo(f"{written.format(folder)}leaderboard.md and leaderboard.csv")
    if not outcome.finished:
        typer.echo("ended early: the same command continues")
        raise typer.Exit(INTERRUPTED)
    if outcome.board.winner:
        typer.echo(f"export the winner: heterosis export {shlex.quote(str(folder))} --out DIR")


@contextmanager
def soft_stop(note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C or SIGTERM a soft stop; a second one interrupts immediately.

    Yields:
        A function that returns whether to stop after the current candidate.
    """
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        note(
            f"{signal.Signals(number).name}: finishing the current candidate, then confirming the "
            "best; repeat to stop immediately (finished candidates are kept)"
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
