"""The parts of a search that need no model: parents, tasks, spaces, baselines, objective.

Knows how `merge`, `evals` and `search` fit together. `open_parts` loads no model, so wrong paths,
incompatible parents and missing data are reported within seconds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...evals.scores.term_columns import LOWER_IS_BETTER, METRIC, TermColumn
from ...evals.scores.terms import Term
from ...evals.tasks.chat import Chat, ChatOptions
from ...evals.tasks.splits import GUARD, Splits
from ...evals.tasks.tasks import FrozenTask, TaskSpec, load_tasks
from ...merge.hints import reason
from ...merge.parents.hub import locate
from ...merge.parents.parent_set import BASE, ParentError, ParentSet
from ..config.config import Config, ConfigError
from ..config.rules import RULES, default_rule
from ..config.scoring import TaskSection
from ..evaluate.objective import Objective
from ..evaluate.ray_cluster import check_ray
from ..propose.baselines import Baseline, null_baselines
from ..propose.pace import lay_out, pace_of
from ..propose.proposer import rehearse
from ..propose.space import Space
from ..propose.stages import Stage, plan_stages


@dataclass(frozen=True)
class Parts:
    """Everything of a search that needs no model in memory.

    Attributes:
        config: The configuration, with its generations written out.
        parents: Base and parents: headers, tokenizers and configurations match.
        tokenizer: The study's tokenizer.
        chat: Chat options and template of the prompts.
        tasks: Tasks of the objective, with their prompts.
        guard: Guard tasks.
        space: Search space of the last stage.
        stages: Stages of the search, in order.
        baselines: Trials 0..k.
        objective: Combines scores to one value.
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
    """Open parents and tasks, and check everything that can be checked without a model.

    Args:
        config: The configuration of the search.
        begun: The configuration in the manifest of a study that has begun.

    Raises:
        ValueError: ConfigError, ParentError or TaskError; one line each, with the remedy.
    """
    choose_device(config)
    if config.workers is not None and config.workers.engine == "ray":
        check_ray()
    parents = open_parents(config)
    if begun is None:
        _check_patterns(config, parents)
    stages = plan_stages(config, parents.groups(config.merge.grouping), parents.floating)
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
    return with_pace(parts, begun)


def _check_patterns(config: Config, parents: ParentSet) -> None:
    """Raise ConfigError for a pattern of `merge.layer_groups` that matches no tensor."""
    for pattern in config.merge.grouping.unmatched(parents.floating):
        near = max(parents.floating, key=partial(_likeness, pattern.replace("{layer}", "0")))
        raise ConfigError(
            f"`merge.layer_groups`: a pattern must match tensors of the base, got `{pattern}`, "
            f"which matches none; correct it (a tensor near it: {near}), or leave it out"
        )


def _likeness(pattern: str, name: str) -> int:
    """Return how many characters of a pattern are in a name, in the same order."""
    matcher = SequenceMatcher(None, pattern, name, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def _check_stage(stage: Stage, config: Config) -> None:
    """Raise ConfigError if nothing varies in a stage, or its sampler refuses its arguments."""
    if not stage.space.middle:
        where = f"`space` of {stage.name}" if stage.name else "`space`"
        raise ConfigError(
            f"{where} leaves nothing to search: every interval is one number; widen `weight`, "
            "`drop_rate` or `lambda`, or set `search.trials: 0` for the baselines alone"
        )
    name = config.search.objective
    rehearse(stage.space, config.search, 2 if name and RULES[name].has_several else 1)


def open_parents(config: Config) -> ParentSet:
    """Open base and parents.

    Raises:
        ConfigError: If one is missing; says what makes it.
        ParentError: If they do not match.
    """
    paths = (config.base, *config.parents.values())
    missing = [str(p) for p in paths if isinstance(p, Path) and not p.is_dir()]
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
    """Raise ConfigError for hub ids that are not cached: they may be directories not made yet."""
    for owner, model in {BASE: config.base, **config.parents}.items():
        try:
            locate(owner if owner == BASE else f"parent {owner}", model)
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


def _default_rule(config: Config, tasks: tuple[FrozenTask, ...]) -> str:
    """Return the objective that suits the tasks; a mean if scores are on the parents' scale."""
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


def with_pace(parts: Parts, begun: Mapping[str, Any] | None = None) -> Parts:
    """Return parts with the sizes of generations written out, as a study began with them.

    Args:
        parts: The parts.
        begun: The configuration in the study's manifest, if it has begun.
    """
    config = parts.config
    search, workers = lay_out(config.search, config.workers, len(parts.space.genes), begun)
    stages = (
        replace(stage, pace=pace_of(search, workers, len(stage.space.genes)))
        for stage in parts.stages
    )
    config = config.model_copy(update={"search": search, "workers": workers})
    return replace(parts, config=config, stages=tuple(stages))


def choose_device(config: Config) -> str:
    """Return the device of the resident model.

    Raises:
        ConfigError: If the configuration names a device that does not exist.
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
    """Return the study's tokenizer: the base's, or the one that `merge.tokenizer` asks for.

    Raises:
        ConfigError: If transformers cannot load it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = parents.folders[BASE]
        files = parents.tokenizer_files()
        if any(isinstance(content, bytes) for content in files.values()):
            folder = Path(temporary)
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
                f"({reason(error)}); copy the tokenizer's files there"
            ) from error
