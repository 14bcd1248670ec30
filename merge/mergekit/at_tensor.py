"""mergekit's parameters as they are at one tensor, by every level of precedence.

Knows where a tensor lies in its slice, and who takes part there; not what a parameter means.
"""

from dataclasses import dataclass
from decimal import Decimal

from .file import MergekitFile, ModelRef, Slice
from .parameters import MergekitError

__all__ = ["At"]


@dataclass(frozen=True)
class At:
    """The parameters as they are at one tensor, at position ``t`` of its slice."""

    file: MergekitFile
    part: Slice
    tensor: str
    t: float
    base: ModelRef
    parents: tuple[ModelRef, ...]

    def takes_part(self, model: ModelRef) -> bool:
        """Whether this slice merges a model; mergekit adds the base_model where it is left out."""
        return model in [s.model for s in self.part.sources] or model == self.file.base

    def flag(self, name: str, default: bool) -> bool:
        """A switch of the whole merge."""
        found = self.file.shared(name, self.part, self.tensor, self.t)
        return default if found is None else bool(found)

    def shared(self, name: str, default: str | None = None) -> Decimal:
        """A number of the whole merge."""
        found = self.file.shared(name, self.part, self.tensor, self.t)
        return self._found(found, default, f"`{name}`", "under the top `parameters`")

    def own(self, name: str, model: ModelRef, default: str | None = None) -> Decimal:
        """A number of one model."""
        found = self.file.of_model(name, self.part, model, self.tensor, self.t)
        return self._found(found, default, f"`{name}` of {model}", "there")

    def each(self, name: str, default: str | None = None) -> list[Decimal]:
        """A number of each parent; 0 for one that this slice leaves out."""
        return [
            self.own(name, parent, default) if self.takes_part(parent) else Decimal(0)
            for parent in self.parents
        ]

    def _found(
        self, found: bool | Decimal | None, default: str | None, what: str, where: str
    ) -> Decimal:
        if found is None and default is None:
            raise MergekitError(
                f"the parameter {what} has no value for tensor {self.tensor}; give it {where}, "
                f"with a last entry that has no filter"
            )
        return Decimal(default or 0) if found is None else Decimal(found)
