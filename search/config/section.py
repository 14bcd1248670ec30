"""What all sections share: frozen keys, the check for unknown ones, intervals, method names.

Imports neither torch nor Optuna, so that a misspelt key is reported at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    model_validator,
)

from ...merge.hints import hint
from ...merge.recipe.methods import METHODS


def check_keys(keys: Iterable[Any], known: Collection[str]) -> None:
    """Raise ValueError at the first unknown key, naming the nearest known one."""
    for key in keys:
        if key not in known:
            raise ValueError(f"unknown key `{key}`; {hint(str(key), known)}")


def check_mapping(values: Any) -> Mapping[Any, Any]:
    """Return the values of a section, or raise ValueError if they are no mapping."""
    if not isinstance(values, Mapping):
        raise ValueError(f"must be a mapping of keys, got {values!r}")
    return values


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        keys = [key for key in check_mapping(values) if key not in cls.model_fields]
        check_keys(keys, {field.alias or name for name, field in cls.model_fields.items()})
        return values


def _as_interval(value: Any) -> Any:
    """Return the interval of a single number."""
    return (value, value) if isinstance(value, int | float) else value


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if low > high:
        raise ValueError(f"must be a number or [low, high] with low <= high, got [{low}, {high}]")
    return value


Interval = Annotated[
    tuple[FiniteFloat, FiniteFloat], BeforeValidator(_as_interval), AfterValidator(_check_order)
]
"""``[low, high]`` with both ends, or a number."""


def _check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"must be a known merge method, got `{name}`; {hint(name, METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_check_method)]
"""Row of the method table."""
