"""`heterosis check`: what a search would meet, in under a minute, before the night is spent on it.

Knows assembly and the space; measures one candidate; changes nothing on disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..evals.scorer import PathReport, Scorer
from ..evals.splits import CONFIRM, GUARD, SEARCH
from ..evals.tasks import FrozenTask
from ..merge.engine import MergeEngine
from ..merge.methods import METHODS
from .assembly import (
    Parts,
    build_engine,
    check_identity,
    choose_device,
    identity,
    make_scorer,
    open_parts,
    set_threads,
)
from .candidate import candidate_of
from .config import Config
from .format import duration
from .journal import Journal

POWER = 2.8
"""z at a two-sided level of 0.05 plus z at a power of 0.8: 1.96 + 0.84."""
SAFE_DELTA = 0.002
"""Mean |delta| below which drop rates of 0.9 do no harm (Yu et al., arXiv:2311.03099, Sec. 4)."""
DISCORDANT = 0.2
"""Share of 0/1 items on which two merges are taken to differ, for the forecast alone."""


@dataclass(frozen=True)
class Forecast:
    """What was measured, and what follows.

    Attributes:
        load: Seconds to materialise a candidate.
        score: Seconds to score it on the search items.
        total: Seconds of the whole search, confirmation included.
        threads: CPU threads that were chosen.
        report: Which scoring path runs, and why.
    """

    load: float
    score: float
    total: float
    threads: int
    report: PathReport


def check(config: Config) -> Iterator[str]:
    """Check a search and yield what a person should know, line by line.

    Raises:
        ValueError: At the first thing that would stop the search.
    """
    yield from _check(open_parts(config))


def check_study(study: Path) -> Iterator[str]:
    """Check that a study's ingredients are those it was begun with, then as `check`.

    Raises:
        ValueError: StudyError if they are not; else as `check`.
    """
    journal = Journal(study)
    config = Config.model_validate(journal.begun["config"])
    parts = open_parts(config)
    check_identity(journal.begun["identity"], identity(parts), study)
    searched = sum(not candidate_of(trial).is_baseline for trial in journal.trials)
    yield (
        f"study: {searched} of {config.search.trials} candidates finished; parents, tasks, space "
        "and versions are those it was begun with"
    )
    yield from _check(parts)


def _check(parts: Parts) -> Iterator[str]:
    yield from _parents_lines(parts)
    yield from _tasks_lines(parts)
    yield from _objective_lines(parts)
    yield from _space_lines(parts)
    engine = build_engine(parts)
    yield _memory_line(parts, engine)
    scorer = make_scorer(parts, engine.model)
    report = scorer.self_check()
    forecast = measure(parts, engine, scorer, report)
    yield from _forecast_lines(parts, scorer, forecast)


def measure(parts: Parts, engine: MergeEngine, scorer: Scorer, report: PathReport) -> Forecast:
    """Time one candidate and multiply."""
    threads = set_threads(parts, scorer)
    recipe = parts.space.decode(parts.space.middle)
    start = time.monotonic()
    engine.load(recipe)
    loaded = time.monotonic()
    scorer.score(SEARCH)
    scored = time.monotonic()
    load, score = loaded - start, scored - loaded
    candidates = parts.config.search.trials + len(parts.baselines)
    finalists = min(parts.config.search.finalists, parts.config.search.trials)
    rest = (scorer.items(CONFIRM) + scorer.items(GUARD)) / max(scorer.items(SEARCH), 1)
    confirmation = (finalists + len(parts.baselines)) * (load + score * rest)
    return Forecast(load, score, candidates * (load + score) + confirmation, threads, report)


def _parents_lines(parts: Parts) -> Iterator[str]:
    parents = parts.parents
    parents.check_values()
    yield (
        f"parents: {', '.join(parents.names)} match the base: {len(parents.tensors)} tensors, "
        f"{parents.n_layers} layers, {parents.bytes_per_model / 1e6:.1f} MB each, all finite"
    )
    statistics = parents.delta_statistics()
    for name in parents.names:
        mean = statistics.mean_abs_delta[name]
        safe = (
            "safe for high DARE drop rates"
            if mean < SAFE_DELTA
            else "too large for high drop rates"
        )
        yield (
            f"delta {name}: relative norm {statistics.relative_norm[name]:.2%} of the base, "
            f"mean |delta| {mean:.1e} ({safe})"
        )
    for pair, cosine in statistics.cosine.items():
        yield (
            f"deltas {' and '.join(pair)}: cosine {cosine:.2f}, "
            f"sign conflict {statistics.sign_conflict[pair]:.0%}"
        )


def _memory_line(parts: Parts, engine: MergeEngine) -> str:
    resident = engine.model.get_memory_footprint()
    sources = parts.parents.bytes_per_model * (1 + len(parts.parents.names))
    where = "memory-mapped from disk" if engine.device.type == "cpu" else "held on the device"
    return (
        f"memory: the resident model takes {resident / 1e6:.1f} MB ({parts.config.merge.dtype}), "
        f"base and parents {sources / 1e6:.1f} MB, {where}; scoring comes on top"
    )


def _tasks_lines(parts: Parts) -> Iterator[str]:
    for task in parts.tasks:
        yield (
            f"task {task.name}: {task.metric.key}, weight {task.weight:g}: "
            f"{_items(task, SEARCH)} search items, {_items(task, CONFIRM)} confirm items"
        )
    for task in parts.guard:
        yield f"guard {task.name}: {task.metric.key}: {_items(task, GUARD)} items"


def _items(task: FrozenTask, split: str) -> int:
    return len(task.doc_ids.get(split, ()))


def _objective_lines(parts: Parts) -> Iterator[str]:
    lower = [task.name for task in parts.tasks if not task.higher_is_better]
    if lower and len(parts.tasks) > 1:
        yield (
            f"advice: {', '.join(lower)} has no upper bound and may outweigh the other tasks in a "
            "mean; bits_per_byte moves least"
        )


def _space_lines(parts: Parts) -> Iterator[str]:
    space, trials = parts.space, parts.config.search.trials
    method = METHODS[space.method]
    yield f"method: {method.name}: {method.summary} ({method.paper})"
    yield (
        f"space: {len(space.genes)} genes ({space.depth.shape} x "
        f"{'/'.join(space.kinds)}, weights in [{space.weight[0]:g}, {space.weight[1]:g}])"
    )
    share = 1 / len(space.parents)
    if abs(sum(space.weight) / 2 - share) > 1e-9:
        yield (
            f"advice: the middle of `weight` is {sum(space.weight) / 2:g}, not the uniform merge's "
            f"{share:g}: the search starts from the middle"
        )
    if trials < 5 * len(space.genes):
        yield (
            f"advice: {trials} trials are few for {len(space.genes)} genes; "
            "take a coarser `depth`, or at least five trials a gene"
        )


def _forecast_lines(parts: Parts, scorer: Scorer, forecast: Forecast) -> Iterator[str]:
    report, items = forecast.report, scorer.items(SEARCH)
    yield (
        f"scoring: {report.path} path ({report.reason}); {choose_device(parts.config)}, "
        f"{forecast.threads} CPU thread(s), {parts.config.merge.dtype}"
    )
    yield (
        f"one candidate: {forecast.load:.2f} s to load, {forecast.score:.2f} s for {items} items "
        f"({items / max(forecast.score, 1e-9):.0f} items/s)"
    )
    confirm = scorer.items(CONFIRM)
    gain = POWER * math.sqrt(DISCORDANT / confirm) if confirm else math.inf
    yield (
        f"forecast: {len(parts.baselines)} baselines and {parts.config.search.trials} candidates "
        f"in about {duration(forecast.total)}; smallest gain that {confirm} confirm items show: "
        f"{100 * gain:.1f} points (0/1 metric, {DISCORDANT:.0%} of the items answered differently)"
    )
