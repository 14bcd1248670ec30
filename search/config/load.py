"""Find, read and validate the YAML file of a search; apply options of the command line."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ...evals.tasks.task_files import is_path
from .config import Config, ConfigError
from .scoring import TaskSection


def load_with_options(
    name: str, results: Path | None = None, **search: int | Path | None
) -> Config:
    """Read a configuration and lay the command line's options over it, those of `search` by key."""
    loaded = load_config(find_config(name))
    given = {key: value for key, value in search.items() if value is not None}
    given |= {key: value.absolute() for key, value in given.items() if isinstance(value, Path)}
    section = loaded.search.model_copy(update=given)
    update = {"search": section} | ({} if results is None else {"results": results})
    return loaded.model_copy(update=update)


def find_config(name: str) -> Path:
    """Find a configuration by path, or by the name of one that is shipped (``quickstart``).

    Raises:
        ConfigError: If there is neither.
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
    raise ConfigError(
        f"no such configuration: `{name}`; give the path of a YAML file, or one of the shipped "
        f"names: {', '.join(names)}"
    )


class _OnceLoader(yaml.SafeLoader):
    """Reads plain YAML; a key that stands twice is an error, not a silent last word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key `{key}` stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_config(path: Path) -> Config:
    """Read and check a configuration; relative paths are taken from the file's own directory.

    Raises:
        ConfigError: One line per fault, each with the key, the value and the law.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: not readable as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a YAML mapping with the keys of a search")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _lines(error))) from error
    return _with_absolute_paths(config, path.parent.resolve())


def _lines(error: ValidationError) -> list[str]:
    lines = []
    places = [fault["loc"] for fault in error.errors()]
    for fault in error.errors():
        inside = any(
            other[: len(fault["loc"])] == fault["loc"] for other in places if other != fault["loc"]
        )
        if fault["type"] == "too_short" and inside:
            continue  # its faulty members were left out: they are told
        where = ".".join(str(part) for part in fault["loc"])
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            lines.append(f"the key `{where}` is missing")
        elif fault["type"] == "value_error":
            lines.append(f"{where}: {what}" if where else what)
        else:
            lines.append(f"{where}: {what}, got {fault['input']!r}")
    return lines


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

    former = config.search.warm_start
    search = {"warm_start": former and former.absolute()}
    return config.model_copy(
        update={
            "search": config.search.model_copy(update=search),
            "base": place(config.base),
            "parents": {name: place(value) for name, value in config.parents.items()},
            "tasks": tuple(task(t) for t in config.tasks),
            "guard": tuple(task(t) for t in config.guard),
        }
    )
