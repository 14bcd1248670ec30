"""The search space: from an Optuna parameter dictionary to a recipe, and back for baselines.

Knows parents, layer groups and the configuration's `space`; pure, no torch, no Optuna state.
A gene is one number of the genotype, named `weight.PARENT.KIND.POINT` (so are drop rates and the
methods' parameters, shared ones without PARENT), `alpha.PARENT.KIND` and `slope.PARENT.KIND` for
weights on lines, `keep.PARENT` (left out below KEPT), `lambda` or `mask_seed`; genes whose interval
is one point are constants and no parameters.
A choice is one name of the genotype: `method.KIND.POINT`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...merge.hints import hint
from ...merge.recipe.groups import LayerGroup, depth, lines
from ...merge.recipe.methods import METHODS, Method, Parameter
from ...merge.recipe.recipe import Coefficients, Recipe
from ..config.config import Config, ConfigError
from ..config.space import Depth, SpaceSection

ANY_KIND = "all"
HALF_WIDTH = 0.5
"""Of the default interval of a weight around the uniform merge's 1/P. With two parents it is
[0, 1], whose corners are the parents themselves."""
SLOPE = (0.0, 0.5)
"""Default interval of what a weight gains from the first layer to the last: as far as a weight's
own interval goes from its middle, and never a loss (Wang et al., arXiv:2410.17146, Sec. 4: shallow
layers are general, deep ones carry the task)."""
SWITCH = "switch"
"""Unit of the methods' parameters that are 0 or 1; as genes they are numbers, on from 0.5."""
KEPT = 0.5
"""Value of a gene `keep.PARENT` from which that parent takes part."""
COUNTED = ("control_points", "blocks")
"""Shapes of `depth` that have a count."""
Params = Mapping[str, float | str]
"""A genotype: gene -> number, choice -> name."""


@dataclass(frozen=True)
class Space:
    """All that decides how a genotype becomes a recipe.

    Attributes:
        parents: Names of the parents, in the configuration's order (P).
        groups: Names of the layer groups, in model order (L).
        methods: Rows of the method table: one for all, or those that the search chooses from.
        depth: Shape of the coefficients over the layers.
        kinds: Module kinds with curves of their own; ``("all",)`` where they share one.
        weight: Bounds of every weight; of every alpha where weights lie on lines.
        drop_rate: Bounds of every drop rate.
        lambda_: Bounds of lambda.
        mask_seed: Of every candidate; the lowest where it is searched.
        slope: Bounds of every slope; None unless weights lie on lines.
        parameters: Parameter of the methods -> bounds; those left out keep their defaults.
        layer_groups: The configuration's rules for layer groups, part of every recipe.
        optional: Parents that may be left out.
        last_seed: The highest mask_seed where it is searched, else None.
        narrowed: Gene -> bounds, of those that vary less than their kind.
    """

    parents: tuple[str, ...]
    groups: tuple[str, ...]
    methods: tuple[str, ...]
    depth: Depth
    kinds: tuple[str, ...]
    weight: tuple[float, float]
    drop_rate: tuple[float, float]
    lambda_: tuple[float, float]
    mask_seed: int
    slope: tuple[float, float] | None = None
    parameters: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    layer_groups: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    last_seed: int | None = None
    narrowed: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def genes(self) -> dict[str, tuple[float, float]]:
        """Name -> (low, high) of every gene that varies, in a fixed order."""
        return {name: bounds for name, bounds in self._numbers.items() if bounds[0] < bounds[1]}

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Name -> methods of every choice, in a fixed order; empty where one method is given."""
        if len(self.methods) == 1:
            return {}
        names = (
            f"method.{kind}.{point}" for kind in self.kinds for point in range(self._points(kind))
        )
        return dict.fromkeys(names, self.methods)

    @property
    def middle(self) -> dict[str, float | str]:
        """The middle of every interval, the first of every choice: by default the uniform merge."""
        numbers = {name: (low + high) / 2 for name, (low, high) in self.genes.items()}
        return numbers | {name: methods[0] for name, methods in self.choices.items()}

    @property
    def phrase(self) -> str:
        """Depth, kinds and bounds of the weights, in words."""
        count = f" {self._most_points}" if self.depth.shape in COUNTED else ""
        kinds, (low, high) = "/".join(self.kinds), self.weight
        return f"{self.depth.shape}{count} x {kinds}, weights in [{low:g}, {high:g}]"

    @cached_property
    def _numbers(self) -> dict[str, tuple[float, float]]:
        """Every gene with its bounds, those that do not vary included."""
        genes = dict(self._weights())
        genes |= self._curves("drop_rate", self.drop_rate, is_shared=False)
        genes["lambda"] = self.lambda_
        for name, bounds in self.parameters.items():
            genes |= self._curves(name, bounds, self.is_shared(name))
        genes |= {f"keep.{parent}": (0.0, 1.0) for parent in self.optional}
        if self.last_seed is not None:
            genes["mask_seed"] = (self.mask_seed, self.last_seed + 1)
        return {**genes, **self.narrowed}

    def _weights(self) -> Iterator[tuple[str, tuple[float, float]]]:
        if self.slope is None:
            yield from self._curves("weight", self.weight, is_shared=False).items()
            return
        for parent in self.parents:
            for kind in self.kinds:
                yield f"alpha.{parent}.{kind}", self.weight
                if self._has_depth(kind):
                    yield f"slope.{parent}.{kind}", self.slope

    def _curves(
        self, gene: str, bounds: tuple[float, float], is_shared: bool
    ) -> dict[str, tuple[float, float]]:
        heads = [gene] if is_shared else [f"{gene}.{parent}" for parent in self.parents]
        return {
            f"{head}.{kind}.{point}": bounds
            for head in heads
            for kind in self.kinds
            for point in range(self._points(kind))
        }

    def _points(self, kind: str) -> int:
        """Genes along the depth, at most one a layer; one for a kind outside the layers."""
        if self.depth.shape in ("constant", "lines") or not self._has_depth(kind):
            return 1
        layers = max(self.n_layers, 1)
        return min(self.depth.count, layers) if self.depth.shape in COUNTED else layers

    @property
    def _most_points(self) -> int:
        return max(self._points(kind) for kind in self.kinds)

    def _has_depth(self, kind: str) -> bool:
        """Whether a kind's curve runs over layers."""
        return kind == ANY_KIND or kind in self._layer_kinds

    @cached_property
    def n_layers(self) -> int:
        """Layers of the model: the highest index of a layer group plus one."""
        layers = [place.layer for place in self._groups.values() if place.layer is not None]
        return max(layers, default=-1) + 1

    @cached_property
    def _groups(self) -> dict[str, LayerGroup]:
        return {name: LayerGroup.from_name(name) for name in self.groups}

    @cached_property
    def _layer_kinds(self) -> frozenset[str]:
        """Kinds that lie inside the layers."""
        return frozenset(g.kind for g in self._groups.values() if g.layer is not None)

    def is_shared(self, parameter: str) -> bool:
        """Whether a parameter of the methods is one for all parents."""
        rows = (row for method in self.methods for row in METHODS[method].parameters)
        return next(row.is_shared for row in rows if row.name == parameter)

    def decode(self, params: Params) -> Recipe:
        """Return the recipe of a genotype.

        Genes that the method chosen for a group does not have are not used there.

        Args:
            params: One value per gene that varies (``genes``) and per choice (``choices``).

        Raises:
            ValueError: If one is missing or unknown.
        """
        expected = {**self.genes, **self.choices}
        if set(params) != set(expected):
            odd = sorted(set(params) ^ set(expected))
            raise ValueError(f"a genotype must hold exactly the genes of its space; see {odd[:5]}")
        values: dict[str, Any] = {name: low for name, (low, _) in self._numbers.items()}
        values |= params
        methods = {group: self._method(group, values) for group in self.groups}
        used = [name for name in self.methods if name in methods.values()]
        has_lambda = any(METHODS[name].uses_lambda for name in used)
        return Recipe(
            method=used[0],
            parents=self.parents,
            coefficients={
                group: replace(
                    self._coefficients(group, METHODS[method], values),
                    method=None if method == used[0] else method,
                )
                for group, method in methods.items()
            },
            lambda_=values["lambda"] if has_lambda else 1.0,
            mask_seed=self._seed(values),
            layer_groups=self.layer_groups,
        )

    def _seed(self, values: Mapping[str, Any]) -> int:
        """The mask_seed that a number of [first, last + 1] stands for."""
        if self.last_seed is None:
            return self.mask_seed
        return min(int(values["mask_seed"]), self.last_seed)

    def _coefficients(self, group: str, method: Method, values: Mapping[str, Any]) -> Coefficients:
        """Coefficients of a group: what its method does not have is left at its neutral value."""

        def each(curve: str) -> tuple[float, ...]:
            return tuple(self._mean(f"{curve}.{parent}", group, values) for parent in self.parents)

        def own(row: Parameter) -> tuple[float, ...]:
            numbers = (self._mean(row.name, group, values),) if row.is_shared else each(row.name)
            return tuple(float(n >= 0.5) for n in numbers) if row.unit == SWITCH else numbers

        rows = [row for row in method.parameters if row.name in self.parameters]
        kept = [float(values.get(f"keep.{parent}", 1.0) >= KEPT) for parent in self.parents]
        return Coefficients(
            weights=tuple(w * k for w, k in zip(each("weight"), kept, strict=True)),
            drop_rates=each("drop_rate") if method.uses_drop_rate else (0.0,) * len(self.parents),
            parameters={row.name: own(row) for row in rows},
        )

    def _mean(self, curve: str, group: str, values: Mapping[str, Any]) -> float:
        kinds = self._kinds_of(group)
        return sum(self._at(curve, kind, group, values) for kind in kinds) / len(kinds)

    def _kinds_of(self, group: str) -> tuple[str, ...]:
        """Kinds whose curves a group follows: its own, or the mean of all that run over layers."""
        kind = self._groups[group].kind
        if kind in self.kinds:
            return (kind,)
        return tuple(kind for kind in self.kinds if self._has_depth(kind)) or self.kinds

    def _at(self, curve: str, kind: str, group: str, values: Mapping[str, Any]) -> float:
        """Value of a curve at a group's place: embeddings at depth 0, final norm and head at 1."""
        position = depth(self._groups[group], self.n_layers)
        gene, _, parent = curve.partition(".")
        if gene == "weight" and self.slope is not None:
            slope = values.get(f"slope.{parent}.{kind}", 0.0)
            return lines(values[f"alpha.{parent}.{kind}"], slope, position)
        last = self._points(kind) - 1
        if self.depth.shape == "blocks":
            return values[f"{curve}.{kind}.{min(int(position * (last + 1)), last)}"]
        left = min(int(position * last), max(last - 1, 0))
        share = position * last - left
        low = values[f"{curve}.{kind}.{left}"]
        return low if share == 0 else low + share * (values[f"{curve}.{kind}.{left + 1}"] - low)

    def _method(self, group: str, values: Mapping[str, Any]) -> str:
        return values[self.choice_of(group)] if self.choices else self.methods[0]

    def choice_of(self, group: str) -> str:
        """The choice that gives a group its method: at the nearest point of its kind's curve."""
        kind = self._kinds_of(group)[0]
        position = depth(self._groups[group], self.n_layers)
        last = self._points(kind) - 1
        is_step = self.depth.shape == "blocks"
        point = min(int(position * (last + 1)), last) if is_step else int(position * last + 0.5)
        return f"method.{kind}.{point}"

    def curve(self, head: str) -> dict[str, list[float]]:
        """How the genes of a curve make the groups' values: gene -> its factor in each group.

        Args:
            head: ``weight.PARENT``, ``drop_rate.PARENT``, or a parameter with or without a parent.
        """
        if head not in self._made:
            self._made[head] = self._factors(head)
        return self._made[head]

    @cached_property
    def _made(self) -> dict[str, dict[str, list[float]]]:
        return {}

    def _factors(self, head: str) -> dict[str, list[float]]:
        gene, _, parent = head.partition(".")
        is_line = gene == "weight" and self.slope is not None
        heads = (f"alpha.{parent}", f"slope.{parent}") if is_line else (head,)
        names = [n for n in self._numbers if n.startswith(tuple(f"{h}." for h in heads))]
        none = dict.fromkeys(names, 0.0)
        return {
            name: [self._mean(head, group, none | {name: 1.0}) for group in self.groups]
            for name in names
        }

    def constant(
        self, weights: Mapping[str, float], method: str, lambda_: float = 1.0
    ) -> dict[str, float | str] | None:
        """Return the genotype of one method and one weight per parent everywhere.

        All else is at its lowest; slopes are 0, no parent is left out.

        Returns:
            The genes and choices, or ``None`` if the space does not hold that merge.
        """
        if method not in self.methods:
            return None
        values: dict[str, float | str] = dict.fromkeys(self.choices, method)
        for name, (low, high) in self._numbers.items():
            gene, *rest = name.split(".")
            fixed = {"lambda": lambda_, "slope": 0.0, "keep": 1.0}
            value = weights[rest[0]] if gene in ("weight", "alpha") else fixed.get(gene, low)
            if not low <= value <= high:
                return None
            values[name] = value
        return {name: values[name] for name in (*self.genes, *self.choices)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: what a resumed study must find unchanged."""
        values: dict[str, Any] = {
            "parents": list(self.parents),
            "groups": list(self.groups),
            "method": self.methods[0] if len(self.methods) == 1 else list(self.methods),
            "depth": [self.depth.shape, self._most_points],
            "kinds": list(self.kinds),
            "weight": list(self.weight),
            "drop_rate": list(self.drop_rate),
            "lambda": list(self.lambda_),
            "mask_seed": self.mask_seed,
        }
        optional = {
            "slope": self.slope and list(self.slope),
            "parameters": {name: list(bounds) for name, bounds in self.parameters.items()},
            "layer_groups": [list(rule) for rule in self.layer_groups],
            "optional": list(self.optional),
            "last_seed": self.last_seed,
        }
        return values | {key: value for key, value in optional.items() if value}


def build_space(config: Config, groups: Sequence[str]) -> Space:
    """Return the space of a configuration over the layer groups of its parents.

    Raises:
        ConfigError: If a module kind is named that no layer group of the model has.
    """
    parents = tuple(config.parents)
    section, seeds = config.space, config.space.mask_seed
    found = {LayerGroup.from_name(name).kind for name in groups}
    for kind in section.modules:
        if kind not in found:
            raise ConfigError(
                f"`space.modules` names `{kind}`, but this model has no layer group of that kind; "
                f"{hint(kind, found)}"
            )
    return Space(
        parents=parents,
        groups=tuple(groups),
        methods=config.methods,
        depth=section.depth,
        kinds=section.modules or (ANY_KIND,),
        weight=weight_bounds(section, len(parents)),
        drop_rate=section.drop_rate,
        lambda_=section.lambda_,
        mask_seed=config.merge.mask_seed if seeds is None else seeds[0],
        slope=(section.slope or SLOPE) if section.depth.shape == "lines" else None,
        parameters=section.parameters,
        layer_groups=tuple(config.merge.layer_groups.items()),
        optional=tuple(parent for parent in parents if parent in config.optional),
        last_seed=None if seeds is None else seeds[1],
    )


def weight_bounds(section: SpaceSection, n_parents: int) -> tuple[float, float]:
    """Return the bounds of the weights; by default around the uniform merge's 1/P."""
    if section.weight is not None:
        return section.weight
    return 1 / n_parents - HALF_WIDTH, 1 / n_parents + HALF_WIDTH
