"""Puts a search together from its configuration: first what is cheap to check, then the model.

Knows how the three rooms are plugged into each other. `open_parts` loads no model: wrong paths,
parents that do not match and missing data are reported within seconds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..evals.chat import Chat, ChatOptions
from ..evals.columns import LOWER_IS_BETTER, METRIC, TermColumn
from ..evals.fingerprint import tokenizer_digest
from ..evals.scorer import Scorer
from ..evals.splits import GUARD, SEARCH, Splits
from ..evals.tasks import FrozenTask, TaskSpec, load_tasks
from ..evals.terms import Term
from ..evals.threads import choose_threads
from ..merge.engine import MergeEngine
from ..merge.fact_cache import default_folder
from ..merge.facts import ParentFacts
from ..merge.hub import locate
from ..merge.methods import METHODS
from ..merge.parents import BASE, ParentError, ParentSet
from .baselines import Baseline, null_baselines
from .config import Config, ConfigError
from .generations import lay_out, pace_of
from .journal import StudyError
from .objective import Objective, default_rule
from .proposer import rehearse
from .ray_cluster import check_ray
from .sections import Rule, TaskSection
from .space import Space
from .stages import Stage
from .staging import plan_stages

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "optuna", "cmaes")
"""Packages whose versions decide what a study computes."""


@dataclass(frozen=True)
class Parts:
    """All of a search that needs no model in memory.

    Attributes:
        config: As read, its generations laid out.
        parents: Opened: headers, tokenizers and configurations match.
        tokenizer: The base's, for the whole study.
        chat: How prompts are wrapped, and by which template.
        tasks: What makes the objective, prompts built.
        guard: What must not get worse.
        space: What may vary, in its last stage; `stages` has the others.
        stages: Of the search, in order; the last one's space is `space`.
        baselines: Trials 0..k.
        objective: How scores become one number.
    """

    config: Config
    parents: ParentSet
    tokenizer: PreTrainedTokenizerBase
    chat: Chat
    tasks: tuple[FrozenTask, ...]
    guard: tuple[FrozenTask, ...]
    space: Space
    stages: tuple[Stage, ...]
    baselines: tuple[Baseline, ...]
    objective: Objective


def open_parts(config: Config, begun: Mapping[str, Any] | None = None) -> Parts:
    """Open parents and tasks, and check all that can be checked without a model.

    Args:
        config: Of the search.
        begun: The configuration in the manifest of a study that has begun.

    Raises:
        ValueError: ConfigError, ParentError or TaskError; one line each, with the remedy.
    """
    choose_device(config)
    if config.workers is not None and config.workers.engine == "ray":
        check_ray()
    parents = open_parents(config)
    stages = plan_stages(config, parents.groups(config.merge.grouping))
    if config.search.trials != 0:
        for stage in stages:
            _check_stage(stage, config)
    opening = stages[0 if config.search.warm_start is None else -1].space
    specs = [_spec(task) for task in config.tasks]
    specs += [_spec(task, guard=True) for task in config.guard]
    tokenizer = load_tokenizer(parents)
    chat = Chat(ChatOptions(**config.eval.chat), tokenizer)
    frozen = load_tasks(specs, splits=Splits(**config.splits.model_dump()), chat=chat)
    tasks = tuple(task for task in frozen if GUARD not in task.doc_ids)
    parts = Parts(
        config=config,
        parents=parents,
        tokenizer=tokenizer,
        chat=chat,
        tasks=tasks,
        guard=tuple(task for task in frozen if GUARD in task.doc_ids),
        space=stages[-1].space,
        stages=stages,
        baselines=null_baselines(opening, config.baselines),
        objective=_objective(config, tasks),
    )
    return laid_out(parts, begun)


def _check_stage(stage: Stage, config: Config) -> None:
    """Refuse a stage in which nothing varies, and arguments that its sampler does not take."""
    if not stage.space.middle:
        where = f"`space` of {stage.name}" if stage.name else "`space`"
        raise ConfigError(
            f"{where} leaves nothing to search: every interval is one number; widen `weight`, "
            "`drop_rate` or `lambda`, or set `search.trials: 0` for the baselines alone"
        )
    rehearse(stage.space, config.search, 2 if config.search.objective == "pareto" else 1)


def open_parents(config: Config) -> ParentSet:
    """Open base and parents; where one is missing, say what makes it."""
    places = (config.base, *config.parents.values())
    missing = [str(p) for p in places if isinstance(p, Path) and not p.is_dir()]
    if missing and config.made_by:
        raise ConfigError(
            f"no such model directory: {', '.join(missing)}; make it by: {config.made_by}"
        )
    if config.made_by and not config.download:
        _check_cached(config, config.made_by)
    return ParentSet.open(
        config.base,
        config.parents,
        tokenizer=config.merge.tokenizer,
        download=config.download,
    )


def _check_cached(config: Config, made_by: str) -> None:
    """Refuse what looks like a hub id and is in no cache: it may be a directory to be made."""
    for owner, place in {BASE: config.base, **config.parents}.items():
        try:
            locate(owner if owner == BASE else f"parent {owner}", place)
        except ParentError as error:
            raise ConfigError(f"{error}; or make it by: {made_by}") from error


def _spec(section: TaskSection, *, guard: bool = False) -> TaskSpec:
    return TaskSpec(**section.model_dump(), guard=guard)


def _objective(config: Config, tasks: tuple[FrozenTask, ...]) -> Objective:
    terms: dict[str, tuple[FrozenTask, TermColumn]] = {
        task.name if len(task.optimize) == 1 else f"{task.name}:{column}": (task, column)
        for task in tasks
        for column in task.optimize
    }
    return Objective(
        rule=config.search.objective or _default_rule(config, tasks),
        weights={name: task.weight for name, (task, _) in terms.items()},
        signs={name: _sign(task, column) for name, (task, column) in terms.items()},
        columns={
            name: (task.name, column)
            for name, (task, column) in terms.items()
            if not Term(name, task.name, column).is_plain
        },
        normalize=config.search.normalize,
    )


def _default_rule(config: Config, tasks: tuple[FrozenTask, ...]) -> Rule:
    """What the tasks allow; where they are counted from the parents' scores, a mean."""
    shares = [
        task.metric.name if _sign(task, column) > 0 and column == METRIC else ""
        for task in tasks
        for column in task.optimize
    ]
    names = [""] * len(shares) if config.search.normalize else shares
    return default_rule(names, [task.weight for task in tasks])


def _sign(task: FrozenTask, column: TermColumn) -> int:
    is_higher = task.higher_is_better if column == METRIC else column not in LOWER_IS_BETTER
    return 1 if is_higher else -1


def identity(parts: Parts) -> dict[str, Any]:
    """Return all that must be unchanged for a study to be continued.

    The parts of the scorer's fingerprint come on top (``requests``), once a scorer is there.
    """
    config = parts.config
    return {
        "parents": parts.parents.digests(),
        "tokenizer": config.merge.tokenizer,
        "tokenizer_digest": tokenizer_digest(parts.tokenizer),
        "chat": config.eval.chat | {"template_sha256": parts.chat.template_sha256},
        "space": parts.space.to_dict(),
        "stages": [stage.to_dict() for stage in parts.stages if stage.name] or None,
        "baselines": [[b.name, b.recipe.digest] for b in parts.baselines],
        "tasks": {task.name: task.fingerprint for task in parts.tasks},
        "guard": {task.name: task.fingerprint for task in parts.guard},
        "objective": parts.objective.to_dict(),
        "racing": config.search.racing and config.search.racing.model_dump(),
        "sampler": [config.search.sampler, config.search.sampler_args, config.search.run_seed],
        "warm_start": config.search.warm_start and str(config.search.warm_start),
        "generation": config.workers and asdict(parts.stages[-1].pace),
        "dtype": config.merge.dtype,
        "device": torch.device(choose_device(config)).type,
        "batch_size": config.eval.batch_size,
        "batch_tokens": config.eval.batch_tokens,
        "architecture": dict(parts.parents.config),
        "versions": versions(),
    }


def laid_out(parts: Parts, begun: Mapping[str, Any] | None = None) -> Parts:
    """Parts with their generations written out; as a study that has begun has them.

    Args:
        parts: Of the search.
        begun: The configuration in the study's manifest.
    """
    config = parts.config
    search, workers = lay_out(config.search, config.workers, len(parts.space.genes), begun)
    stages = (
        replace(stage, pace=pace_of(search, workers, len(stage.space.genes)))
        for stage in parts.stages
    )
    config = config.model_copy(update={"search": search, "workers": workers})
    return replace(parts, config=config, stages=tuple(stages))


def check_identity(
    known: Mapping[str, Any], now: Mapping[str, Any], folder: Path, but: tuple[str, ...] = ()
) -> None:
    """Refuse to go on with a study with other ingredients than it was begun with.

    Args:
        known: The identity in the study's manifest.
        now: The same, or part of it, as it is now.
        folder: The study's, for the message.
        but: Keys that may differ.

    Raises:
        StudyError: Naming what differs.
    """
    plain = json.loads(json.dumps(now))  # as the journal gives it back: tuples are lists
    different = [key for key in now if key not in but and known.get(key) != plain[key]]
    if different:
        key = different[0]
        raise StudyError(
            f"{folder}: this study was begun with another {', '.join(different)}; "
            f"{_change(known.get(key), plain[key], key)}; restore what it was begun with, or "
            "search in another folder with --results"
        )


def _change(was: Any, now: Any, where: str) -> str:
    """Say what changed, as deep inside as one key tells it."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(k for k in [*was, *now] if was.get(k) != now.get(k))
        return _change(was.get(key), now.get(key), f"{where}.{key}")
    return f"{where} was {_short(was)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def choose_device(config: Config) -> str:
    """Return the device of the resident model.

    Raises:
        ConfigError: If the configuration names one that is not there.
    """
    device, cards = config.merge.device, torch.cuda.device_count()
    if device == "auto":
        return "cuda" if cards else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= cards:
        raise ConfigError(
            f"merge.device must be there, got `{device}` on a machine with {cards} CUDA devices; "
            "use `auto` or `cpu`, or install a torch that sees the card"
        )
    return device


def load_tokenizer(parents: ParentSet) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the whole study: the base's, or what a tokenizer policy made of it.

    Raises:
        ConfigError: If transformers cannot load it.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = parents.folders[BASE]
        files = parents.tokenizer_files()
        if any(isinstance(content, bytes) for content in files.values()):
            folder = Path(made)
            (folder / "config.json").write_text(json.dumps(dict(parents.config)))
            for name, content in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                data = content if isinstance(content, bytes) else content.read_bytes()
                (folder / name).write_bytes(data)
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"base: {parents.folders[BASE]} holds no tokenizer that transformers loads "
                f"({str(error).splitlines()[0]}); copy the tokenizer's files there"
            ) from error


def parent_facts(parts: Parts) -> ParentFacts:
    """Return what is known of the parents whatever the recipe; most of it lies in the cache."""
    return ParentFacts(parts.parents, default_folder(), choose_device(parts.config))


def build_engine(parts: Parts) -> MergeEngine:
    """Load the base as the resident model."""
    section = parts.config.merge
    return MergeEngine(
        parts.parents,
        dtype=section.dtype,
        device=choose_device(parts.config),
        device_map=section.device_map,
        placement=section.placement,
        compile=section.compile,
        needs=needs(parts),
    )


def needs(parts: Parts) -> frozenset[str]:
    """Return what the methods of the search and of its baselines ask of the parents."""
    searched = (METHODS[name] for stage in parts.stages for name in stage.space.methods)
    given = (row for baseline in parts.baselines for row in baseline.recipe.methods)
    return frozenset().union(*(row.needs for row in (*searched, *given)))


def make_scorer(parts: Parts, model: PreTrainedModel, *, halved: bool = False) -> Scorer:
    """Tokenise all requests for a model in memory; in batches of half the size if asked."""
    section, share = parts.config.eval, 2 if halved else 1
    tokens = section.batch_tokens
    return Scorer(
        (*parts.tasks, *parts.guard),
        model,
        parts.tokenizer,
        batch_size=max(section.batch_size // share, 1),
        batch_tokens=tokens and max(tokens // share, 1),
    )


def set_threads(parts: Parts, scorer: Scorer, known: int | None = None) -> int:
    """Set torch's CPU threads: as before, as configured, or as measured on a few requests."""
    wanted = known or parts.config.eval.threads
    if wanted == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        counts = {1, max((cores or 1) // 2, 1), cores or 1}
        wanted = choose_threads(lambda: scorer.rehearse(SEARCH), sorted(counts))
    torch.set_num_threads(int(wanted))
    return int(wanted)


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a study computes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
