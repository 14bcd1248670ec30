"""Puts a search together from its configuration: first what is cheap to check, then the model.

Knows how the three rooms are plugged into each other. `open_parts` loads no model: wrong paths,
parents that do not match and missing data are reported within seconds.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..evals.scorer import Scorer
from ..evals.splits import GUARD, SEARCH, Splits
from ..evals.tasks import FrozenTask, TaskSpec, load_tasks
from ..evals.threads import choose_threads
from ..merge.engine import MergeEngine
from ..merge.parents import ParentSet
from .baselines import Baseline, null_baselines
from .config import Config, ConfigError, TaskSection
from .journal import StudyError
from .objective import Objective
from .samplers import check_sampler
from .space import Space, build_space

log = logging.getLogger(__name__)

PACKAGES = ("heterosis", "torch", "transformers", "optuna", "cmaes", "lm_eval", "datasets")


@dataclass(frozen=True)
class Parts:
    """All of a search that needs no model in memory.

    Attributes:
        config: As read.
        parents: Opened: headers, tokenizers and configurations match.
        tasks: What makes the objective, prompts built.
        guard: What must not get worse.
        space: What may vary.
        baselines: Trials 0..k.
        objective: How scores become one number.
    """

    config: Config
    parents: ParentSet
    tasks: tuple[FrozenTask, ...]
    guard: tuple[FrozenTask, ...]
    space: Space
    baselines: tuple[Baseline, ...]
    objective: Objective


def open_parts(config: Config) -> Parts:
    """Open parents and tasks, and check all that can be checked without a model.

    Raises:
        ValueError: ConfigError, ParentError or TaskError; one line each, with the remedy.
    """
    check_sampler(config.search)
    parents = open_parents(config)
    space = build_space(config, parents.groups, parents.n_layers)
    if config.search.trials and not space.genes:
        raise ConfigError(
            "`space` leaves nothing to search: every interval is one number; widen `weight`, "
            "`drop_rate` or `lambda`, or set `search.trials: 0` for the baselines alone"
        )
    specs = [_spec(task) for task in config.tasks]
    specs += [_spec(task, guard=True) for task in config.guard]
    frozen = load_tasks(specs, splits=Splits(**config.splits.model_dump()))
    tasks = tuple(task for task in frozen if GUARD not in task.doc_ids)
    return Parts(
        config=config,
        parents=parents,
        tasks=tasks,
        guard=tuple(task for task in frozen if GUARD in task.doc_ids),
        space=space,
        baselines=null_baselines(space, config.baselines),
        objective=_objective(config, tasks),
    )


def open_parents(config: Config) -> ParentSet:
    """Open base and parents; where a directory is missing, say what makes it."""
    missing = [str(path) for path in (config.base, *config.parents.values()) if not path.is_dir()]
    if missing and config.made_by:
        raise ConfigError(
            f"no such model directory: {', '.join(missing)}; make it by: {config.made_by}"
        )
    return ParentSet.open(config.base, config.parents)


def _spec(section: TaskSection, *, guard: bool = False) -> TaskSpec:
    return TaskSpec(**section.model_dump(), guard=guard)


def _objective(config: Config, tasks: tuple[FrozenTask, ...]) -> Objective:
    return Objective(
        rule=config.search.objective,
        weights={task.name: task.weight for task in tasks},
        signs={task.name: 1 if task.higher_is_better else -1 for task in tasks},
    )


def identity(parts: Parts) -> dict[str, Any]:
    """Return all that must be unchanged for a study to be continued.

    The token ids of all requests come on top (``requests``), once a scorer is there.
    """
    config = parts.config
    return {
        "parents": parts.parents.digests(),
        "space": parts.space.to_dict(),
        "baselines": [[b.name, b.recipe.digest] for b in parts.baselines],
        "tasks": {task.name: task.fingerprint for task in parts.tasks},
        "guard": {task.name: task.fingerprint for task in parts.guard},
        "objective": [config.search.objective, dict(parts.objective.weights)],
        "sampler": [config.search.sampler, config.search.sampler_args, config.search.run_seed],
        "dtype": config.merge.dtype,
        "device": torch.device(choose_device(config)).type,
        "batch_size": config.eval.batch_size,
        "lm_eval": importlib.metadata.version("lm_eval"),
    }


def check_identity(known: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Refuse to continue a study with other ingredients.

    Raises:
        StudyError: Naming what differs.
    """
    different = [key for key in now if known.get(key) != now[key]]
    if different:
        key = different[0]
        raise StudyError(
            f"{folder}: this study was begun with another {', '.join(different)}; "
            f"{key} was {_short(known.get(key))}, is {_short(now[key])}; restore the "
            "configuration, or search in another folder with --results"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def choose_device(config: Config) -> str:
    """Return the device of the resident model."""
    if config.merge.device != "auto":
        return config.merge.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer, the one of the whole study."""
    return AutoTokenizer.from_pretrained(config.base, local_files_only=True)


def build_engine(parts: Parts) -> MergeEngine:
    """Load the base as the resident model."""
    config = parts.config
    return MergeEngine(parts.parents, dtype=config.merge.dtype, device=choose_device(config))


def make_scorer(parts: Parts, model: PreTrainedModel) -> Scorer:
    """Tokenise all requests for a model in memory."""
    return Scorer(
        (*parts.tasks, *parts.guard),
        model,
        load_tokenizer(parts.config),
        batch_size=parts.config.eval.batch_size,
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
    """Return the versions of all that a score depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}
