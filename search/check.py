"""Check a search before it starts, in under a minute: all that would stop it, and a forecast.

Loads the model and measures one candidate; writes nothing but the cache of parent statistics.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evals.scorer.scorer import PathReport, Scorer
from ..evals.scores.term_columns import METRIC
from ..evals.tasks.splits import CONFIRM, GUARD, SEARCH
from ..evals.tasks.tasks import FrozenTask
from ..merge.engine.engine import WORTH_COMPILING, MergeEngine
from ..merge.recipe.methods import METHODS
from ..merge.statistics.cache import default_folder
from .config.config import Config
from .config.rules import RULES
from .format import duration
from .parents_summary import (
    budget_advice,
    by_thirds,
    delta_lines,
    delta_table,
    parents_line,
    third_name,
)
from .propose.samplers import SAMPLERS
from .propose.stages import counts
from .storage.read import read_record
from .study.budget import limits_of, settle_deadline
from .study.build import build_engine, make_scorer, needs, parent_statistics, set_threads
from .study.parts import Parts, choose_device, open_parts
from .study.resume import check_identity, identity
from .study.warm_start import settle_warm_start

POWER = 2.8
"""z of a two-sided test at 0.05 plus z of a power of 0.8: 1.96 + 0.84."""
DISCORDANT = 0.2
"""Assumed share of 0/1 items on which two merges differ; for the forecast only."""


def check(config: Config, layers: bool = False) -> Iterator[str]:
    """Check a search and yield the results line by line.

    Args:
        config: Of the search.
        layers: Whether to print delta statistics per layer group instead of per third of the depth.

    Raises:
        ValueError: At the first thing that would stop the search.
    """
    yield from _check(open_parts(config), layers, {})


def check_study(study: Path, layers: bool = False) -> Iterator[str]:
    """Check that a study can be continued with its ingredients unchanged, then as `check`.

    Raises:
        ValueError: StudyError if an ingredient has changed; else as `check`.
    """
    record = read_record(study)
    config = Config.model_validate(record.manifest["config"])
    parts = open_parts(config, record.manifest["config"])
    check_identity(record.manifest["identity"], identity(parts), study)
    searched = sum(candidate.is_searched for candidate in record.candidates)
    of = "" if config.search.trials is None else f" of {config.search.trials}"
    yield (
        f"study: {searched}{of} candidates finished; parents, tasks, space and versions are "
        "unchanged"
    )
    yield from _check(parts, layers, record.manifest)


def _check(parts: Parts, layers: bool, manifest: Mapping[str, Any]) -> Iterator[str]:
    # Without the model.
    yield from _parents_lines(parts, layers)
    yield from _tasks_lines(parts)
    yield from _objective_lines(parts)
    yield from _space_lines(parts)
    warm = settle_warm_start(parts, manifest)
    if warm is not None:
        names = ", ".join(name for name, _ in warm.recipes)
        yield f"warm start: tried first, and scored anew: {names} ({warm.study})"
    # With the model in memory.
    engine = build_engine(parts)
    for line in engine.memory_plan.lines():
        yield f"memory: {line}"
    yield _kernels_line(parts, engine)
    scorer = make_scorer(parts, engine.model)
    report = scorer.self_check()
    if generating := scorer.generation_report:
        yield f"generating: {generating.path} path ({generating.reason})"
    yield from _forecast_lines(parts, scorer, _measure(parts, engine, scorer, report))


def _parents_lines(parts: Parts, layers: bool) -> Iterator[str]:
    parents, grouping = parts.parents, parts.config.merge.grouping
    computed = parent_statistics(parts)
    start = time.monotonic()
    computed.check_values()
    yield parents_line(parents)
    if layers:
        statistics, name_of = computed.deltas(grouping.group), str
    else:
        rule = by_thirds(grouping, parts.space.curves.n_layers)
        statistics, name_of = computed.deltas(rule), third_name
    seconds = time.monotonic() - start
    yield from delta_lines(statistics)
    yield from delta_table(statistics, name_of)
    later = ", ".join(sorted(needs(parts) - {"gram"}))
    yield (
        f"once per set of parents: check of their values, and inner products, {seconds:.1f} s this "
        f"time{f' (in the search: {later})' if later else ''}; kept in {default_folder()}"
    )


def _tasks_lines(parts: Parts) -> Iterator[str]:
    if parts.chat.options.apply_chat_template:
        turns = "separate turns" if parts.chat.options.as_multiturn else "part of one turn"
        yield (
            f"chat template: sha256 {str(parts.chat.template_sha256)[:12]}..., few-shot examples "
            f"are {turns}"
        )
    for task in parts.tasks:
        yield (
            f"task {task.name}: {task.metric.key}{_optimised(parts, task)}: "
            f"{_n_items(task, SEARCH)} search items, {_n_items(task, CONFIRM)} confirm items"
        )
    for task in parts.guard:
        yield f"guard {task.name}: {task.metric.key}: {_n_items(task, GUARD)} items"


def _optimised(parts: Parts, task: FrozenTask) -> str:
    """Return what of a task is optimised, and its weight, unless it is the metric alone."""
    columns = [column for column in task.optimize if column != METRIC]
    weight = f", weight {task.weight:g}" if RULES[parts.objective.rule].uses_weights else ""
    return (f", optimised by {' and '.join(task.optimize)}" if columns else "") + weight


def _n_items(task: FrozenTask, split: str) -> int:
    return len(task.doc_ids.get(split, ()))


def _objective_lines(parts: Parts) -> Iterator[str]:
    is_default = parts.config.search.objective is None and len(parts.objective.terms) > 1
    yield f"objective: {parts.objective.phrase}" + (" (by default)" if is_default else "")
    lower = [term for term, sign in parts.objective.signs.items() if sign < 0]
    is_summed = RULES[parts.objective.rule].is_mean and not parts.objective.normalize
    if lower and is_summed and len(parts.tasks) > 1:
        yield (
            f"advice: {', '.join(lower)} has no upper bound and may dominate the mean; "
            "bits_per_byte varies least"
        )


def _space_lines(parts: Parts) -> Iterator[str]:
    first = parts.stages[0].space
    names = dict.fromkeys(name for stage in parts.stages for name in stage.space.methods)
    for method in (METHODS[name] for name in names):
        yield f"method: {method.name}: {method.summary} ({method.paper})"
    for stage in parts.stages:
        part = f", {stage.width:g} of each interval around the best so far" if stage.width else ""
        yield (
            f"space{stage.name and f', {stage.name}'}: {len(stage.space.middle)} genes "
            f"({stage.space.phrase}){part}"
        )
    choices = max(len(stage.space.choices) for stage in parts.stages)
    if choices and not SAMPLERS[parts.config.search.sampler].learns_choices:
        yield (
            f"advice: {parts.config.search.sampler} draws the {choices} choices of a method at "
            "random; TPESampler learns them"
        )
    share = 1 / len(first.parents)
    if abs(sum(first.weight) / 2 - share) > 1e-9:
        yield (
            f"advice: the middle of `weight`, where the search starts, is "
            f"{sum(first.weight) / 2:g}, not the uniform merge's {share:g}"
        )


def _kernels_line(parts: Parts, engine: MergeEngine) -> str:
    wanted = parts.config.merge.compile
    entries = sum(target.numel() for target in engine.targets.values())
    size = f"the model has {entries:,} entries"
    if engine.launcher.is_compiling:
        how = f"compiled ({size})" if wanted == "auto" else "compiled, as configured"
    elif wanted is False:
        how = "eager, as configured"
    elif wanted == "auto" and entries < WORTH_COMPILING:
        how = f"eager ({size}; compiling pays from {WORTH_COMPILING:,})"
    else:
        how = "eager, without a compiler"
    return f"kernels: {how}; the bits are the same either way"


@dataclass(frozen=True)
class Forecast:
    """Measured times of one candidate, and the forecast of the whole search.

    Attributes:
        first_load: Seconds that the first load took longer: statistics of the parents, compilation.
        load: Seconds to load a candidate.
        score: Seconds to score it on the search items.
        candidates: Candidates that the sampler proposes within the budget.
        total: Seconds of the whole search, confirmation included.
        threads: CPU threads.
        report: The scoring path, and its reason.
    """

    first_load: float
    load: float
    score: float
    candidates: int
    total: float
    threads: int
    report: PathReport


def _measure(parts: Parts, engine: MergeEngine, scorer: Scorer, report: PathReport) -> Forecast:
    """Time one candidate, and extrapolate to the budget."""
    threads = set_threads(parts, scorer)
    recipe = parts.space.decode(parts.space.middle)
    first = _seconds(lambda: engine.load(recipe))
    engine.load(parts.baselines[0].recipe)  # else the next load would have nothing to do
    load = _seconds(lambda: engine.load(recipe))
    score = _seconds(lambda: scorer.score(SEARCH))
    rest = (scorer.items(CONFIRM) + scorer.items(GUARD)) / max(scorer.items(SEARCH), 1)
    n_baselines, finalists = len(parts.baselines), parts.config.search.finalists

    def confirmation(finalists: int) -> float:
        return (finalists + n_baselines) * (load + score * rest)

    deadline = settle_deadline(parts.config.search, {}, datetime.datetime.now())
    limits = limits_of(parts.config.search, deadline, ())
    before = n_baselines * (load + score)
    items = scorer.items(SEARCH)
    count = limits.candidates(load + score, items, before, confirmation(finalists))
    total = before + count * (load + score) + confirmation(min(count, finalists))
    return Forecast(max(first - load, 0.0), load, score, count, total, threads, report)


def _seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _forecast_lines(parts: Parts, scorer: Scorer, forecast: Forecast) -> Iterator[str]:
    report, items = forecast.report, scorer.items(SEARCH)
    yield (
        f"scoring: {report.path} path ({report.reason}); {choose_device(parts.config)}, "
        f"{forecast.threads} CPU thread(s), {parts.config.merge.dtype}"
    )
    yield (
        f"one candidate: {forecast.load:.3f} s to load (the first {forecast.first_load:.1f} s "
        f"longer), {forecast.score:.2f} s for {items} items "
        f"({items / max(forecast.score, 1e-9):.0f} items/s)"
    )
    confirm = scorer.items(CONFIRM)
    gain = POWER * math.sqrt(DISCORDANT / confirm) if confirm else math.inf
    yield (
        f"forecast: {len(parts.baselines)} baselines and {forecast.candidates} candidates "
        f"in about {duration(forecast.total)}; smallest gain that {confirm} confirm items detect: "
        f"{100 * gain:.1f} points (0/1 metric, {DISCORDANT:.0%} of the items answered differently)"
    )
    for stage, count in zip(parts.stages, counts(parts.stages, forecast.candidates), strict=True):
        space = stage.space
        advice = budget_advice(count, len(space.middle), space.depth, space.curves.n_layers)
        if advice:
            yield f"{stage.name}: {advice}" if stage.name else advice
