"""Load lm-eval tasks once: hash and split documents, freeze prompts. Knows lm-eval; knows no model.

`load_tasks` does all that can fail without a model. A `FrozenTask` then holds every request of
every candidate.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quiet import log_level, one_line, quiet
from ..scores.fingerprint import digest
from ..scores.term_columns import METRIC, NEEDS, TermColumn
from .catalogue import builtin_index, refuse_missing_data, task_configs
from .chat import Chat
from .metrics import Metric, choose_metric
from .prompts import Prompts, build_prompts
from .splits import CONFIRM, GUARD, SEARCH, SPLIT_NAMES, Splits, cap_rank, capped, doc_hash
from .task_files import TaskError, is_path, leaf_configs, read_task_file

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

# lm-eval's default of `--seed`, so its command line builds the same few-shot prompts.
FEWSHOT_SEED = 1234


@dataclass(frozen=True)
class TaskSpec:
    """One task or group of tasks as users ask for it.

    Args:
        task: lm-eval's name, the path of a YAML file, or a task's configuration as a dictionary,
            whose ``custom_dataset`` may be a function.
        num_fewshot: Examples per prompt; None: the task's own number.
        metric: ``acc`` or ``exact_match,strict``; None: the task's first metric.
        weight: Weight in the mean over tasks, shared equally by the tasks of a group.
        optimize: Columns of its items that the objective uses.
        max_items: Most documents used, chosen by hash; None: all.
        guard: Whether all its items are guard items, instead of search and confirm items.

    Raises:
        ValueError: If a number is out of range.
    """

    task: str | Mapping[str, Any]
    num_fewshot: int | None = None
    metric: str | None = None
    weight: float = 1.0
    max_items: int | None = None
    optimize: tuple[TermColumn, ...] = (METRIC,)
    guard: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"`num_fewshot` must be at least 0, got {self.num_fewshot}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"`weight` must be positive and finite, got {self.weight}")
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"`max_items` must be at least 1, got {self.max_items}")


@dataclass(frozen=True, eq=False)
class FrozenTask:
    """A task with its prompts built: the same requests for every candidate.

    Attributes:
        name: lm-eval's name of the task.
        metric: Metric that counts, and its aggregation.
        weight: Weight in the mean over tasks.
        optimize: Columns of its items that the objective uses.
        source: YAML file that it came from; None for a built-in task or a dictionary.
        output_type: ``multiple_choice``, ``loglikelihood``, ``loglikelihood_rolling`` or
            ``generate_until``.
        num_fewshot: Examples per prompt.
        doc_ids: Rows of the task's data by split, ascending.
        doc_hashes: SHA-256 of each used document, by row.
        ingredients: Digests of all that decides its scores: ``items`` (splits and documents),
            ``prompts`` (requests and answers), ``scoring`` (metric and filters), ``template``.
        prompts: lm-eval's requests by row, and the right answers.
        task: lm-eval's task object, for its filters and metrics.
    """

    name: str
    metric: Metric
    weight: float
    optimize: tuple[TermColumn, ...]
    source: Path | None
    output_type: str
    num_fewshot: int
    doc_ids: Mapping[str, tuple[int, ...]]
    doc_hashes: Mapping[int, str]
    ingredients: Mapping[str, str]
    prompts: Prompts = field(repr=False)
    task: "Task" = field(repr=False)

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score of the metric is better."""
        return self.metric.higher_is_better

    @property
    def fingerprint(self) -> str:
        """Digest of all `ingredients`; scores of tasks with equal digests are comparable."""
        return digest(dict(self.ingredients))

    def instances(self, split: str) -> "list[list[Instance]]":
        """Return the requests of each document of a split, in the order of `doc_ids`."""
        return [self.prompts.instances[row] for row in self.doc_ids.get(split, ())]

    def samples(self, split: str) -> dict[str, list[int]]:
        """Return the argument of lm-eval's ``--samples`` for exactly this split."""
        return {self.name: list(self.doc_ids.get(split, ()))}


def load_tasks(
    specs: Sequence[TaskSpec], *, splits: Splits, chat: Chat | None = None
) -> tuple[FrozenTask, ...]:
    """Load, check, split and freeze tasks, without a model.

    lm-eval's index of built-in tasks (5 to 15 s) is read only if a built-in name is asked for.

    Args:
        specs: Tasks asked for; groups expand to their tasks.
        splits: Shares and caps of the search and confirm splits; guard tasks are not split.
        chat: Chat options and template; None: plain text.

    Raises:
        TaskError: If a task, its data, its metric or its prompts cannot be used as asked.
    """
    with quiet():
        refuse_missing_data([spec.task for spec in specs])
        pairs = [(spec, leaves) for spec in specs for leaves in [_load(spec)]]
        _refuse_duplicates(pairs)
        return tuple(
            _freeze(task, spec, spec.weight / len(leaves), splits, chat or Chat())
            for spec, leaves in pairs
            for task in leaves
        )


def _load(spec: TaskSpec) -> "list[Task]":
    """Return lm-eval's task objects of a spec."""
    if not isinstance(spec.task, str):
        return [_construct(config) for config in task_configs(spec.task)]
    tasks: list[Task] = []
    for leaf in leaf_configs(Path(spec.task)) if is_path(spec.task) else [spec.task]:
        tasks += _loaded(leaf)["tasks"].values() if isinstance(leaf, str) else [_construct(leaf)]
    if not tasks:
        raise TaskError(f"{spec.task}: the group has no tasks")
    return tasks


def task_objects(task: str) -> "list[Task | Group]":
    """Return lm-eval's objects of a task as its command line builds them, groups as groups.

    A group of a YAML file contains all its tasks directly: lm-eval aggregates over tasks, so its
    score is the same, but groups inside it get no line of results.

    Raises:
        TaskError: If the task or its data cannot be used.
    """
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    if not is_path(task):
        loaded = _loaded(task)
        top = loaded.get("groups", {}).get(task)
        return [top] if top is not None else list(loaded["tasks"].values())
    leaves = _load(TaskSpec(task))
    config = read_task_file(Path(task))
    if "group" not in config:
        return [*leaves]
    keys = {each.name for each in fields(GroupConfig)} & set(config)
    group = Group.from_config({key: config[key] for key in keys})
    for leaf in leaves:
        group.add(leaf)
    return [group]


def leaf_tasks(objects: "Sequence[Task | Group]") -> "list[Task]":
    """Return the tasks, those of groups included, in order."""
    from lm_eval.api.group import Group

    tasks: list[Task] = []
    for built in objects:
        tasks += built.get_all_tasks() if isinstance(built, Group) else [built]
    return tasks


def _loaded(name: str) -> Any:
    """Load a name of lm-eval's index: tasks and groups by name."""
    return _with_data(name, lambda: [builtin_index().load([name])])[0]


def _construct(config: dict[str, Any]) -> "Task":
    """Build a task object and load its data."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    return _with_data(str(config["task"]), lambda: manager.load([config])["tasks"].values())[0]


def _with_data(name: str, load: Any) -> list[Any]:
    """Call ``load``; turn exceptions of lm-eval and datasets into a TaskError with a remedy."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from jinja2 import TemplateError

    try:
        with log_level(logging.CRITICAL, "datasets"):  # its exceptions say the same
            return list(load())
    except (ConnectionError, DatasetNotFoundError) as error:
        raise TaskError(
            f"task '{name}': its data are not on this machine and the hub does not provide them "
            f"({one_line(error)}); load the data set once while online, or use local files"
        ) from error
    except StopIteration as error:
        raise TaskError(f"task '{name}': its data are empty; add documents") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise TaskError(f"task '{name}': its data cannot be read: {one_line(cause)}") from error
    except TypeError as error:
        raise TaskError(
            f"task '{name}' cannot be built: {one_line(error)}{_advice(error)}"
        ) from error
    except (ValueError, KeyError, IndexError, AttributeError, AssertionError, OSError) as error:
        raise TaskError(f"task '{name}' cannot be built: {one_line(error)}") from error
    except TemplateError as error:
        raise TaskError(
            f"task '{name}': a template fails on its data: {one_line(error)}"
        ) from error


def _advice(error: TypeError) -> str:
    """Return the remedy if a task's function does not take all that lm-eval passes."""
    if "unexpected keyword argument" not in str(error):
        return ""
    return "; lm-eval also passes the task's `metadata`: let the function take **kwargs"


def _refuse_duplicates(pairs: "Sequence[tuple[TaskSpec, list[Task]]]") -> None:
    """Raise TaskError if two tasks have one name: scores are stored by name."""
    labels: dict[str, str] = {}
    for spec, leaves in pairs:
        for task in leaves:
            if task.task_name in labels:
                raise TaskError(
                    f"task names must differ, got '{task.task_name}' from '{_label(spec)}' and "
                    f"from '{labels[task.task_name]}'; remove one, or give it another `task:` name"
                )
            labels[task.task_name] = _label(spec)


def _label(spec: TaskSpec) -> str:
    """Return what users call a spec."""
    return spec.task if isinstance(spec.task, str) else f"dictionary {spec.task.get('task')}"


def _freeze(task: Any, spec: TaskSpec, weight: float, splits: Splits, chat: Chat) -> FrozenTask:
    """Choose the metric and the documents, then build the prompts of each split."""
    metric = choose_metric(task, spec.metric)
    if spec.num_fewshot is not None:
        task.set_config("num_fewshot", spec.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    docs = list(task.eval_docs)
    hashes = [doc_hash(doc) for doc in docs]
    rows = _rows_by_split(hashes, spec, splits, task.task_name)
    prompts = build_prompts(task, docs, rows, seed=FEWSHOT_SEED, chat=chat)
    used = {row: hashes[row] for ids in rows.values() for row in ids}
    _refuse_missing_columns(task, spec, prompts)
    return FrozenTask(
        name=task.task_name,
        metric=metric,
        weight=weight,
        optimize=spec.optimize,
        source=_source(spec),
        output_type=str(task.OUTPUT_TYPE),
        num_fewshot=int(task.config.num_fewshot or 0),
        doc_ids=rows,
        doc_hashes=used,
        ingredients=_ingredients(task, metric, rows, used, prompts) | {"template": chat.digest},
        prompts=prompts,
        task=task,
    )


def _refuse_missing_columns(task: Any, spec: TaskSpec, prompts: Prompts) -> None:
    """Raise TaskError unless every document of a task has the columns to optimise."""
    for column in spec.optimize:
        kinds = NEEDS.get(column, (str(task.OUTPUT_TYPE),))
        if task.OUTPUT_TYPE not in kinds:
            raise TaskError(
                f"task '{task.task_name}': `optimize: {column}` is known for tasks of type "
                f"{' or '.join(kinds)}, got {task.OUTPUT_TYPE}; use `{METRIC}`"
            )
        if column not in NEEDS or task.OUTPUT_TYPE != "multiple_choice":
            continue
        for row, gold in prompts.gold.items():
            wrong = prompts.n_choices[row] - len(gold)
            if not gold or (column == "margin" and not wrong):
                raise TaskError(
                    f"task '{task.task_name}': `optimize: {column}` needs a right answer to every "
                    f"document, and a wrong one for a margin; got {len(gold)} right and {wrong} "
                    f"wrong for doc {row}; use `{METRIC}`"
                )


def _source(spec: TaskSpec) -> Path | None:
    """Return the YAML file of a spec; None if it is a name or a dictionary."""
    if isinstance(spec.task, str) and is_path(spec.task):
        return Path(spec.task).resolve()
    return None


def _rows_by_split(
    hashes: Sequence[str], spec: TaskSpec, splits: Splits, name: str
) -> dict[str, tuple[int, ...]]:
    """Return the rows of each split, ascending, capped by the spec and then by the splits."""
    chosen = capped(hashes, spec.max_items, cap_rank)
    rows = [row for row, digest in enumerate(hashes) if digest in chosen]
    if spec.guard:
        return {GUARD: tuple(rows)}
    sides = splits.assign([hashes[row] for row in rows])
    by_split = {
        split: tuple(row for row, side in zip(rows, sides, strict=True) if side == split)
        for split in SPLIT_NAMES
    }
    for split, share in ((SEARCH, splits.search_share), (CONFIRM, 1 - splits.search_share)):
        if share > 0 and len(by_split[split]) < 2:
            raise TaskError(
                f"task '{name}': {len(by_split[split])} of its {len(hashes)} documents are "
                f"{split} items (`search_share` {splits.search_share}), at least 2 are "
                "needed; change the share or the caps, or add documents"
            )
    return {split: ids for split, ids in by_split.items() if ids}


# Settings of a task that decide how answers become scores.
_SCORING = ("output_type", "filter_list", "metric_list", "process_results", "repeats")


def _described(config: Any, name: str) -> Any:
    """Return a setting for JSON; a function as its source."""
    value = getattr(config, name, None)
    return inspect.getsource(value) if inspect.isfunction(value) else value


def _ingredients(
    task: Any,
    metric: Metric,
    rows: Mapping[str, tuple[int, ...]],
    hashes: Mapping[int, str],
    prompts: Prompts,
) -> dict[str, str]:
    """Return digests of all that decides a task's scores besides model and tokenizer."""
    requests = [
        [
            row,
            [list(instance.args) for instance in prompts.instances[row]],
            prompts.targets[row],
            prompts.gold.get(row),
        ]
        for row in sorted(hashes)
    ]
    settings = {name: _described(task.config, name) for name in _SCORING}
    counts = [metric.key, metric.aggregation, metric.higher_is_better]
    return {
        "items": digest(
            [task.task_name, {split: list(ids) for split, ids in rows.items()}, hashes]
        ),
        "prompts": digest([task.task_name, requests]),
        "scoring": digest([task.task_name, counts, settings]),
    }


def task_ingredients(tasks: Sequence[FrozenTask]) -> dict[str, str]:
    """Return the joint digests of several tasks, by ingredient; see `FrozenTask`."""
    names = dict.fromkeys(name for task in tasks for name in task.ingredients)
    return {name: digest([task.ingredients[name] for task in tasks]) for name in names}
