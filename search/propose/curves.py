"""Curves over the depth of a model: from points along the depth to one number per layer group.

Knows layer groups and the shapes of `space.depth`; no bounds, methods or recipes. A curve belongs
to a module kind and a head: `weight.PARENT`, `drop_rate.PARENT`, a method's parameter with or
without PARENT, or `method`, whose points are choices. A new shape is a class and a row in SHAPES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...merge.recipe.groups import LayerGroup, depth, lines

ANY_KIND = "all"
"""The only kind where all module kinds share one curve."""


@dataclass(frozen=True)
class Curves:
    """Curves of one shape; of this class, lines between equally spaced points.

    Attributes:
        groups: Names of the layer groups, in model order (L).
        kinds: Module kinds with curves of their own; ``("all",)`` if they share one.
        count: Number of points that the configuration asks for.
    """

    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    count: int = 1
    _genes: dict[tuple[str, str], tuple[str, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    _factors: dict[str, dict[str, NDArray[np.float64]]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    is_counted: ClassVar[bool] = False
    """Whether the configuration gives the number of points."""

    @cached_property
    def n_layers(self) -> int:
        """Number of layers of the model: the highest index of a layer group plus one."""
        layers = [group.layer for group in self._parsed.values() if group.layer is not None]
        return max(layers, default=-1) + 1

    def n_points(self, kind: str) -> int:
        """Return the number of points of a kind's curves: one if it is outside the layers."""
        return self._points_in_layers if self._has_depth(kind) else 1

    @property
    def _points_in_layers(self) -> int:
        return min(self.count, max(self.n_layers, 1))

    def genes(self, head: str, kind: str) -> tuple[str, ...]:
        """Return the genes of a curve, in order of depth."""
        if (head, kind) not in self._genes:
            self._genes[head, kind] = self._names(head, kind)
        return self._genes[head, kind]

    def _names(self, head: str, kind: str) -> tuple[str, ...]:
        return tuple(f"{head}.{kind}.{point}" for point in range(self.n_points(kind)))

    def value(self, head: str, group: str, values: Mapping[str, Any]) -> float:
        """Return a curve's number for a group: its kind's, or the mean of all kinds in layers.

        Args:
            head: Head of the curve.
            group: Name of the layer group.
            values: Gene -> number.
        """
        kinds = self._kinds_of(group)
        return sum(self._at(self.genes(head, k), group, values) for k in kinds) / len(kinds)

    def choice(self, group: str) -> str:
        """Return the choice that gives a group its method: the nearest point of its kind's."""
        choices = self.genes("method", self._kinds_of(group)[0])
        return choices[self._nearest(len(choices), self._positions[group])]

    def factors(self, head: str) -> dict[str, NDArray[np.float64]]:
        """Return gene -> its factor in each group's number (L): numbers are linear in the genes."""
        if head not in self._factors:
            genes = [gene for kind in self.kinds for gene in self.genes(head, kind)]
            table = np.zeros((len(genes), len(self.groups)))
            rows = {gene: table[i] for i, gene in enumerate(genes)}
            for column, group in enumerate(self.groups):
                # Only the genes of the group's kinds enter its number.
                near = [g for kind in self._kinds_of(group) for g in self.genes(head, kind)]
                zeros = dict.fromkeys(near, 0.0)
                for gene in near:
                    rows[gene][column] = self.value(head, group, zeros | {gene: 1.0})
            self._factors[head] = rows
        return self._factors[head]

    def _at(self, genes: tuple[str, ...], group: str, values: Mapping[str, Any]) -> float:
        position, last = self._positions[group], len(genes) - 1
        left = min(int(position * last), max(last - 1, 0))
        share = position * last - left
        low = values[genes[left]]
        return low if share == 0 else low + share * (values[genes[left + 1]] - low)

    def _nearest(self, n_points: int, position: float) -> int:
        return int(position * (n_points - 1) + 0.5)

    def _kinds_of(self, group: str) -> tuple[str, ...]:
        kind = self._parsed[group].kind
        if kind in self.kinds:
            return (kind,)
        return tuple(kind for kind in self.kinds if self._has_depth(kind)) or self.kinds

    def _has_depth(self, kind: str) -> bool:
        return kind == ANY_KIND or kind in self._layer_kinds

    @cached_property
    def _parsed(self) -> dict[str, LayerGroup]:
        return {name: LayerGroup.from_name(name) for name in self.groups}

    @cached_property
    def _layer_kinds(self) -> frozenset[str]:
        return frozenset(g.kind for g in self._parsed.values() if g.layer is not None)

    @cached_property
    def _positions(self) -> dict[str, float]:
        """Depth of each group in [0, 1]: embeddings at 0, final norm and head at 1."""
        return {name: depth(group, self.n_layers) for name, group in self._parsed.items()}


class ControlPoints(Curves):
    """Lines between a given number of points, at most one per layer."""

    is_counted = True


class Constant(Curves):
    """One number over all layers."""

    @property
    def _points_in_layers(self) -> int:
        return 1


class Layers(Curves):
    """A number for every layer."""

    @property
    def _points_in_layers(self) -> int:
        return max(self.n_layers, 1)


class Blocks(Curves):
    """A given number of equal steps, at most one per layer."""

    is_counted = True

    def _at(self, genes: tuple[str, ...], group: str, values: Mapping[str, Any]) -> float:
        return values[genes[self._nearest(len(genes), self._positions[group])]]

    def _nearest(self, n_points: int, position: float) -> int:
        return min(int(position * n_points), n_points - 1)


class Lines(Constant):
    """Weights on lines, alpha + slope * depth (LiNeS); all else constant."""

    def _names(self, head: str, kind: str) -> tuple[str, ...]:
        name, _, parent = head.partition(".")
        if name != "weight":
            return super()._names(head, kind)
        alpha, slope = f"alpha.{parent}.{kind}", f"slope.{parent}.{kind}"
        return (alpha, slope) if self._has_depth(kind) else (alpha,)

    def _at(self, genes: tuple[str, ...], group: str, values: Mapping[str, Any]) -> float:
        alpha, *slope = (values[gene] for gene in genes)
        return lines(alpha, slope[0], self._positions[group]) if slope else alpha


class Tensors(Curves):
    """A number for every tensor: each is a layer group, and its name in a layer is the kind."""

    def n_points(self, kind: str) -> int:
        """Return the number of layers that have such a tensor; one if it is outside the layers."""
        return len(self._layers[kind])

    def _names(self, head: str, kind: str) -> tuple[str, ...]:
        return tuple(f"{head}.{kind}.{layer or 0}" for layer in self._layers[kind])

    def choice(self, group: str) -> str:
        """Return the choice that gives a group its method: its own."""
        return self.genes("method", self._parsed[group].kind)[self._place(group)]

    def _at(self, genes: tuple[str, ...], group: str, values: Mapping[str, Any]) -> float:
        return values[genes[self._place(group)]]

    def _place(self, group: str) -> int:
        """Return the place of a group among the layers that have its kind."""
        return self._layers[self._parsed[group].kind].index(self._parsed[group].layer)

    @cached_property
    def _layers(self) -> dict[str, list[int | None]]:
        """Kind -> layers that have it, in order."""
        layers: dict[str, list[int | None]] = {kind: [] for kind in self.kinds}
        for group in self._parsed.values():
            layers[group.kind].append(group.layer)
        return layers


SHAPES: dict[str, type[Curves]] = {
    "constant": Constant,
    "lines": Lines,
    "control_points": ControlPoints,
    "blocks": Blocks,
    "layers": Layers,
    "tensors": Tensors,
}
"""Shape of `space.depth` -> its curves."""
