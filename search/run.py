"""One `heterosis search`: locks the folder, resumes what is there, runs, writes the views.

Knows assembly, study and leaderboard by what they do, and nothing of how they do it.
"""

from __future__ import annotations

import datetime
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from ..evals.fingerprint import parts_of
from ..evals.racing import Race
from ..evals.scorer import PathReport, Scorer
from ..evals.splits import CONFIRM, GUARD, SEARCH
from ..evals.store import ItemStore
from ..merge.engine import MergeEngine
from .assembly import (
    Parts,
    build_engine,
    check_identity,
    choose_device,
    identity,
    laid_out,
    make_scorer,
    open_parts,
    parent_facts,
    set_threads,
)
from .bench import Bench
from .budget import Budget, limits_of, settle_deadline
from .candidate import candidate_of
from .config import Config
from .generations import most_workers
from .index import keep_index
from .journal import Journal, lock_folder
from .leaderboard import Leaderboard, read_leaderboard
from .progress import Reporter
from .ray_workers import RayWorkers
from .redraw import Redrawing
from .report import write_report
from .stages import KEY
from .staging import with_warm_start
from .study import Hire, Study
from .views import write_views
from .warm_start import WarmStart, settle_warm_start
from .worker_side import Setup
from .workers import Keep, LocalWorkers, Workers


@dataclass(frozen=True)
class Outcome:
    """What a run of a search has left.

    Attributes:
        board: The leaderboard.
        finished: Whether all trials that were asked for are done.
    """

    board: Leaderboard
    finished: bool


def run_search(
    config: Config,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    hire: Hire | None = None,
) -> Outcome:
    """Run a search, or continue the one that lies in the results folder.

    Args:
        config: What to search.
        reporter: Hears of every candidate.
        should_stop: Asked between candidates; true ends the search softly.
        hire: Makes the workers; default: those of `workers`.

    Raises:
        ValueError: If configuration, parents, tasks or the folder cannot be used.
    """
    folder = config.results_folder
    parts = open_parts(config)
    with lock_folder(folder), Redrawing(reporter, folder) as reporter:
        journal = Journal(folder, write=True, n_values=len(parts.objective.criteria))
        known = journal.manifest
        parts = laid_out(replace(parts, config=config), known.get("config"))
        now = identity(parts)
        if known:
            check_identity(known["identity"], now, folder)
        warm = settle_warm_start(parts, known)
        stages = parts.stages if warm is None else with_warm_start(parts.stages, warm.recipes)
        bench, machine = _bench(parts, known.get("machine", {}), reporter)
        machine["deadline"] = settle_deadline(config.search, known, datetime.datetime.now())
        requests = {"requests": parts_of(bench.scorer.fingerprint)}
        if known:
            check_identity(known["identity"], requests, folder)
        journal.write_manifest(_manifest(parts, now | requests, machine, warm))
        if journal.trials:
            reporter.note(f"{folder}: {len(journal.trials)} finished candidates found; continuing")
        study = Study(
            bench,
            stages,
            parts.config.search,
            parts.baselines,
            journal,
            ItemStore(folder / "items"),
            reporter,
            _budget(parts, bench.scorer, machine["deadline"], journal),
            should_stop,
            hire or _hire(parts, machine, now | requests, reporter),
        )
        finished = study.run()
        board = read_leaderboard(folder, journal)
        write_views(board)
        reporter.close()
        _draw(board, journal, reporter)
    return Outcome(board, finished)


def _draw(board: Leaderboard, journal: Journal, reporter: Reporter) -> None:
    """Draw the study's page, and keep the list of studies true; it is whole without them."""
    folder = board.folder
    try:
        write_report(board, journal)
    except OSError as error:
        reporter.note(f"the page was not drawn ({error}); heterosis report {folder} draws it")
    try:
        keep_index(board)
    except OSError as error:
        reporter.note(
            f"the list of studies was not drawn ({error}); heterosis report {folder.parent} draws "
            "it"
        )


def _bench(
    parts: Parts, known: Mapping[str, Any], reporter: Reporter
) -> tuple[Bench, dict[str, Any]]:
    """Check the parents' values, then load the model and prepare the scorer."""
    parent_facts(parts).check_values()
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    threads = set_threads(parts, scorer, known.get("threads"))
    report = scorer.self_check()
    scorer.path = known.get("path", report.path)
    machine = {"device": choose_device(parts.config), "threads": threads, "path": scorer.path}
    reporter.note(_said_of(report, machine))

    return bench_of(parts, engine, scorer), machine


def bench_of(parts: Parts, engine: MergeEngine, scorer: Scorer) -> Bench:
    """Engine and scorer together; a smaller scorer is made where memory runs out."""

    def halved() -> Scorer:
        smaller = make_scorer(parts, engine.model, halved=True)
        smaller.path = scorer.path
        return smaller

    return Bench(engine, scorer, parts.objective, halved)


def _hire(
    parts: Parts, machine: Mapping[str, Any], known: Mapping[str, Any], reporter: Reporter
) -> Hire:
    """What makes the workers that the configuration asks for."""
    section = parts.config.workers
    if section is None or section.engine == "local":
        return LocalWorkers
    own, most = parts.stages[-1].pace, most_workers(section)
    if section.num > min(most, own.generation + own.ahead):
        reporter.note(
            f"{section.num} workers, but generations of {own.generation} candidates and "
            f"{own.ahead} ahead are laid out for {most}: some will wait; a new study with "
            f"`workers.most: {section.num}`, its `generation` and `ahead` left out, feeds them all"
        )
    gpus = section.gpus_per_worker if machine["device"].startswith("cuda") else 0
    plain = json.loads(json.dumps(known))

    def hire(_: Bench, race: Race | None, keep: Keep) -> Workers:
        setup = Setup(parts.config, machine, plain, race)
        return RayWorkers(section, setup, gpus, keep)

    return hire


def _budget(parts: Parts, scorer: Scorer, deadline: str | None, journal: Journal) -> Budget:
    candidates = map(candidate_of, journal.trials)  # read only where their time counts
    section = parts.config.search
    confirmed = section.finalists + len(parts.baselines)
    items = confirmed * (scorer.items(CONFIRM) + scorer.items(GUARD))
    if section.racing:  # finalists that were stopped are scored on the rest, at most
        items += section.finalists * scorer.items(SEARCH)
    return Budget(limits_of(section, deadline, candidates), items)


def _said_of(report: PathReport, machine: Mapping[str, Any]) -> str:
    return (
        f"scoring by the {machine['path']} path ({report.reason}) on {machine['device']}, "
        f"{machine['threads']} CPU thread(s)"
    )


def _manifest(
    parts: Parts, now: dict[str, Any], machine: dict[str, Any], warm: WarmStart | None
) -> dict[str, Any]:
    kept = {} if warm is None else {KEY: warm.to_dict()}
    return kept | {
        "config": parts.config.to_dict(),
        "identity": now,
        "machine": machine,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


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
