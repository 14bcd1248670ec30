"""A field of a value type that is worked out when somebody looks at it. Knows nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar, overload

T = TypeVar("T")


class Lazy(Generic[T]):
    """A dataclass field that holds a value, or what makes it: then the first look does, once.

    As ``field: Lazy[T] = Lazy()``. The field takes a ``T`` or a function without arguments that
    returns one, is always read as a ``T``, and has no default.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn where in its owner the value is kept."""
        self._made, self._maker = f"_{name}", f"_make_{name}"

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: object, kind: type) -> T: ...
    def __get__(self, owner: object | None, kind: type) -> T | Self:
        """Return the value; AttributeError of the class itself says that there is no default."""
        if owner is None:
            raise AttributeError(self._made)
        held = vars(owner)
        if self._made not in held:
            held[self._made] = held.pop(self._maker)()
        return held[self._made]

    def __set__(self, owner: object, value: T | Callable[[], T]) -> None:
        """Keep a value, or what makes it."""
        vars(owner)[self._maker if callable(value) else self._made] = value
