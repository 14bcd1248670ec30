"""Which tasks can run here, and what the others lack. Knows lm-eval's index and the data cache.

lm-eval finds out that data are missing by asking the hub, task after task, 10 to 26 s each and
after the model is loaded. Here a task's configuration is looked at instead: no data are read.
"""

import copy
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..quiet import quiet
from .task_files import TaskError, check_task_config, did_you_mean, is_path, leaf_configs

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

HUB_SECONDS = 5.0
"""Longest wait for the hub to say whether it has a data set."""
_SWITCHES = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
_SHOWN = 4  # tasks named per missing data set


@dataclass(frozen=True)
class TaskEntry:
    """One task, or group or tag of tasks, that a person can ask for.

    Attributes:
        name: What to write in ``task:``: lm-eval's name, or the path of a YAML file.
        kind: ``task`` or ``group``.
        n_tasks: How many tasks it stands for.
        problem: Why it cannot run here, in one line; None if it can.
    """

    name: str
    kind: str
    n_tasks: int
    problem: str | None


@lru_cache(maxsize=1)
def builtin_index() -> "TaskManager":
    """lm-eval's index of built-in tasks, read once per process (5 to 25 s)."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_configs(task: str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Configurations of all tasks that a name, a YAML file or a dictionary stands for.

    Built-in tasks come as lm-eval's index has them: includes resolved, functions not.

    Raises:
        TaskError: If there is no such task or file, or a file is not usable.
    """
    if isinstance(task, Mapping):
        return [_checked(task)]
    if not is_path(task):
        return list(_builtin_configs(_known(task), {}))
    found: list[dict[str, Any]] = []
    for leaf in leaf_configs(Path(task)):
        found += [leaf] if isinstance(leaf, dict) else _builtin_configs(_known(leaf), {})
    return found


def _checked(task: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a task that is given as a dictionary; raises TaskError if it cannot be one."""
    name = task.get("task")
    if not isinstance(name, str):
        raise TaskError(f"a task given as a dictionary needs its name in `task`, got {name!r}")
    config = copy.deepcopy(dict(task))
    check_task_config(config, f"task '{name}'")
    return config


def _known(name: str) -> str:
    """Return a built-in name, or raise TaskError with the closest one."""
    index = builtin_index()
    if name not in index.task_index:
        raise TaskError(
            f"lm-eval has no task '{name}'{did_you_mean(name, index.all_tasks) or ';'} "
            "a task of your own is named by the path of its YAML file"
        )
    return name


def _builtin_configs(name: str, overrides: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Leaf configurations of a name in lm-eval's index, as its ``TaskFactory`` walks it."""
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
    """Leaf configurations of a group's ``task`` list; keys that are no group's pass to them."""
    from lm_eval.config.group import GroupConfig

    own = {key: value for key, value in group.items() if key not in GroupConfig.__annotations__}
    shared = own | dict(overrides)
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
    """What is missing of a task's data: a data set of the hub, or a file, or one on the web.

    Attributes:
        dataset: Name of the data set on the hub; empty for a file.
        subset: Its configuration, or the file or its address.
    """

    dataset: str
    subset: str

    def __str__(self) -> str:
        """In words, without the reason."""
        if "://" in self.subset:
            return f"data file {self.subset} lies on the web, which is switched off ({_SWITCHES})"
        if not self.dataset:
            return f"data file {self.subset} does not exist"
        return f"data set {self.dataset} {self.subset}".rstrip() + " is not in the cache"


def missing_data(config: Mapping[str, Any]) -> MissingData | None:
    """Say what is missing of a task's data on this machine, or None if nothing is known to be.

    Args:
        config: A task's configuration, such as those of `task_configs`.
    """
    if config.get("custom_dataset") or "class" in config:
        return None  # made, or named, by code of the task: known when it runs
    path, kwargs = str(config.get("dataset_path")), config.get("dataset_kwargs") or {}
    if path in _packaged():
        file = _missing_file(kwargs)
        return None if file is None else MissingData("", file)
    if Path(path).is_dir() or _is_cached(path, config.get("dataset_name"), kwargs):
        return None
    return MissingData(path, str(config.get("dataset_name") or ""))


def _packaged() -> frozenset[str]:
    """Data formats that datasets reads by itself."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return frozenset(_PACKAGED_DATASETS_MODULES)


def _missing_file(kwargs: Mapping[str, Any]) -> str | None:
    """The first data file that does not exist, or lies on the web and the hub is off; no globs."""
    files = kwargs.get("data_files") or []
    given: list[Any] = list(files.values()) if isinstance(files, dict) else [files]
    flat = [name for entry in given for name in (entry if isinstance(entry, list) else [entry])]
    for name in map(str, flat):
        if "://" in name:
            if _is_offline():
                return name
        elif not any(sign in name for sign in "*?[") and not Path(name).expanduser().exists():
            return name
    return None


def _is_cached(path: str, name: str | None, kwargs: Mapping[str, Any]) -> bool:
    """Whether datasets can load a data set of the hub from its cache alone."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *owner, last = path.split("/")
    folder = Path(kwargs.get("cache_dir") or config.HF_DATASETS_CACHE).expanduser()
    folder = folder / "___".join([*owner, camelcase_to_snakecase(last)])
    return any(
        (made / "dataset_info.json").is_file()
        for made in folder.glob("*/*/*")
        if name is None or made.parts[-3] == name or made.parts[-3].startswith(f"{name}-")
    )


def _is_offline() -> bool:
    """Whether the person has switched the network off for data."""
    from datasets import config
    from huggingface_hub import constants

    return bool(config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE)


def hub_problem(path: str) -> str | None:
    """Why the hub will not give a data set, or None if it has it; waits at most `HUB_SECONDS`."""
    from huggingface_hub import constants

    if _is_offline():
        return f"the hub is switched off ({_SWITCHES})"
    if (reason := _unreachable(constants.ENDPOINT)) is not None:
        return reason
    status = _status(f"{constants.ENDPOINT}/api/datasets/{path}")
    if isinstance(status, str):
        return f"the hub does not answer for it ({status})"
    return None if status < 400 else f"the hub has it not, or not for you (HTTP {status})"


@lru_cache(maxsize=8)
def _unreachable(endpoint: str) -> str | None:
    """Why a hub cannot be reached at all, or None; asked once per process."""
    status = _status(endpoint)
    return f"the hub cannot be reached ({status})" if isinstance(status, str) else None


def _status(url: str) -> int | str:
    """HTTP status of a page of the hub, or why there is none."""
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
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def refuse_missing_data(tasks: Iterable[str | Mapping[str, Any]]) -> None:
    """Look for the data of all tasks before any of them is built.

    Args:
        tasks: Names, YAML files or dictionaries, as in `TaskSpec`.

    Raises:
        TaskError: Naming every data set that is missing, the tasks that need it, and the remedy.
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
        lines = [_said(found) for found in by_dataset.values()]
        why = "; ".join(dict.fromkeys(reason for reason in reasons.values() if reason))
        raise TaskError(
            f"data of {sum(map(len, by_dataset.values()))} task(s) are missing: {', '.join(lines)}"
            f"{f'; {why}' if why else ''}; {remedy()}"
        )


def remedy() -> str:
    """What a person can do about data sets that are missing."""
    from datasets import config

    return (
        "load each data set once while online (datasets.load_dataset(PATH, NAME)), or copy the "
        f"cache of a machine that has them to {config.HF_DATASETS_CACHE}, or use a task with "
        "local files"
    )


def _said(found: Sequence[tuple[MissingData, str]]) -> str:
    """One missing data set, and the tasks that it is missing for, the first few of many."""
    subsets = dict.fromkeys(what.subset for what, _ in found)
    what = str(found[0][0]) if len(subsets) == 1 else str(MissingData(found[0][0].dataset, ""))
    names, rest = [f"'{name}'" for _, name in found[:_SHOWN]], len(found) - _SHOWN
    return f"{what} (for {', '.join(names)}{f' and {rest} more' if rest > 0 else ''})"


def list_tasks(
    pattern: str | None = None, *, folders: Sequence[Path] = (), builtin: bool = True
) -> list[TaskEntry]:
    """List tasks by name, those of YAML files first; the hub is not asked.

    Args:
        pattern: Glob over names, or a part of them; None: all.
        folders: YAML files, or folders of them; a file is named by its path.
        builtin: Whether to read lm-eval's index.

    Returns:
        One entry per task, group and tag, with what it lacks.
    """
    with quiet():
        own = [_own(path) for folder in folders for path in _task_files(folder)]
        found = [listed for listed, names in own if _matches(pattern, *names)]
        if builtin:
            index = builtin_index()
            names = [name for name in index.all_tasks if _matches(pattern, name)]
            found += [_builtin(name) for name in names]
    return found


def _matches(pattern: str | None, *names: str) -> bool:
    """Whether a glob, or a part of a name, fits any of the names."""
    if pattern is None:
        return True
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return any(fnmatch.fnmatchcase(name.lower(), wanted.lower()) for name in names)


def _task_files(folder: Path) -> list[Path]:
    """The YAML files at a path that define a task or a group."""
    import yaml

    files = sorted(folder.glob("**/*.y*ml")) if folder.is_dir() else [folder]
    found = []
    for path in files:
        try:
            nodes = yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            found += [path]  # named with its problem
            continue
        keys = {key.value for key, _ in nodes.value} if isinstance(nodes, yaml.MappingNode) else ()
        if {"task", "group"} & set(keys) or not folder.is_dir():
            found += [path]
    return found


def _own(path: Path) -> tuple[TaskEntry, list[str]]:
    """A YAML file's entry, and the names that it is found by."""
    try:
        leaves = leaf_configs(path)
        named = [leaf if isinstance(leaf, str) else str(leaf["task"]) for leaf in leaves]
        configs = task_configs(str(path.resolve()))
        problem = _first_problem(configs)
    except TaskError as error:
        return TaskEntry(str(path), "task", 0, str(error)), [str(path)]
    kind = "task" if len(leaves) == 1 else "group"
    return TaskEntry(str(path), kind, len(configs), problem), [str(path), *named]


def _builtin(name: str) -> TaskEntry:
    kind = builtin_index().task_index[name].kind.name
    configs = list(_builtin_configs(name, {}))
    problem = _first_problem(configs) if configs else "it has no tasks"
    if problem is None and any("class" in each or each.get("custom_dataset") for each in configs):
        problem = "its own code loads the data, from where is known when it runs"
    return TaskEntry(name, "task" if "TASK" in kind else "group", len(configs), problem)


def _first_problem(configs: Iterable[Mapping[str, Any]]) -> str | None:
    """What several tasks lack: the first thing, and how many others."""
    problems = [str(problem) for config in configs if (problem := missing_data(config))]
    others = len(set(problems)) - 1
    if not problems:
        return None
    return problems[0] if others <= 0 else f"{problems[0]}, and {others} more"
