"""Parameters of mergekit's YAML: numbers and flags, by filter and by depth.

Semantics are those of mergekit 0.1.5, determined by running it: a filter is a substring test on the
tensor's name and the first match decides; a list of numbers is a gradient, linear over the
layers; if no filter of a level matches, the next level decides. Numbers are decimals,
so that 1 - density has the digits that a user would write. Knows no methods and no models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from types import MappingProxyType
from typing import Any

from .. import hints

__all__ = ["Condition", "MergekitError", "Parameters", "check_keys", "first", "read_parameters"]
Scalar = bool | Decimal
FLAGS = frozenset(
    {
        *("normalize", "rescale", "int8_mask", "nuslerp_row_wise", "nuslerp_flatten"),
        *("normalize_weights", "filter_wise"),
    }
)
NUMBERS = frozenset(
    {
        *("weight", "density", "gamma", "epsilon", "lambda", "t", "eps", "max_iter", "tol"),
        *("select_topk", "scale", "r", "alpha"),
    }
)
"""The numeric parameters of all methods of mergekit."""
_WORDS: dict[str, bool] = dict.fromkeys(("1", "true", "yes", "on", "t", "y"), True)
_WORDS |= dict.fromkeys(("0", "false", "no", "off", "f", "n"), False)


class MergekitError(ValueError):
    """A mergekit configuration that is not supported; one line: place, fault, remedy."""


check_keys = partial(hints.check_keys, error=MergekitError)


@dataclass(frozen=True)
class Condition:
    """A value for the tensors whose name contains ``filter`` (None: for all).

    A tuple is a gradient: its values are spread evenly over the layers.
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]

    def applies(self, tensor: str) -> bool:
        """Return whether the filter matches a tensor."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Parameters = Mapping[str, tuple[Condition, ...]]


def first(levels: Sequence[Parameters], name: str, tensor: str, t: float) -> Scalar | None:
    """Return the value of a parameter for a tensor at position ``t`` in [0, 1] of its slice.

    Args:
        levels: From highest to lowest precedence.
        name: Name of the parameter.
        tensor: Name of the tensor.
        t: 0 in the first layer of the slice, 1 in the last.

    Returns:
        None if no level has a value for this tensor.
    """
    for parameters in levels:
        hits = (c for c in parameters.get(name, ()) if c.applies(tensor))
        condition = next(hits, None)
        if condition is not None and condition.value != ():
            return _at(condition.value, t)
    return None


def _at(value: Scalar | tuple[Scalar, ...], t: float) -> Scalar:
    if not isinstance(value, tuple):
        return value
    place = t * (len(value) - 1)
    low = int(place)
    if isinstance(value[0], bool):
        return value[low]
    share = place - low
    ends = [float(number) for number in value]
    mixed = (1 - share) * ends[low] + share * ends[min(low + 1, len(ends) - 1)]
    return Decimal(repr(mixed))


def read_parameters(where: str, given: Any) -> Parameters:
    """Read and check one level of parameters.

    Args:
        where: Its place in the file, for messages.
        given: The YAML value; None means no parameters.

    Raises:
        MergekitError: Unknown parameters, values of the wrong kind.
    """
    if given is None:
        return MappingProxyType({})
    check_keys(where, given, sorted(FLAGS | NUMBERS))
    return MappingProxyType(
        {key: _setting(f"{where}.{key}", key, value) for key, value in given.items()}
    )


def _setting(where: str, name: str, value: Any) -> tuple[Condition, ...]:
    entries = value if isinstance(value, list) else [value]
    if not any(isinstance(entry, dict) for entry in entries):
        return (Condition(None, _value(where, name, value)),)
    conditions = []
    for i, entry in enumerate(entries):
        place = f"{where}[{i}]" if isinstance(value, list) else where
        check_keys(place, entry, ("filter", "value"))
        if "value" not in entry:
            raise MergekitError(f"{place}: the key `value` is missing; give a number or a list")
        part = entry.get("filter")
        if part is not None and not isinstance(part, str):
            raise MergekitError(f"{place}.filter must be part of a tensor's name, got {part!r}")
        conditions.append(Condition(part, _value(f"{place}.value", name, entry["value"])))
    return tuple(conditions)


def _value(where: str, name: str, value: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list):
        return tuple(_scalar(f"{where}[{i}]", name, entry) for i, entry in enumerate(value))
    return _scalar(where, name, value)


def _scalar(where: str, name: str, value: Any) -> Scalar:
    scalar = _flag(value) if name in FLAGS else _number(value)
    if scalar is None:
        kind = "`true` or `false`" if name in FLAGS else "a finite number"
        raise MergekitError(f"{where} must be {kind}, got {value!s}")
    return scalar


def _flag(value: Any) -> bool | None:
    return _WORDS.get(str(value).lower())


def _number(value: Any) -> Decimal | None:
    # PyYAML reads numbers such as `1e-05` as text; mergekit accepts that text as a number.
    if not isinstance(value, bool | int | str | Decimal):
        return None
    try:
        number = Decimal(value.strip()) if isinstance(value, str) else Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number) < Decimal(2) ** 1023 else None
