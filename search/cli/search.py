"""The command `heterosis search`: its options, what is printed, and a soft stop on Ctrl-C."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from .common import FAILED, INTERRUPTED, console, fail, quieten_libraries, say

if TYPE_CHECKING:
    from ..config.config import Config

ResultsOption = Annotated[
    Path | None, typer.Option("--results", help="Folder of the study; default results/NAME.")
]


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
    from .menu import EndActions, ask_what_next

    wishes = EndActions(show_, compare_, export_, chat_)
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
        from ..config.load import load_with_options

        return load_with_options(str(config), results, **search)
    if any(given is not None for given in (results, run_seed, warm_start)):
        raise ValueError(
            "--continue keeps the study's folder, its seed and what it began with; leave out "
            "--results, --run-seed and --warm-start"
        )
    from ..study.resume import continued

    return continued(study, trials)


def _run(loaded: Config) -> None:
    """Run a search, and print what it found."""
    from ..leaderboard.sentences import found_lines
    from ..leaderboard.views import table
    from ..run import run_search
    from ..study.progress import make_reporter

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


@contextmanager
def soft_stop(note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a soft end; a second one interrupts at once.

    Yields:
        A function that says whether the search should end after the current candidate.
    """
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        note(
            f"{signal.Signals(number).name}: finishing the current candidate, then confirming the "
            "best; once more to stop at once (nothing finished is lost)"
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
