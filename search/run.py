"""One `heterosis search`: locks the folder, resumes what is there, runs, writes the views.

Knows assembly, study and leaderboard by what they do, and nothing of how they do it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..evals.scorer.scorer import PathReport, Scorer
from ..evals.scores.fingerprint import parts_of
from ..evals.scores.store import ItemStore
from ..evals.stats.racing import Race
from ..evals.tasks.splits import CONFIRM, GUARD, SEARCH
from .config.config import Config
from .evaluate.evaluator import Evaluator
from .evaluate.ray_workers import RayWorkers
from .evaluate.workers import Keep, LocalWorkers, Workers
from .leaderboard.board import Leaderboard, read_leaderboard
from .leaderboard.views import write_views
from .propose.pace import most_workers
from .propose.stages import KEY, with_warm_start
from .report.index import keep_index
from .report.page import write_report
from .storage.candidate import candidate_of
from .storage.journal import Journal, lock_folder
from .study.budget import Budget, limits_of, settle_deadline
from .study.build import build_engine, build_evaluator, make_scorer, parent_facts, set_threads
from .study.loop import MakeWorkers
from .study.page_refresh import PageRefresh
from .study.parts import Parts, choose_device, laid_out, open_parts
from .study.progress import Reporter
from .study.resume import check_identity, identity
from .study.study import Study
from .study.warm_start import WarmStart, settle_warm_start
from .study.worker import WorkerSetup


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
    make_workers: MakeWorkers | None = None,
) -> Outcome:
    """Run a search, or continue the one that lies in the results folder.

    Args:
        config: What to search.
        reporter: Hears of every candidate.
        should_stop: Asked between candidates; true ends the search softly.
        make_workers: Makes the workers; default: those of `workers`.

    Raises:
        ValueError: If configuration, parents, tasks or the folder cannot be used.
    """
    folder = config.results_folder
    parts = open_parts(config)
    with lock_folder(folder), PageRefresh(reporter, folder) as reporter:
        journal = Journal(folder, write=True, n_values=len(parts.objective.criteria))
        known = journal.manifest
        parts = laid_out(replace(parts, config=config), known.get("config"))
        now = identity(parts)
        if known:
            check_identity(known["identity"], now, folder)
        warm = settle_warm_start(parts, known)
        stages = parts.stages if warm is None else with_warm_start(parts.stages, warm.recipes)
        evaluator, machine = _evaluator(parts, known.get("machine", {}), reporter)
        machine["deadline"] = settle_deadline(config.search, known, datetime.datetime.now())
        requests = {"requests": parts_of(evaluator.scorer.fingerprint)}
        if known:
            check_identity(known["identity"], requests, folder)
        journal.write_manifest(_manifest(parts, now | requests, machine, warm))
        if journal.trials:
            reporter.note(f"{folder}: {len(journal.trials)} finished candidates found; continuing")
        study = Study(
            evaluator,
            stages,
            parts.config.search,
            parts.baselines,
            journal,
            ItemStore(folder / "items"),
            reporter,
            _budget(parts, evaluator.scorer, machine["deadline"], journal),
            should_stop,
            make_workers or _make_workers(parts, machine, now | requests, reporter),
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


def _evaluator(
    parts: Parts, known: Mapping[str, Any], reporter: Reporter
) -> tuple[Evaluator, dict[str, Any]]:
    """Check the parents' values, then load the model and prepare the scorer."""
    parent_facts(parts).check_values()
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    threads = set_threads(parts, scorer, known.get("threads"))
    report = scorer.self_check()
    scorer.path = known.get("path", report.path)
    machine = {"device": choose_device(parts.config), "threads": threads, "path": scorer.path}
    reporter.note(_said_of(report, machine))

    return build_evaluator(parts, engine, scorer), machine


def _make_workers(
    parts: Parts, machine: Mapping[str, Any], known: Mapping[str, Any], reporter: Reporter
) -> MakeWorkers:
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

    def make_workers(_: Evaluator, race: Race | None, keep: Keep) -> Workers:
        setup = WorkerSetup(parts.config, machine, plain, race)
        return RayWorkers(section, setup, gpus, keep)

    return make_workers


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
