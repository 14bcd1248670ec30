"""The configuration of a search: all sections of the YAML file, checked against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ...merge.hints import hint
from ...merge.recipe.groups import HEAD, INPUTS, LAYER_KINDS, LayerGroup
from ...merge.recipe.methods import METHODS, Method
from .faults import fault_lines
from .merge import MergeSection
from .rules import RULES
from .scoring import EvalSection, SplitsSection, TaskSection, WorkersSection
from .search import BaselinesSection, SearchSection
from .section import Section
from .space import SpaceSection, StageSection, check_stages

STUDY_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
PARENT_NAME = re.compile(r"[A-Za-z0-9_-]+")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?", re.ASCII)
RESULTS = Path("results")
DEFAULT_METHOD = "task_arithmetic"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the remedy."""


def _as_place(value: Any) -> Path | str:
    """Return a hub id as a string, and any other string as a path."""
    if not isinstance(value, Path | str) or not str(value):
        raise ValueError(f"must be a directory or a hub id such as `org/name`, got {value!r}")
    return value if isinstance(value, str) and HUB_ID.fullmatch(value) else Path(value)


Place = Annotated[Path | str, BeforeValidator(_as_place)]
"""Hugging Face directory, or hub id ``ORG/NAME[@REVISION]``."""


def _check_name(name: str) -> str:
    if not STUDY_NAME.fullmatch(name):
        raise ValueError(
            f"must be letters, digits, `_`, `-` or `.`, the first one no `.`, got {name!r}; "
            "it names the folder in `results`"
        )
    return name


class Config(Section):
    """The whole configuration of a search. Paths are absolute once read."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Name of the study."""
    base: Place
    """Model from which all parents were fine-tuned."""
    parents: dict[str, Place] = Field(min_length=1)
    """Name -> full fine-tune of the base, or LoRA adapter for it."""
    download: bool = False
    """Whether to download hub ids that are not in the local cache."""
    made_by: str | None = None
    """Command that makes base and parents; shown when they are missing, never run."""
    tasks: tuple[TaskSection, ...] = Field(min_length=1)
    """Tasks whose scores are optimised."""
    guard: tuple[TaskSection, ...] = ()
    """Tasks that must not get worse: never searched on, scored at the end."""
    splits: SplitsSection = SplitsSection()
    """Split of the tasks' items into search and confirm items."""
    merge: MergeSection = MergeSection()
    """How and where a recipe is merged."""
    space: SpaceSection = SpaceSection()
    """Parameters that the search varies, and their bounds."""
    stages: tuple[StageSection, ...] = ()
    """Spaces from coarse to fine, each around the best candidate so far; keys that differ from
    `space`. Empty: one stage, `space`."""
    search: SearchSection = SearchSection()
    """How candidates are proposed, and how many."""
    baselines: BaselinesSection = BaselinesSection()
    """Null baselines, scored before the search."""
    eval: EvalSection = EvalSection()
    """How models are scored."""
    workers: WorkersSection | None = None
    """Processes that score candidates; default: this one, one candidate at a time."""
    results: Path | None = None
    """Folder of the study (relative to the working directory); default: results/NAME."""

    @field_validator("parents")
    @classmethod
    def _check_parent_names(cls, parents: dict[str, Path | str]) -> dict[str, Path | str]:
        for name in parents:
            if not PARENT_NAME.fullmatch(name) or name == "base":
                raise ValueError(
                    "a parent's name must be letters, digits, `_` or `-`, and not `base`; "
                    f"got `{name}`"
                )
        return parents

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        if self.merge.method and self.space.method:
            raise ValueError(
                f"`merge.method` ({self.merge.method}) and `space.method` exclude each other; "
                "leave one out"
            )
        if self.merge.device_map is not None and self.merge.device != "auto":
            raise ValueError(
                "`merge.device_map` decides where the model is, got `merge.device: "
                f"{self.merge.device}` as well; leave one out"
            )
        self._check_space()
        if self.stages:
            check_stages(self.stages, self.search)
            for number in range(len(self.stages)):
                self._check_stage(number)
            self._check_refining()
        _check_objective(self.search, self.tasks)
        return self

    def _check_stage(self, number: int) -> None:
        try:
            self.of_stage(number)._check_space()
        except ValueError as error:
            lines = [str(error)]
            if isinstance(error, ValidationError):
                lines = fault_lines(error, self.stages[number].space)
            raise ValueError(f"`stages.{number}`: {'; '.join(lines)}") from error

    def _check_refining(self) -> None:
        shapes = [self.of_stage(number).space.depth.shape for number in range(len(self.stages))]
        for number, (before, after) in enumerate(pairwise(shapes), 1):
            if before == "tensors" != after:
                raise ValueError(
                    f"`stages.{number}`: a stage after `depth: tensors` must have it too, since no "
                    f"coarser space holds its candidates, got `{after}`; put that stage first"
                )

    def _check_space(self) -> None:
        rows = [METHODS[name] for name in self.methods]
        _check_use("lambda", self.space.lambda_ == (1.0, 1.0), rows, lambda row: row.uses_lambda)
        _check_use(
            "drop_rate", self.space.drop_rate == (0.0, 0.0), rows, lambda row: row.uses_drop_rate
        )
        for name, bounds in self.space.parameters.items():
            _check_parameter(name, bounds, rows)
        for row in rows:
            if row.most_parents is not None and len(self.parents) > row.most_parents:
                raise ValueError(
                    f"`{row.name}` merges at most {row.most_parents} parents at a time, got "
                    f"{len(self.parents)}; leave out parents, or use another method"
                )
        _check_use("mask_seed", self.space.mask_seed is None, rows, lambda row: row.is_random)
        _check_optional(self.space.optional, self.parents)
        _check_kinds(self.space.modules, self.merge.layer_groups)

    def of_stage(self, number: int) -> Config:
        """Return the configuration with the space of one stage, and no stages."""
        space = self.stages[number].over(self.space)
        return self.model_copy(update={"space": space, "stages": ()})

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of the search: one, or those that it chooses from."""
        return self.space.method or (self.merge.method or DEFAULT_METHOD,)

    @property
    def optional(self) -> tuple[str, ...]:
        """Parents that a candidate may leave out."""
        optional = self.space.optional
        return tuple(self.parents) if optional is True else optional or ()

    @property
    def results_folder(self) -> Path:
        """Folder of the study."""
        return self.results if self.results is not None else RESULTS / self.name

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, keys as in the file."""
        return self.model_dump(mode="json", by_alias=True)


def _check_use(
    key: str, is_default: bool, rows: list[Method], uses: Callable[[Method], bool]
) -> None:
    if is_default or any(uses(row) for row in rows):
        return
    others = ", ".join(name for name, row in METHODS.items() if uses(row))
    names = ", ".join(f"`{row.name}`" for row in rows)
    raise ValueError(f"`space.{key}` is not used by {names}; leave it out, or use {others}")


def _check_parameter(name: str, bounds: tuple[float, float], rows: list[Method]) -> None:
    known = {p.name for row in rows for p in row.parameters}
    matches = [p for row in rows for p in row.parameters if p.name == name]
    names = ", ".join(f"`{row.name}`" for row in rows)
    if not known:
        raise ValueError(f"`space.parameters`: {names} has no parameters; leave out `{name}`")
    if not matches:
        raise ValueError(
            f"`space.parameters`: {names} has no parameter `{name}`; {hint(name, known)}"
        )
    low, high = max(p.low for p in matches), min(p.high for p in matches)
    if not low <= bounds[0] <= bounds[1] <= high:
        raise ValueError(
            f"`space.parameters.{name}` must lie in [{low:g}, {high:g}] ({matches[0].unit}), got "
            f"[{bounds[0]:g}, {bounds[1]:g}]"
        )


def _check_optional(optional: bool | tuple[str, ...], parents: Collection[str]) -> None:
    if optional and len(parents) < 2:
        raise ValueError(
            f"`space.optional` chooses among several parents, got {len(parents)}; leave it out"
        )
    for parent in optional if isinstance(optional, tuple) else ():
        if parent not in parents:
            raise ValueError(
                f"`space.optional` must be true or name parents, got `{parent}`; "
                f"{hint(parent, parents)}"
            )


def _check_kinds(modules: Iterable[str], layer_groups: Mapping[str, str]) -> None:
    groups = (LayerGroup.from_name(name.replace("{layer}", "0")) for name in layer_groups.values())
    known = {*LAYER_KINDS, *INPUTS, HEAD, *(group.kind for group in groups)}
    for kind in modules:
        if kind not in known:
            raise ValueError(
                f"`space.modules` must name module kinds, got `{kind}`; {hint(kind, known)} "
                "(`merge.layer_groups` defines more)"
            )


def _check_objective(search: SearchSection, tasks: Sequence[TaskSection]) -> None:
    rule = None if search.objective is None else RULES[search.objective]
    weighed = [task.task for task in tasks if task.weight != 1]
    if weighed and rule is not None and not rule.uses_weights:
        *first, last = (name for name, row in RULES.items() if row.uses_weights)
        users = f"{', '.join(first)} and {last}"
        raise ValueError(
            f"`tasks.weight` is used by the objectives {users}, got `objective: "
            f"{search.objective}` and a weight for {', '.join(weighed)}; leave one out"
        )
    several = [task.task for task in tasks if len(task.optimize) > 1]
    has_several = rule is not None and rule.has_several
    if several and not has_several:
        raise ValueError(
            "`tasks.optimize` may name several columns if `search.objective` is pareto, got "
            f"`{search.objective or 'none'}` and several for {', '.join(several)}; name one"
        )
    if has_several and sum(len(task.optimize) for task in tasks) < 2:
        raise ValueError(
            f"`search.objective: {search.objective}` needs two tasks, or two columns in "
            "`tasks.optimize`, got one; use `mean`"
        )
