"""One run of `heterosis search`: lock the folder, resume, search, write leaderboard and report."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..evals.scorer.scorer import Scorer
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
from .report.index import refresh_index
from .report.page import write_report
from .storage.candidate import candidate_of
from .storage.journal import Journal, lock_folder
from .study.budget import Budget, limits_of, settle_deadline
from .study.build import build_engine, build_evaluator, make_scorer, parent_statistics, set_threads
from .study.loop import MakeWorkers
from .study.page_refresh import PageRefresh
from .study.parts import Parts, choose_device, open_parts, with_pace
from .study.progress import Reporter
from .study.resume import check_identity, identity
from .study.study import Study
from .study.warm_start import WarmStart, settle_warm_start
from .study.worker import WorkerSetup


@dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        board: The leaderboard.
        finished: Whether the search is complete.
        has_page: Whether the study's page was drawn.
    """

    board: Leaderboard
    finished: bool
    has_page: bool = True


def run_search(
    config: Config,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    make_workers: MakeWorkers | None = None,
) -> Outcome:
    """Run a search, or continue the one in the results folder.

    Args:
        config: Of the search.
        reporter: Receives every candidate.
        should_stop: Called between candidates; true stops the search softly.
        make_workers: Factory of the workers; default: that of the section `workers`.

    Raises:
        ValueError: If configuration, parents, tasks or the folder cannot be used.
    """
    folder = config.results_folder
    parts = open_parts(config)
    with lock_folder(folder), PageRefresh(reporter, folder) as reporter:
        journal = Journal(folder, write=True, n_values=len(parts.objective.criteria))
        manifest = journal.manifest  # empty at the start of a study
        parts = with_pace(replace(parts, config=config), manifest.get("config"))
        ingredients = identity(parts)
        if manifest:
            check_identity(manifest["identity"], ingredients, folder)
        warm = settle_warm_start(parts, manifest)
        stages = parts.stages if warm is None else with_warm_start(parts.stages, warm.recipes)
        evaluator, machine = _load_model(parts, manifest.get("machine", {}), reporter)
        machine["deadline"] = settle_deadline(config.search, manifest, datetime.datetime.now())
        requests = {"requests": parts_of(evaluator.scorer.fingerprint)}
        if manifest:
            check_identity(manifest["identity"], requests, folder)
        ingredients |= requests
        journal.write_manifest(_manifest(parts, ingredients, machine, warm))
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
            make_workers or worker_factory(parts, machine, ingredients, reporter),
        )
        finished = study.run()
        board = read_leaderboard(folder, journal)
        write_views(board)
        reporter.close()
        has_page = _write_pages(board, journal, reporter)
    return Outcome(board, finished, has_page)


def _load_model(
    parts: Parts, machine: Mapping[str, Any], reporter: Reporter
) -> tuple[Evaluator, dict[str, Any]]:
    """Check the parents' values, load the model, prepare the scorer.

    Args:
        parts: Of the search.
        machine: As in the manifest; empty at the start of a study.
        reporter: Receives the scoring path.

    Returns:
        The evaluator, and the machine for the manifest.
    """
    parent_statistics(parts).check_values()
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    threads = set_threads(parts, scorer, machine.get("threads"))
    report = scorer.self_check()
    scorer.path = machine.get("path", report.path)
    device = choose_device(parts.config)
    reporter.note(
        f"scoring by the {scorer.path} path ({report.reason}) on {device}, {threads} CPU thread(s)"
    )
    machine = {"device": device, "threads": threads, "path": scorer.path}
    return build_evaluator(parts, engine, scorer), machine


def worker_factory(
    parts: Parts, machine: Mapping[str, Any], ingredients: Mapping[str, Any], reporter: Reporter
) -> MakeWorkers:
    """Return the factory of the workers that the configuration names."""
    section = parts.config.workers
    if section is None or section.engine == "local":
        return LocalWorkers
    pace, most = parts.stages[-1].pace, most_workers(section)
    if section.num > min(most, pace.generation + pace.ahead):
        reporter.note(
            f"{section.num} workers, but generations of {pace.generation} candidates and "
            f"{pace.ahead} ahead are sized for {most}: some will be idle; start a new study with "
            f"`workers.most: {section.num}` and without `generation` and `ahead`"
        )
    gpus = section.gpus_per_worker if machine["device"].startswith("cuda") else 0
    plain = json.loads(json.dumps(ingredients))

    def ray_workers(_: Evaluator, race: Race | None, keep: Keep) -> Workers:
        return RayWorkers(section, WorkerSetup(parts.config, machine, plain, race), gpus, keep)

    return ray_workers


def _budget(parts: Parts, scorer: Scorer, deadline: str | None, journal: Journal) -> Budget:
    candidates = map(candidate_of, journal.trials)  # lazy: read only if their time counts
    section = parts.config.search
    confirmed = section.finalists + len(parts.baselines)
    items = confirmed * (scorer.items(CONFIRM) + scorer.items(GUARD))
    if section.racing:  # upper bound: raced finalists are scored on the other search items
        items += section.finalists * scorer.items(SEARCH)
    return Budget(limits_of(section, deadline, candidates), items)


def _write_pages(board: Leaderboard, journal: Journal, reporter: Reporter) -> bool:
    """Write the study's page and the index of studies; the study is complete without them.

    Returns:
        Whether the study's page was written.
    """
    folder, has_page = board.folder, True
    try:
        write_report(board, journal)
    except OSError as error:
        has_page = False
        reporter.note(f"the page was not drawn ({error}); heterosis report {folder} draws it")
    try:
        refresh_index(board)
    except OSError as error:
        remedy = f"heterosis report {folder.parent} draws it"
        reporter.note(f"the list of studies was not drawn ({error}); {remedy}")
    return has_page


def _manifest(
    parts: Parts, ingredients: dict[str, Any], machine: dict[str, Any], warm: WarmStart | None
) -> dict[str, Any]:
    warm_start = {} if warm is None else {KEY: warm.to_dict()}
    return warm_start | {
        "config": parts.config.to_dict(),
        "identity": ingredients,
        "machine": machine,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
