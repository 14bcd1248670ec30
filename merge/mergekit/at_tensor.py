"""mergekit's parameters at one tensor, by every level of precedence.

Knows the place of a tensor in its slice and the models there; not the meaning of parameters.
"""

from dataclasses import dataclass
from decimal import Decimal

from .file import MergekitFile, ModelRef, Slice
from .parameters import MergekitError

__all__ = ["At"]


@dataclass(frozen=True)
class At:
    """The parameters at one tensor, at position ``t`` of its slice."""

    file: MergekitFile
    part: Slice
    tensor: str
    t: float
    base: ModelRef
    parents: tuple[ModelRef, ...]

    def takes_part(self, model: ModelRef) -> bool:
        """Return whether this slice merges a model; mergekit adds a missing base_model."""
        return model in [s.model for s in self.part.sources] or model == self.file.base

    def flag(self, name: str, default: bool) -> bool:
        """Return a switch of the whole merge."""
        value = self.file.shared(name, self.part, self.tensor, self.t)
        return default if value is None else bool(value)

    def shared(self, name: str, default: str | None = None) -> Decimal:
        """Return a number of the whole merge."""
        value = self.file.shared(name, self.part, self.tensor, self.t)
        return self._number(value, default, f"`{name}`", "under the top `parameters`")

    def own(self, name: str, model: ModelRef, default: str | None = None) -> Decimal:
        """Return a number of one model."""
        value = self.file.of_model(name, self.part, model, self.tensor, self.t)
        return self._number(value, default, f"`{name}` of {model}", "there")

    def each(self, name: str, default: str | None = None) -> list[Decimal]:
        """Return a number of each parent; 0 for one that is not in this slice."""
        return [
            self.own(name, parent, default) if self.takes_part(parent) else Decimal(0)
            for parent in self.parents
        ]

    def _number(
        self, value: bool | Decimal | None, default: str | None, what: str, where: str
    ) -> Decimal:
        if value is None and default is None:
            raise MergekitError(
                f"the parameter {what} has no value for tensor {self.tensor}; give it {where}, "
                f"with a last entry that has no filter"
            )
        return Decimal(default or 0) if value is None else Decimal(value)
