"""A recipe's coefficients of one layer group, and mergekit's parameters that express them.

Decimals keep every digit, so that 1 - drop_rate is written as a user would. Knows no methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal

from .text import Number

EXACT = Context(prec=400)
"""1 - p keeps every digit of a float p above 1e-380."""


class InexpressibleError(ValueError):
    """A recipe that mergekit cannot express; one line that says why."""


@dataclass(frozen=True)
class GroupSetting:
    """The coefficients of one layer group, with every default filled in."""

    name: str
    method: str
    weights: tuple[float, ...]
    drop_rates: tuple[float, ...]
    lambda_: float
    parameters: Mapping[str, Sequence[float]]

    def is_on(self, switch: str) -> bool:
        """Return whether a switch is on."""
        return self.parameters[switch][0] >= 0.5

    def fail(self, reason: str) -> InexpressibleError:
        """Return the error that names this layer group."""
        return InexpressibleError(f"layer group {self.name}: {reason}")


@dataclass(frozen=True)
class Row:
    """mergekit's parameters of one layer group: of each parent, of the merge, of the base."""

    own: tuple[Mapping[str, Number], ...]
    shared: Mapping[str, Number] = field(default_factory=dict)
    base: Mapping[str, Number] = field(default_factory=dict)


def decimal(number: float) -> Decimal:
    """Return the shortest decimal that reads back as a float."""
    return Decimal(repr(number))


def weight_rows(group: GroupSetting) -> tuple[dict[str, Number], ...]:
    """Return `weight` of each parent."""
    return tuple({"weight": decimal(weight)} for weight in group.weights)
