"""List tasks, and find those whose data are missing here. Knows lm-eval's index and the data cache.

lm-eval notices missing data by asking the hub, 10 to 26 s per task and after the model is loaded.
Here only the configurations of tasks are read, and no data.
"""

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quiet import one_line, quiet
from .task_files import TaskError, check_task_config, did_you_mean, is_path, leaf_configs

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

HUB_SECONDS = 5.0
"""Longest wait for the hub's answer on a data set."""
_SWITCHES = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
_SHOWN = 4  # most tasks named per missing data set


@dataclass(frozen=True)
class TaskEntry:
    """One task, group or tag of the catalogue.

    Attributes:
        name: Value for ``task:``: lm-eval's name, or the path of a YAML file.
        kind: ``task`` or ``group``.
        n_tasks: Number of tasks in it.
        problem: Reason why it cannot run here, in one line; None if it can.
    """

    name: str
    kind: str
    n_tasks: int
    problem: str | None


@lru_cache(maxsize=1)
def builtin_index() -> "TaskManager":
    """Return lm-eval's index of built-in tasks, read once per process (5 to 25 s)."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_configs(task: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the configurations of all tasks of a name, a YAML file or a dictionary.

    Those of built-in tasks are as in lm-eval's index: includes resolved, functions not.

    Raises:
        TaskError: If there is no such task or file, or a file cannot be used.
    """
    if isinstance(task, Mapping):
        return [_checked(task)]
    if not is_path(task):
        return list(_builtin_configs(_checked_name(task), {}))
    configs: list[dict[str, Any]] = []
    for leaf in leaf_configs(Path(task)):
        is_config = isinstance(leaf, dict)
        configs += [leaf] if is_config else _builtin_configs(_checked_name(leaf), {})
    return configs


def _checked(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a task given as a dictionary, or raise TaskError."""
    name = task.get("task")
    if not isinstance(name, str):
        raise TaskError(f"a task given as a dictionary needs its name in `task`, got {name!r}")
    config = copy.deepcopy(dict(task))
    check_task_config(config, f"task '{name}'")
    return config


def _checked_name(name: str) -> str:
    """Return the name of a built-in task, or raise TaskError with the closest one."""
    index = builtin_index()
    if name not in index.task_index:
        raise TaskError(
            f"lm-eval has no task '{name}'{did_you_mean(name, index.all_tasks) or ';'} "
            "name your own task by the path of its YAML file"
        )
    return name


def _builtin_configs(name: str, overrides: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configurations of a name in lm-eval's index, ordered as by its ``TaskFactory``."""
    entry = builtin_index().task_index.get(name)
    kind = "INLINE" if entry is None else entry.kind.name
    config: dict[str, Any] = {} if entry is None else dict(entry.cfg or {})
    if kind == "TAG" and entry is not None:
        for member in sorted(entry.tags):
            yield from _builtin_configs(member, overrides)
    elif kind == "GROUP":
        yield from _members(config, overrides)
    else:
        yield config | dict(overrides) | {"task": name}


def _members(group: Mapping[str, Any], overrides: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configurations of a group's tasks, overridden by the group's other keys."""
    from lm_eval.config.group import GroupConfig

    group_keys = GroupConfig.__annotations__
    shared = {key: value for key, value in group.items() if key not in group_keys} | dict(overrides)
    members = group.get("task")
    for member in members if isinstance(members, list) else [members]:
        if isinstance(member, str):
            yield from _builtin_configs(member, shared)
        elif isinstance(member, dict) and "group" in member:
            yield from _members(member, shared)
        elif isinstance(member, dict) and "task" in member:
            extra = {key: value for key, value in member.items() if key != "task"}
            yield from _builtin_configs(str(member["task"]), shared | extra)


@dataclass(frozen=True)
class MissingData:
    """Missing data of a task: a data set of the hub, a local file or a file on the web.

    Attributes:
        dataset: Name of the data set on the hub; "" for a file.
        subset: Configuration of the data set, or the path or URL of the file.
    """

    dataset: str
    subset: str

    def __str__(self) -> str:
        """Return what is missing, in words."""
        if "://" in self.subset:
            return f"data file {self.subset} is on the web, which is switched off ({_SWITCHES})"
        if not self.dataset:
            return f"data file {self.subset} does not exist"
        return f"data set {self.dataset} {self.subset}".rstrip() + " is not in the cache"


def missing_data(config: Mapping[str, Any]) -> MissingData | None:
    """Return what is missing of a task's data on this machine; None if nothing is known to be.

    Args:
        config: Configuration of a task, from `task_configs`.
    """
    if config.get("custom_dataset") or "class" in config:
        return None  # the task's code makes or names its data
    path, kwargs = str(config.get("dataset_path")), config.get("dataset_kwargs") or {}
    if path in _packaged():
        file = _missing_file(kwargs)
        return None if file is None else MissingData("", file)
    if Path(path).is_dir() or _is_cached(path, config.get("dataset_name"), kwargs):
        return None
    return MissingData(path, str(config.get("dataset_name") or ""))


def _packaged() -> frozenset[str]:
    """Return the data formats that datasets reads by itself."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return frozenset(_PACKAGED_DATASETS_MODULES)


def _missing_file(kwargs: Mapping[str, Any]) -> str | None:
    """Return the first data file that is missing, or on the web while that is off; no globs."""
    files = kwargs.get("data_files") or []
    entries: list[Any] = list(files.values()) if isinstance(files, dict) else [files]
    names = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    for name in map(str, names):
        if "://" in name:
            if _is_offline():
                return name
        elif not any(sign in name for sign in "*?[") and not Path(name).expanduser().exists():
            return name
    return None


def _is_cached(path: str, name: str | None, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether datasets can load a data set of the hub from its cache alone."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *owner, last = path.split("/")
    folder = Path(kwargs.get("cache_dir") or config.HF_DATASETS_CACHE).expanduser()
    folder = folder / "___".join([*owner, camelcase_to_snakecase(last)])
    return any(
        (cached / "dataset_info.json").is_file()
        for cached in folder.glob("*/*/*")
        if name is None or cached.parts[-3] == name or cached.parts[-3].startswith(f"{name}-")
    )


def _is_offline() -> bool:
    """Tell whether the user has switched the network off for data."""
    from datasets import config
    from huggingface_hub import constants

    return bool(config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE)


def hub_problem(path: str) -> str | None:
    """Return why the hub cannot provide a data set; None if it can. Waits up to `HUB_SECONDS`."""
    from huggingface_hub import constants

    if _is_offline():
        return f"the hub is switched off ({_SWITCHES})"
    if (reason := _unreachable(constants.ENDPOINT)) is not None:
        return reason
    status = _status(f"{constants.ENDPOINT}/api/datasets/{path}")
    if isinstance(status, str):
        return f"the hub does not answer ({status})"
    return None if status < 400 else f"the hub does not have it, or not for you (HTTP {status})"


@lru_cache(maxsize=8)
def _unreachable(endpoint: str) -> str | None:
    """Return why the hub cannot be reached at all, or None; asked once per process."""
    status = _status(endpoint)
    return f"the hub cannot be reached ({status})" if isinstance(status, str) else None


def _status(url: str) -> int | str:
    """Return the HTTP status of a page of the hub, or why there is none."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub.utils import build_hf_headers

    request = Request(url, headers=build_hf_headers(), method="HEAD")
    try:
        with urlopen(request, timeout=HUB_SECONDS) as answer:
            return answer.status
    except HTTPError as error:
        return error.code
    except OSError as error:  # URLError and timeouts among them
        return one_line(error)


def refuse_missing_data(tasks: Iterable[str | Mapping[str, Any]]) -> None:
    """Check that the data of all tasks are here, before any task is built.

    Args:
        tasks: Names, YAML files or dictionaries, as in `TaskSpec`.

    Raises:
        TaskError: If data are missing; names every data set, its tasks, and the remedy.
    """
    with quiet():
        wanted = [
            (missing_data(config), str(config.get("task")))
            for t in tasks
            for config in task_configs(t)
        ]
        missing = [(what, name) for what, name in wanted if what is not None]
        reasons = {d: hub_problem(d) for d in dict.fromkeys(w.dataset for w, _ in missing) if d}
    by_dataset: dict[str, list[tuple[MissingData, str]]] = {}
    for what, name in missing:
        if not what.dataset or reasons[what.dataset] is not None:
            by_dataset.setdefault(what.dataset, []).append((what, name))
    if by_dataset:
        lines = [_described(needs) for needs in by_dataset.values()]
        why = "; ".join(dict.fromkeys(reason for reason in reasons.values() if reason))
        raise TaskError(
            f"data of {sum(map(len, by_dataset.values()))} task(s) are missing: {', '.join(lines)}"
            f"{f'; {why}' if why else ''}; {remedy()}"
        )


def remedy() -> str:
    """Return the remedy for missing data sets."""
    from datasets import config

    return (
        "load each data set once while online (datasets.load_dataset(PATH, NAME)), or copy the "
        f"cache of a machine that has them to {config.HF_DATASETS_CACHE}, or use a task with "
        "local files"
    )


def _described(needs: Sequence[tuple[MissingData, str]]) -> str:
    """Return one missing data set in words, with the first few tasks that need it."""
    first = needs[0][0]
    is_one = len({missing.subset for missing, _ in needs}) == 1
    what = first if is_one else MissingData(first.dataset, "")
    names, rest = [f"'{name}'" for _, name in needs[:_SHOWN]], len(needs) - _SHOWN
    return f"{what} (for {', '.join(names)}{f' and {rest} more' if rest > 0 else ''})"


def list_tasks(
    pattern: str | None = None, *, folders: Sequence[Path] = (), builtin: bool = True
) -> list[TaskEntry]:
    """List tasks by name, those of YAML files first, without asking the hub.

    Args:
        pattern: Glob or part of a name; None: all.
        folders: YAML files, or folders of them; a file is listed by its path.
        builtin: Whether to read lm-eval's index.

    Returns:
        One entry per task, group and tag.
    """
    with quiet():
        files = [_file_entry(path) for folder in folders for path in _task_files(folder)]
        entries = [entry for entry, names in files if _matches(pattern, *names)]
        if builtin:
            names = [name for name in builtin_index().all_tasks if _matches(pattern, name)]
            entries += [_builtin_entry(name) for name in names]
    return entries


def _matches(pattern: str | None, *names: str) -> bool:
    """Tell whether a glob or a part of a name matches any of the names."""
    if pattern is None:
        return True
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return any(fnmatch.fnmatchcase(name.lower(), glob.lower()) for name in names)


def _task_files(folder: Path) -> list[Path]:
    """Return the YAML files at a path that define a task or a group."""
    import yaml

    files = sorted(folder.glob("**/*.y*ml")) if folder.is_dir() else [folder]
    task_files = []
    for path in files:
        try:
            nodes = yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            task_files.append(path)  # listed with its problem
            continue
        keys = {key.value for key, _ in nodes.value} if isinstance(nodes, yaml.MappingNode) else ()
        if {"task", "group"} & set(keys) or not folder.is_dir():
            task_files.append(path)
    return task_files


def _file_entry(path: Path) -> tuple[TaskEntry, list[str]]:
    """Return the entry of a YAML file, and the names that match it."""
    try:
        leaves = leaf_configs(path)
        names = [leaf if isinstance(leaf, str) else str(leaf["task"]) for leaf in leaves]
        configs = task_configs(str(path.resolve()))
        problem = _first_problem(configs)
    except TaskError as error:
        return TaskEntry(str(path), "task", 0, str(error)), [str(path)]
    kind = "task" if len(leaves) == 1 else "group"
    return TaskEntry(str(path), kind, len(configs), problem), [str(path), *names]


def _builtin_entry(name: str) -> TaskEntry:
    """Return the entry of a name in lm-eval's index."""
    kind = builtin_index().task_index[name].kind.name
    configs = list(_builtin_configs(name, {}))
    problem = _first_problem(configs) if configs else "it has no tasks"
    if problem is None and any("class" in each or each.get("custom_dataset") for each in configs):
        problem = "its own code loads the data; whether they are here shows when it runs"
    return TaskEntry(name, "task" if "TASK" in kind else "group", len(configs), problem)


def _first_problem(configs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the first missing data of several tasks, and the number of others."""
    problems = [str(problem) for config in configs if (problem := missing_data(config))]
    others = len(set(problems)) - 1
    if not problems:
        return None
    return problems[0] if others <= 0 else f"{problems[0]}, and {others} more"
