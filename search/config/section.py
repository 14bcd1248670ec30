"""The sections of a search's configuration: their keys, defaults, bounds and what they mean.

Knows each section by itself; what sections demand of each other is checked in `config`. Knows
neither torch nor Optuna, so that a misspelt key is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ...merge.hints import hint
from ...merge.recipe.methods import METHODS


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


def _known_method(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"must be a known merge method, got `{method}`; {hint(method, METHODS)}")
    return method
