"""The configuration of a search: one YAML file, checked before anything is loaded.

Knows the file's keys, their defaults and bounds, and where relative paths lie. Knows neither
torch nor Optuna, so that a misspelt key is reported at once.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..evals.task_files import is_path
from ..merge.methods import METHODS

PARENT_NAME = re.compile(r"[A-Za-z0-9_-]+")
RESULTS = Path("results")
MOST_POINTS = 1000
"""Upper bound of `depth`'s K: more than any model has layers."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the remedy."""


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError(f"must be a mapping of keys, got {values!r}")
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in values:
            if key not in known and key not in cls.model_fields:
                raise ValueError(f"unknown key `{key}`; {hint(str(key), known)}")
        return values


def hint(word: str, known: Iterable[str]) -> str:
    """Return the known word nearest to one that is not known, else all known ones."""
    words = sorted(known)
    nearest = difflib.get_close_matches(word, words, n=1)
    return f"did you mean `{nearest[0]}`?" if nearest else f"known: {', '.join(words)}"


def _as_interval(value: Any) -> Any:
    """Read a number as the interval that holds it alone."""
    return (value, value) if isinstance(value, int | float) else value


def _check_interval(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise ValueError(f"must be a number or [low, high] with low <= high, got [{low}, {high}]")
    return value


Interval = Annotated[
    tuple[
        Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]
    ],
    BeforeValidator(_as_interval),
]


class Depth(Section):
    """How coefficients vary over the layers: exactly one of the shapes, as one key."""

    shape: Literal["constant", "control_points", "blocks", "layers"]
    """constant: one value; control_points: linear between k points; blocks: k equal steps;
    layers: every layer free."""
    count: int = Field(default=1, ge=1, le=MOST_POINTS)
    """k of control_points and blocks; 1 or more."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Depth):
            return values
        if values in ("constant", "layers"):
            return {"shape": values}
        if isinstance(values, Mapping) and set(values) == {"shape", "count"}:
            return values
        if isinstance(values, Mapping) and len(values) == 1:
            shape, count = next(iter(values.items()))
            is_count = isinstance(count, int) and 1 <= count <= MOST_POINTS
            if shape in ("control_points", "blocks") and is_count:
                return {"shape": shape, "count": count}
        raise ValueError(
            "must be `constant`, `layers`, `{control_points: K}` or `{blocks: K}` with K in "
            f"1..{MOST_POINTS}, got {values!r}"
        )


class TaskSection(Section):
    """One lm-eval task that candidates are scored on."""

    task: str = Field(min_length=1)
    """lm-eval task name, or the path of a task YAML (relative to this configuration)."""
    num_fewshot: int | None = Field(default=None, ge=0)
    metric: str | None = None
    """Metric, or ``metric,filter``; default: the task's first metric."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of this task in the objective, relative to the other tasks' weights."""
    max_items: int | None = Field(default=None, ge=1)
    """At most this many docs of the task, those of lowest hash; default: all."""


class SplitsSection(Section):
    """Which items the search sees, and which are kept for the confirmation."""

    search_share: float = Field(default=0.5, gt=0, lt=1)
    search_items: int | None = Field(default=None, ge=2)
    """At most this many search items per task; default: all in the share."""
    confirm_items: int | None = Field(default=None, ge=2)


class MergeSection(Section):
    """What is computed when a recipe is materialised."""

    method: str = "task_arithmetic"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the resident model: the exported file is exactly what was scored."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`."""
    mask_seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(
                f"must be a known merge method, got `{method}`; {hint(method, METHODS)}"
            )
        return method


class SpaceSection(Section):
    """What the search may vary, and how far."""

    depth: Depth = Depth(shape="control_points", count=5)
    modules: tuple[Literal["attn", "mlp", "other"], ...] = ("attn", "mlp")
    """Module kinds with coefficients of their own; the tensors of the other kinds take the mean.
    Empty: all kinds share one curve."""
    weight: Interval | None = None
    """Bounds of every weight; default 1/P -+ 0.5, so that the middle is the uniform merge."""
    drop_rate: Interval = (0.0, 0.0)
    lambda_: Interval = Field(default=(1.0, 1.0), alias="lambda")

    @field_validator("weight", "lambda_")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        return None if value is None else _check_interval(value)

    @field_validator("drop_rate")
    @classmethod
    def _rate(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = _check_interval(value)
        if not 0 <= low <= high < 1:
            raise ValueError(f"`drop_rate` must be in [0, 1), got [{low}, {high}]")
        return value

    @field_validator("modules")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"`modules` must name each kind once, got {list(value)}")
        return value


class SearchSection(Section):
    """How candidates are proposed, and how many."""

    trials: int = Field(default=200, ge=0)
    """Candidates proposed by the sampler; the baselines come on top."""
    sampler: str = "CmaEsSampler"
    """Any sampler class of ``optuna.samplers``."""
    sampler_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that class, without its seed: that comes from ``run_seed``."""
    run_seed: int = Field(default=0, ge=0, lt=2**63)
    objective: Literal["mean", "min", "harmonic"] = "mean"
    """How the tasks' scores become the one number that the sampler sees."""
    finalists: int = Field(default=5, ge=1)
    """Best candidates that are scored on the confirm and guard items at the end."""

    @field_validator("sampler_args")
    @classmethod
    def _no_seed(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if "seed" in arguments:
            raise ValueError("must not hold `seed`, every trial has its own; use `search.run_seed`")
        return arguments


Rate = Annotated[float, Field(ge=0, lt=1)]


class BaselinesSection(Section):
    """Null baselines: the merges that anyone would try first, scored before the search."""

    lambdas: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = (
        0.2,
        0.3,
        0.4,
        0.6,
        0.8,
        1.0,
    )
    """Of task arithmetic with weight 1 for every parent."""
    ties_drop_rates: tuple[Rate, ...] = (0.8, 0.5)
    """0.8 is the default of the TIES paper (the top 20 % are kept)."""
    dare_ties_drop_rates: tuple[Rate, ...] = (0.5, 0.9)


class EvalSection(Section):
    """How models are scored."""

    batch_size: int = Field(default=32, ge=1)
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of torch; `auto` measures at the start of the study and keeps to it."""


class Config(Section):
    """A whole search. Paths are absolute once read."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    base: Path
    parents: dict[str, Path] = Field(min_length=1)
    made_by: str | None = None
    """Command that makes base and parents; shown when they are missing, never run."""
    tasks: tuple[TaskSection, ...] = Field(min_length=1)
    guard: tuple[TaskSection, ...] = ()
    """Tasks that the search never sees, scored at the end: what must not get worse."""
    splits: SplitsSection = SplitsSection()
    merge: MergeSection = MergeSection()
    space: SpaceSection = SpaceSection()
    search: SearchSection = SearchSection()
    baselines: BaselinesSection = BaselinesSection()
    eval: EvalSection = EvalSection()
    results: Path | None = None
    """Folder of the study (relative to the working directory); default results/NAME."""

    @field_validator("parents")
    @classmethod
    def _parent_names(cls, parents: dict[str, Path]) -> dict[str, Path]:
        for name in parents:
            if not PARENT_NAME.fullmatch(name) or name == "base":
                raise ValueError(
                    "a parent's name must be letters, digits, `_` or `-`, and not `base`; "
                    f"got `{name}`"
                )
        return parents

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        method = METHODS[self.merge.method]
        if not method.uses_lambda and self.space.lambda_ != (1.0, 1.0):
            others = ", ".join(name for name, row in METHODS.items() if row.uses_lambda)
            raise ValueError(
                f"`space.lambda` is not used by `{method.name}`; leave it out, or take {others}"
            )
        if not method.uses_drop_rate and self.space.drop_rate != (0.0, 0.0):
            others = ", ".join(name for name, row in METHODS.items() if row.uses_drop_rate)
            raise ValueError(
                f"`space.drop_rate` is not used by `{method.name}`; leave it out, or take {others}"
            )
        return self

    @property
    def results_folder(self) -> Path:
        """The folder of the study."""
        return self.results if self.results is not None else RESULTS / self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, keys as in the file."""
        return self.model_dump(mode="json", by_alias=True)


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

    def task(section: TaskSection) -> TaskSection:
        if not is_path(section.task):
            return section
        return section.model_copy(update={"task": str(absolute(section.task))})

    return config.model_copy(
        update={
            "base": absolute(config.base),
            "parents": {name: absolute(path) for name, path in config.parents.items()},
            "tasks": tuple(task(t) for t in config.tasks),
            "guard": tuple(task(t) for t in config.guard),
        }
    )
