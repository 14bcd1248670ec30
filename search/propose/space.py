"""The search space: from a genotype of an Optuna trial to a recipe, and back for baselines.

Knows parents, layer groups and the section `space`; no torch, no Optuna. A gene is one number of
the genotype: a point of a curve (`weight.PARENT.KIND.POINT`, and so for drop rates and parameters
of the methods, shared ones without PARENT; `alpha.PARENT.KIND` and `slope.PARENT.KIND` for weights
on lines), `keep.PARENT` (left out below KEPT), `lambda` or `mask_seed`. A gene whose interval is a
single point is a constant, not a parameter. A choice is one name: `method.KIND.POINT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...merge.hints import hint
from ...merge.recipe.groups import Grouping, LayerGroup, tensor_rules
from ...merge.recipe.methods import METHODS, Method, Parameter
from ...merge.recipe.recipe import Coefficients, Recipe
from ...merge.recipe.recipe_gradient import RecipeGradient
from ..config.config import Config, ConfigError
from ..config.space import Depth, SpaceSection
from .curves import ANY_KIND, SHAPES, Curves

HALF_WIDTH = 0.5
"""Half the default interval of a weight, around the uniform merge's 1/P. With two parents it is
[0, 1], whose corners are the parents themselves."""
SLOPE = (0.0, 0.5)
"""Default interval of a weight's gain from the first layer to the last: up to half of the weights'
default interval, and never a loss (Wang et al., arXiv:2410.17146, Sec. 4: shallow layers are
general, deep ones carry the task)."""
SWITCH = "switch"
"""Unit of the methods' parameters that are 0 or 1; as genes they are numbers, on from 0.5."""
KEPT = 0.5
"""Value of a gene `keep.PARENT` from which that parent takes part."""
Params = Mapping[str, float | str]
"""A genotype: gene -> number, choice -> name."""


@dataclass(frozen=True)
class Space:
    """A search space: which genotypes there are, and their recipes.

    Attributes:
        parents: Names of the parents, in the configuration's order (P).
        groups: Names of the layer groups, in model order (L).
        methods: Names of the methods: one for all groups, or several to choose from.
        depth: Shape of the curves over the layers.
        kinds: Module kinds with curves of their own; ``("all",)`` if they share one.
        weight: Bounds of every weight; of every alpha if weights are on lines.
        drop_rate: Bounds of every drop rate.
        lambda_: Bounds of lambda.
        mask_seed: Mask seed of every candidate; the lowest one if it is searched.
        slope: Bounds of every slope; None unless weights are on lines.
        parameters: Parameter of the methods -> bounds; others keep their defaults.
        layer_groups: The configuration's rules for layer groups, part of every recipe.
        optional: Parents that may be left out.
        last_seed: The highest mask seed if it is searched, else None.
        narrowed: Gene -> bounds, for genes with bounds of their own.
        tensors: Layer group -> its tensor, if each tensor is a layer group.
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
    tensors: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def genes(self) -> dict[str, tuple[float, float]]:
        """Name -> (low, high) of every gene that varies, in a fixed order."""
        return {name: bounds for name, bounds in self._numbers.items() if bounds[0] < bounds[1]}

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Name -> methods of every choice, in a fixed order; empty if there is one method."""
        if len(self.methods) == 1:
            return {}
        names = (name for kind in self.kinds for name in self.curves.genes("method", kind))
        return dict.fromkeys(names, self.methods)

    @property
    def middle(self) -> dict[str, float | str]:
        """The middle of every interval, the first of every choice: by default the uniform merge."""
        numbers = {name: (low + high) / 2 for name, (low, high) in self.genes.items()}
        return numbers | {name: methods[0] for name, methods in self.choices.items()}

    @property
    def phrase(self) -> str:
        """Depth, kinds and bounds of the weights, in words."""
        count = f" {self._most_points}" if self.curves.is_counted else ""
        kinds, (low, high) = "" if self.tensors else f" x {'/'.join(self.kinds)}", self.weight
        return f"{self.depth.shape}{count}{kinds}, weights in [{low:g}, {high:g}]"

    @cached_property
    def curves(self) -> Curves:
        """The curves of all numbers and choices that vary over the layers."""
        return SHAPES[self.depth.shape](self.groups, self.kinds, self.depth.count)

    @property
    def _most_points(self) -> int:
        return max(self.curves.n_points(kind) for kind in self.kinds)

    @cached_property
    def _numbers(self) -> dict[str, tuple[float, float]]:
        """Every gene with its bounds, including those that do not vary."""
        genes = self._points("weight", self.weight, is_shared=False)
        genes |= self._points("drop_rate", self.drop_rate, is_shared=False)
        genes["lambda"] = self.lambda_
        for name, bounds in self.parameters.items():
            genes |= self._points(name, bounds, self.is_shared(name))
        genes |= {f"keep.{parent}": (0.0, 1.0) for parent in self.optional}
        if self.last_seed is not None:
            genes["mask_seed"] = (self.mask_seed, self.last_seed + 1)
        return {**genes, **self.narrowed}

    def _points(
        self, name: str, bounds: tuple[float, float], is_shared: bool
    ) -> dict[str, tuple[float, float]]:
        heads = [name] if is_shared else [f"{name}.{parent}" for parent in self.parents]
        genes = [g for head in heads for kind in self.kinds for g in self.curves.genes(head, kind)]
        return {gene: (gene.startswith("slope.") and self.slope) or bounds for gene in genes}

    def is_shared(self, parameter: str) -> bool:
        """Return whether a parameter of the methods has one number for all parents."""
        rows = (row for method in self.methods for row in METHODS[method].parameters)
        return next(row.is_shared for row in rows if row.name == parameter)

    def decode(self, params: Params) -> Recipe:
        """Return the recipe of a genotype.

        Genes that a group's method does not have are not used there.

        Args:
            params: A value for each of ``genes`` and ``choices``.

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

    def gradient(self, params: Params, by_recipe: RecipeGradient) -> dict[str, float]:
        """Return the derivative by each gene that a recipe depends on smoothly (chain rule).

        These are weights, lambda and smooth parameters; drop rates, choices, `keep` and mask seeds
        have none.

        Args:
            params: The genotype.
            by_recipe: Derivatives by the coefficients of its recipe (`decode`).
        """
        result: dict[str, float] = {}
        for i, parent in enumerate(self.parents):
            kept = float(params.get(f"keep.{parent}", 1.0)) >= KEPT
            slopes = [by_recipe.weights[group][i] * kept for group in self.groups]
            result |= self._chained(f"weight.{parent}", slopes)
        if "lambda" in self.genes:
            result["lambda"] = sum(by_recipe.lambdas.values())
        for name in self.parameters:
            heads = [name] if self.is_shared(name) else [f"{name}.{p}" for p in self.parents]
            by_group = [by_recipe.parameters[group].get(name) for group in self.groups]
            if any(by_group):
                for i, head in enumerate(heads):
                    result |= self._chained(head, [b[i] if b else 0.0 for b in by_group])
        return result

    def _chained(self, head: str, slopes: Sequence[float]) -> dict[str, float]:
        """Return the derivatives by a curve's genes, from those by its number in each group (L)."""
        factors = self.curves.factors(head)
        return {
            gene: float(factor @ np.asarray(slopes))
            for gene, factor in factors.items()
            if gene in self.genes
        }

    def _seed(self, values: Mapping[str, Any]) -> int:
        """Return the mask seed of a number in [first, last + 1]."""
        if self.last_seed is None:
            return self.mask_seed
        return min(int(values["mask_seed"]), self.last_seed)

    def _coefficients(self, group: str, method: Method, values: Mapping[str, Any]) -> Coefficients:
        """Return a group's coefficients; numbers that its method does not have are neutral."""

        def each(curve: str) -> tuple[float, ...]:
            heads = (f"{curve}.{parent}" for parent in self.parents)
            return tuple(self.curves.value(head, group, values) for head in heads)

        def parameter(row: Parameter) -> tuple[float, ...]:
            shared = row.is_shared
            numbers = (self.curves.value(row.name, group, values),) if shared else each(row.name)
            return tuple(float(n >= 0.5) for n in numbers) if row.unit == SWITCH else numbers

        rows = [row for row in method.parameters if row.name in self.parameters]
        kept = [float(values.get(f"keep.{parent}", 1.0) >= KEPT) for parent in self.parents]
        return Coefficients(
            weights=tuple(w * k for w, k in zip(each("weight"), kept, strict=True)),
            drop_rates=each("drop_rate") if method.uses_drop_rate else (0.0,) * len(self.parents),
            parameters={row.name: parameter(row) for row in rows},
        )

    def _method(self, group: str, values: Mapping[str, Any]) -> str:
        return values[self.curves.choice(group)] if self.choices else self.methods[0]

    def constant(
        self, weights: Mapping[str, float], method: str, lambda_: float = 1.0
    ) -> dict[str, float | str] | None:
        """Return the genotype of one method and one weight per parent everywhere.

        All other genes are at their lowest; slopes are 0, no parent is left out.

        Returns:
            The genes and choices, or ``None`` if that merge is outside the space.
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
        """Return plain JSON values, which must be the same in a resumed study."""
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


def build_space(config: Config, groups: Sequence[str], tensors: Sequence[str] = ()) -> Space:
    """Return the space of a configuration over the layer groups of its parents.

    Args:
        config: The configuration.
        groups: Names of the layer groups, in model order.
        tensors: Names of the tensors that are merged, for ``depth: tensors``.

    Raises:
        ConfigError: If no layer group of the model has a module kind that `space` names.
    """
    parents = tuple(config.parents)
    section, seeds = config.space, config.space.mask_seed
    is_by_tensor = section.depth.shape == "tensors"
    grouping = config.merge.grouping
    if is_by_tensor:
        grouping = Grouping(tensor_rules(tensors, grouping.rules))
        groups = grouping.names(tensors)
    kinds = dict.fromkeys(LayerGroup.from_name(name).kind for name in groups)
    for kind in () if is_by_tensor else section.modules:
        if kind not in kinds:
            raise ConfigError(
                f"`space.modules` names `{kind}`, but this model has no layer group of that kind; "
                f"{hint(kind, kinds)}"
            )
    return Space(
        parents=parents,
        groups=tuple(groups),
        methods=config.methods,
        depth=section.depth,
        kinds=tuple(kinds) if is_by_tensor else section.modules or (ANY_KIND,),
        weight=weight_bounds(section, len(parents)),
        drop_rate=section.drop_rate,
        lambda_=section.lambda_,
        mask_seed=config.merge.mask_seed if seeds is None else seeds[0],
        slope=(section.slope or SLOPE) if section.depth.shape == "lines" else None,
        parameters=section.parameters,
        layer_groups=grouping.rules,
        optional=tuple(parent for parent in parents if parent in config.optional),
        last_seed=None if seeds is None else seeds[1],
        tensors={grouping.group(t).name: t for t in tensors} if is_by_tensor else {},
    )


def weight_bounds(section: SpaceSection, n_parents: int) -> tuple[float, float]:
    """Return the bounds of the weights; by default HALF_WIDTH around the uniform merge's 1/P."""
    if section.weight is not None:
        return section.weight
    return 1 / n_parents - HALF_WIDTH, 1 / n_parents + HALF_WIDTH
