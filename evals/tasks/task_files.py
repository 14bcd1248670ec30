"""Read lm-eval task YAML files, and name every mistake in them. Knows files; no model, no data.

lm-eval reads ``data_files`` relative to the working directory and skips broken files silently.
Here they are relative to the YAML file, and every mistake is an error.
"""

import glob
from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..quiet import one_line

_STRUCTURE = {"include", "tag", "group", "group_alias", "task_list", "class"}
_METRIC_OPTIONS = {"metric", "aggregation", "higher_is_better", "hf_evaluate"}


class TaskError(ValueError):
    """A task that cannot be used as asked; the message names the place, the mistake, the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known word, or nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def is_path(task: str) -> bool:
    """Tell whether a task is given by the path of a YAML file, not by lm-eval's name."""
    return task.endswith((".yaml", ".yml")) or "/" in task or "\\" in task


def read_task_file(path: Path, via: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task YAML with its includes; relative data paths become absolute.

    Args:
        path: The file; ``include`` entries are relative to it, and its own keys override theirs.
        via: Files that include it.

    Returns:
        Configuration as lm-eval's loader returns it, ``!function`` resolved.

    Raises:
        TaskError: If a file is missing, is not YAML, includes itself, or names missing data.
    """
    path = Path(path).expanduser().resolve()
    if path in via:
        raise TaskError(f"{path}: a task file must not include itself, directly or indirectly")
    config = _load(path, via)
    _resolve_data(config, path)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        merged |= read_task_file(path.parent / name, (*via, path))
    merged.pop("task_list", None)  # belongs to the included file only, as in lm-eval
    return merged | config


def _load(path: Path, via: tuple[Path, ...]) -> dict[str, Any]:
    """Parse one file without its includes."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    named = f" (included by {via[-1]})" if via else ""
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.glob("*.y*ml"))[:8]) or "none"
        raise TaskError(f"a task is a YAML file, got the folder {path}; files in it: {names}")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        remedy = did_you_mean(path.name, near) or "; give the path of a task's YAML file"
        raise TaskError(f"task file {path} does not exist{named}{remedy}")
    try:
        config = load_yaml(path, resolve_func=True, recursive=False)
    except yaml.YAMLError as error:
        raise TaskError(f"{path}{named} must be YAML, got: {one_line(error)}") from error
    except (ImportError, AttributeError) as error:
        raise TaskError(f"{path}{named}: `!function` cannot be loaded: {error}") from error
    except ValueError as error:
        raise TaskError(
            f"{path}{named} must be a mapping of keys to values, got: {error}"
        ) from error
    return config


def _resolve_data(config: dict[str, Any], path: Path) -> None:
    """Make the data paths of a configuration absolute in place, and check that they exist."""
    kwargs = config.get("dataset_kwargs")
    dataset = config.get("dataset_path")
    if isinstance(dataset, str) and dataset.startswith("."):
        config["dataset_path"] = _existing(dataset, path)
    if not isinstance(kwargs, dict):
        return
    files = kwargs.get("data_files")
    resolved: dict[str, Any] = {}
    if isinstance(files, dict):
        resolved["data_files"] = {split: _all_existing(f, path) for split, f in files.items()}
    elif files is not None:
        resolved["data_files"] = _all_existing(files, path)
    if isinstance(kwargs.get("data_dir"), str) and dataset in _FORMATS:
        resolved["data_dir"] = _existing(kwargs["data_dir"], path)
    config["dataset_kwargs"] = kwargs | resolved


_FORMATS = ("json", "csv", "parquet", "text", "arrow", "xml", "webdataset")


def _all_existing(names: str | list[str], path: Path) -> str | list[str]:
    """Return `_existing` of a name, or of each name in a list."""
    if isinstance(names, list):
        return [_existing(name, path) for name in names]
    return _existing(names, path)


def _existing(name: str, path: Path) -> str:
    """Return the absolute form of a data path in the YAML at ``path``; may be a URL or a glob."""
    if "://" in name:
        return name
    absolute = path.parent / Path(name).expanduser()
    if not absolute.exists() and not glob.has_magic(name):
        raise TaskError(
            f"{path}: data file {absolute} does not exist; paths are relative to the task's YAML"
        )
    if not absolute.exists() and not glob.glob(str(absolute), recursive=True):  # noqa: PTH207
        raise TaskError(f"{path}: no data file matches {absolute}")
    return str(absolute)


def check_task_config(config: dict[str, Any], where: str) -> None:
    """Refuse unknown keys and metrics in a task's configuration.

    Raises:
        TaskError: If there are any; names the closest known one.
    """
    from lm_eval.config.task import TaskConfig

    known = {field.name for field in fields(TaskConfig)} | _STRUCTURE
    for key in config:
        if key not in known:
            raise TaskError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}")
    if not _has_data(config):
        raise TaskError(f"{where}: `dataset_path` is missing; for a JSONL file write `json`")
    if "class" not in config:
        _check_metric_list(config, where)


def _check_metric_list(config: dict[str, Any], where: str) -> None:
    """Refuse unknown metrics, for which lm-eval would ask the hub, and unknown aggregations."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY

    has_own_results = config.get("process_results") is not None
    for entry in config.get("metric_list") or []:
        metric, aggregation = entry.get("metric"), entry.get("aggregation")
        if metric is None:
            raise TaskError(f"{where}: every entry of `metric_list` needs `metric`, got {entry}")
        is_free = has_own_results or callable(metric) or entry.get("hf_evaluate")
        if not is_free and str(metric) not in METRIC_REGISTRY:
            raise TaskError(
                f"{where}: unknown metric '{metric}'{did_you_mean(str(metric), METRIC_REGISTRY)} "
                f"known are {', '.join(sorted(METRIC_REGISTRY))}"
            )
        if isinstance(aggregation, str) and aggregation not in AGGREGATION_REGISTRY:
            raise TaskError(
                f"{where}: unknown aggregation '{aggregation}'"
                f"{did_you_mean(aggregation, AGGREGATION_REGISTRY)} "
                f"known are {', '.join(sorted(AGGREGATION_REGISTRY))}"
            )


def leaf_configs(path: Path) -> list[dict[str, Any] | str]:
    """Return the configurations of all tasks in a YAML file: one task, or a group's members.

    Members of a group are inline tasks, groups, or names of tasks in files beside it. A name
    without such a file is returned as it is, for lm-eval's index.

    Raises:
        TaskError: If any of the files cannot be used.
    """
    path = Path(path).expanduser().resolve()
    config = read_task_file(path)
    if "group" not in config:
        if not isinstance(config.get("task"), str):
            raise TaskError(f"{path}: `task` must be the task's name, got {config.get('task')!r}")
        return [_sourced(config, path)]
    return list(_members(config, path, {}, (config["group"],)))


def _sourced(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checked configuration with the path of its file as metadata."""
    check_task_config(config, str(path))
    return config | {"metadata": dict(config.get("metadata") or {}) | {"config_source": str(path)}}


def _group_keys() -> set[str]:
    """Return the keys of a group itself; all others override its members' keys."""
    from lm_eval.config.group import GroupConfig

    return {field.name for field in fields(GroupConfig)} | _STRUCTURE


def _members(
    group: dict[str, Any], path: Path, overrides: dict[str, Any], via: tuple[str, ...]
) -> Iterator[dict[str, Any] | str]:
    """Yield the configurations of a group in the file ``path``; ``via`` names the groups above."""
    shared = {key: value for key, value in group.items() if key not in _group_keys()} | overrides
    tasks = group.get("task")
    for member in tasks if isinstance(tasks, list) else [tasks]:
        if isinstance(member, dict) and "group" in member:
            yield from _members(member, path, shared, (*via, member["group"]))
            continue
        extra = member if isinstance(member, dict) else {"task": member}
        name = extra.get("task")
        if not isinstance(name, str):
            raise TaskError(
                f"{path}: members of group '{via[-1]}' need a task name, got {member!r}"
            )
        yield from _named_member(name, shared | extra, path, via)


def _named_member(
    name: str, overrides: dict[str, Any], path: Path, via: tuple[str, ...]
) -> Iterator[dict[str, Any] | str]:
    """Yield the configurations of one group member by name."""
    if name in via:
        raise TaskError(f"{path}: group '{name}' must not contain itself")
    file = _find(name, path.parent)
    if file is None and not _has_data(overrides):
        if set(overrides) - {"task"}:
            raise TaskError(
                f"{path}: no file beside it defines '{name}', and keys of a group cannot override "
                f"a built-in task; write a YAML for '{name}' with `include`"
            )
        yield name
    elif file is None:
        _resolve_data(overrides, path)
        yield _sourced(overrides | {"task": f"{via[-1]}::{name}"}, path)  # lm-eval's name for it
    elif "group" in (config := read_task_file(file)):
        without_task = {key: value for key, value in overrides.items() if key != "task"}
        yield from _members(config, file, without_task, (*via, name))
    else:
        _resolve_data(overrides, path)
        yield _sourced(config | overrides, file)


def _has_data(config: dict[str, Any]) -> bool:
    """Tell whether a configuration names its data, so needs no file of its own."""
    return any(config.get(key) for key in ("dataset_path", "custom_dataset", "class"))


def _find(name: str, folder: Path) -> Path | None:
    """Return the YAML file under ``folder`` that defines the task or group ``name``."""
    for path in sorted(folder.glob("**/*.y*ml")):
        if name not in path.read_text(encoding="utf-8", errors="replace"):
            continue
        config = _load(path, ())
        if name in (config.get("group"), config.get("task")):
            return path
    return None
