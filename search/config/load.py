"""Find and read the YAML file of a search, make its paths absolute, apply command-line options."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from ...evals.tasks.task_files import is_path
from ...merge.hints import near
from ...merge.strict_yaml import load_yaml
from .config import Config, ConfigError
from .faults import fault_lines
from .scoring import TaskSection


def load_with_options(
    name: str, results: Path | None = None, **search: int | Path | None
) -> Config:
    """Read a configuration and apply command-line options, those of the section `search` by key."""
    config = load_config(find_config(name))
    options = {key: value for key, value in search.items() if value is not None}
    options |= {key: value.absolute() for key, value in options.items() if isinstance(value, Path)}
    section = config.search.model_copy(update=options)
    update = {"search": section} | ({} if results is None else {"results": results})
    return config.model_copy(update=update)


def find_config(name: str) -> Path:
    """Return the file of a configuration: a path, its folder, or a shipped name (``quickstart``).

    Raises:
        ConfigError: If there is none.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - an unknown ~user is left as it is
    if path.is_dir() and (path / "search.yaml").is_file():
        return path / "search.yaml"
    if path.is_file():
        return path
    shipped = Path(str(resources.files("heterosis.configs")))
    names = sorted(p.parent.name for p in shipped.glob("*/search.yaml"))
    if name in names:
        return shipped / name / "search.yaml"
    remedy = near(name, names) or (
        f"; give the path of a YAML file, or one of the shipped names: {', '.join(names)}"
    )
    raise ConfigError(f"no such configuration: `{name}`{remedy}")


def load_config(path: Path) -> Config:
    """Read and check a configuration; relative paths are taken from the file's directory.

    Raises:
        ConfigError: One line per fault, with the key, the value and the law.
    """
    try:
        data = load_yaml(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a YAML mapping with the keys of a search")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        lines = fault_lines(error, data)
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from error
    return _with_absolute_paths(config, path.parent.resolve())


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(path: Path | str) -> Path:
        return folder / os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111

    def place(value: Path | str) -> Path | str:
        is_id = isinstance(value, str) and not absolute(value).exists()
        return value if is_id else absolute(value)

    def task(section: TaskSection) -> TaskSection:
        if not is_path(section.task):
            return section
        return section.model_copy(update={"task": str(absolute(section.task))})

    warm_start = config.search.warm_start
    search = {"warm_start": warm_start and warm_start.absolute()}
    return config.model_copy(
        update={
            "search": config.search.model_copy(update=search),
            "base": place(config.base),
            "parents": {name: place(value) for name, value in config.parents.items()},
            "tasks": tuple(task(t) for t in config.tasks),
            "guard": tuple(task(t) for t in config.guard),
        }
    )
