"""What all sections share: frozen keys, the check for unknown ones, intervals, method names.

Imports neither torch nor Optuna, so that a misspelt key is reported at once.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    model_validator,
)

from ...merge.hints import check_keys, hint
from ...merge.recipe.methods import METHODS


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        check_keys("", values, cls.known_keys())
        return values

    @classmethod
    def known_keys(cls) -> list[str]:
        """Return the keys as they are written in the file."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def is_pair(value: Any) -> bool:
    """Whether a value is a list of two."""
    return isinstance(value, list | tuple) and len(value) == 2


def _as_interval(value: Any) -> Any:
    """Return the interval of a single number."""
    if isinstance(value, int | float):
        return (value, value)
    if not is_pair(value):
        raise ValueError(f"must be a number or [low, high], got {value!r}")
    return value


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
