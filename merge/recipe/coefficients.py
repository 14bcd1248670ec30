"""Coefficients of one layer group, and checks that they fit parents and methods.

Pure values; errors name the law, the value and the remedy. Knows no files, no torch.

Shapes: P parents.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..hints import check_keys, hint
from .methods import METHODS, Method, Parameter

_KEYS = ("weights", "drop_rates", "method", "lambda", "parameters")


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of one layer group: one weight and one drop rate per parent, in recipe order.

    ``parameters`` maps names of method parameters to one number per parent, or a single one if
    the parameter is shared; the others keep the method's default. ``method`` and ``lambda_`` are
    the recipe's if None.
    """

    weights: tuple[float, ...]
    drop_rates: tuple[float, ...]
    parameters: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    method: str | None = None
    lambda_: float | None = None

    def __post_init__(self) -> None:
        """Check lengths and ranges; numbers become floats, -0.0 becomes 0.0."""
        weights = tuple(number("weight", w) for w in self.weights)
        drop_rates = tuple(number("drop_rate", p) for p in self.drop_rates)
        parameters = {
            name: tuple(number(name, value) for value in self.parameters[name])
            for name in sorted(self.parameters)
        }
        if len(weights) != len(drop_rates):
            raise ValueError(
                f"a layer group needs one weight and one drop_rate per parent, got "
                f"{len(weights)} weights and {len(drop_rates)} drop_rates"
            )
        for rate in drop_rates:
            if not 0.0 <= rate < 1.0:
                raise ValueError(
                    f"`drop_rate` must be in [0, 1), got {rate}; use 0 to drop nothing"
                )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "drop_rates", drop_rates)
        object.__setattr__(self, "parameters", MappingProxyType(parameters))
        if self.method is not None:
            known_method(self.method)
        if self.lambda_ is not None:
            object.__setattr__(self, "lambda_", number("lambda", self.lambda_))

    def permuted(self, order: Iterable[int]) -> "Coefficients":
        """Return a copy with reordered parents: entry k is the former entry order[k]."""
        order = tuple(order)

        def pick(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[i] for i in order)

        parameters = {
            name: pick(values) if len(values) > 1 else values
            for name, values in self.parameters.items()
        }
        weights, drop_rates = pick(self.weights), pick(self.drop_rates)
        return replace(self, weights=weights, drop_rates=drop_rates, parameters=parameters)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without what is not set."""
        data: dict[str, Any] = {
            "weights": list(self.weights),
            "drop_rates": list(self.drop_rates),
        }
        if self.method is not None:
            data["method"] = self.method
        if self.lambda_ is not None:
            data["lambda"] = self.lambda_
        if self.parameters:
            data["parameters"] = {name: list(values) for name, values in self.parameters.items()}
        return data

    @classmethod
    def from_dict(cls, group: str, data: Mapping[str, Any]) -> "Coefficients":
        """Read the result of `to_dict`; ``group`` is named in errors."""
        check_keys(f"recipe: {group}", data, _KEYS, required=_KEYS[:2])
        parameters = data.get("parameters", {})
        if not isinstance(parameters, Mapping):
            raise ValueError(f"recipe: {group}: `parameters` must be a mapping, got {parameters!r}")
        return cls(
            listed("weights", data["weights"]),
            listed("drop_rates", data["drop_rates"]),
            {name: listed(name, values) for name, values in parameters.items()},
            data.get("method"),
            data.get("lambda"),
        )


def known_method(name: str) -> Method:
    """Return the row of a method; ValueError that names the nearest known one."""
    if name in METHODS:
        return METHODS[name]
    remedy = hint(str(name), METHODS, all_of="choose one of")
    raise ValueError(f"`method` must name a known merge method, got {name!r}; {remedy}")


def number(name: str, value: Any) -> float:
    """Return a finite float, -0.0 as 0.0; ValueError with its name for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(value) + 0.0  # -0.0 becomes 0.0


def listed(name: str, value: Any) -> tuple[Any, ...]:
    """Return a JSON list as a tuple; ValueError with its name for anything else."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"`{name}` must be a list, got {value!r}; put it in [brackets]")
    return tuple(value)


def check_coefficients(
    group: str, coefficients: Coefficients, parents: tuple[str, ...], method: Method
) -> None:
    """Refuse coefficients that do not fit the parents or the method of their group."""
    if len(coefficients.weights) != len(parents):
        raise ValueError(
            f"layer group {group} needs one weight per parent, got {len(coefficients.weights)} "
            f"weights for {len(parents)} parents"
        )
    if not method.uses_drop_rate and any(coefficients.drop_rates):
        raise ValueError(
            f"method `{method.name}` has no drop_rate, it must be 0, got "
            f"{max(coefficients.drop_rates)} in layer group {group}; leave it out"
        )
    if not method.uses_lambda and coefficients.lambda_ not in (None, 1.0):
        raise ValueError(
            f"method `{method.name}` has no lambda, it must be 1, got {coefficients.lambda_} in "
            f"layer group {group}; scale the weights instead"
        )
    taking_part = sum(weight != 0.0 for weight in coefficients.weights)
    if method.most_parents is not None and taking_part > method.most_parents:
        raise ValueError(
            f"method `{method.name}` merges at most {method.most_parents} parents at a time, got "
            f"{taking_part} weights other than 0 in layer group {group}; set the others to 0"
        )
    for name, values in coefficients.parameters.items():
        _check_parameter(group, _known_parameter(method, name), values, parents)


def _known_parameter(method: Method, name: str) -> Parameter:
    known = {parameter.name: parameter for parameter in method.parameters}
    if name in known:
        return known[name]
    remedy = hint(name, known, all_of="it has")
    raise ValueError(f"method `{method.name}` has no parameter `{name}`; {remedy}")


def _check_parameter(
    group: str, parameter: Parameter, values: tuple[float, ...], parents: tuple[str, ...]
) -> None:
    expected = 1 if parameter.is_shared else len(parents)
    if len(values) != expected:
        count = "a single number" if parameter.is_shared else "one number per parent"
        raise ValueError(
            f"`{parameter.name}` needs {count} ({expected}), got {len(values)} in layer "
            f"group {group}"
        )
    for value in values:
        if not parameter.low <= value <= parameter.high:
            raise ValueError(
                f"`{parameter.name}` must be in [{parameter.low:g}, {parameter.high:g}], got "
                f"{value} in layer group {group}; its default is {parameter.default:g}"
            )
