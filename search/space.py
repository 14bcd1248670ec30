"""The search space: from an Optuna parameter dictionary to a recipe, and back for baselines.

Knows parents, layer groups and the configuration's `space`; pure, no torch, no Optuna state.
A gene is one number of the genotype, named `weight.PARENT.KIND.POINT`, `drop_rate.(the same)` or
`lambda`; genes whose interval is one point are constants and no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..merge.groups import LayerGroup, depth
from ..merge.recipe import Coefficients, Recipe
from .config import Config, Depth, SpaceSection

ANY_KIND = "all"
HALF_WIDTH = 0.5
"""Of the default interval of a weight around the uniform merge's 1/P. With two parents it is
[0, 1], whose corners are the parents themselves."""


@dataclass(frozen=True)
class Space:
    """All that decides how a genotype becomes a recipe.

    Attributes:
        parents: Names of the parents, in the configuration's order (P).
        groups: Names of the layer groups, in model order (L).
        n_layers: Layers of the model.
        method: Row of the method table.
        depth: Shape of the coefficients over the layers.
        kinds: Module kinds with curves of their own; ``("all",)`` where they share one.
        weight: Bounds of every weight.
        drop_rate: Bounds of every drop rate.
        lambda_: Bounds of lambda.
        mask_seed: Of every candidate.
    """

    parents: tuple[str, ...]
    groups: tuple[str, ...]
    n_layers: int
    method: str
    depth: Depth
    kinds: tuple[str, ...]
    weight: tuple[float, float]
    drop_rate: tuple[float, float]
    lambda_: tuple[float, float]
    mask_seed: int

    @property
    def points(self) -> int:
        """Genes along the depth, per parent and kind."""
        counts = {"constant": 1, "layers": max(self.n_layers, 1)}
        return counts.get(self.depth.shape, self.depth.count)

    @property
    def genes(self) -> dict[str, tuple[float, float]]:
        """Name -> (low, high) of every gene that varies, in a fixed order."""
        return {name: bounds for name, bounds in self._all_genes().items() if bounds[0] < bounds[1]}

    @property
    def middle(self) -> dict[str, float]:
        """The genotype in the middle of every interval: by default the uniform merge."""
        return {name: (low + high) / 2 for name, (low, high) in self.genes.items()}

    def _all_genes(self) -> dict[str, tuple[float, float]]:
        bounds = {"weight": self.weight, "drop_rate": self.drop_rate}
        genes = {
            f"{gene}.{parent}.{kind}.{point}": interval
            for gene, interval in bounds.items()
            for parent in self.parents
            for kind in self.kinds
            for point in range(self.points)
        }
        return genes | {"lambda": self.lambda_}

    def decode(self, params: Mapping[str, float]) -> Recipe:
        """Return the recipe of a genotype.

        Args:
            params: One value per gene that varies (``genes``).

        Raises:
            ValueError: If a gene is missing or unknown.
        """
        if set(params) != set(self.genes):
            odd = sorted(set(params) ^ set(self.genes))
            raise ValueError(f"a genotype must hold exactly the genes of its space; see {odd[:5]}")
        values = {name: bounds[0] for name, bounds in self._all_genes().items()} | dict(params)
        return Recipe(
            method=self.method,
            parents=self.parents,
            coefficients={group: self._coefficients(group, values) for group in self.groups},
            lambda_=values["lambda"],
            mask_seed=self.mask_seed,
        )

    def constant(
        self, weights: Mapping[str, float], lambda_: float = 1.0
    ) -> dict[str, float] | None:
        """Return the genotype of one weight per parent everywhere, drop rates at their lowest.

        Returns:
            The genes, or ``None`` if the space does not hold that merge.
        """
        values = {"lambda": lambda_}
        for name, (low, _) in self._all_genes().items():
            gene, *rest = name.split(".")
            if gene != "lambda":
                values[name] = weights[rest[0]] if gene == "weight" else low
        if self.drop_rate[0] > 0:
            return None
        inside = all(low <= values[n] <= high for n, (low, high) in self._all_genes().items())
        return {name: values[name] for name in self.genes} if inside else None

    def _coefficients(self, group: str, values: Mapping[str, float]) -> Coefficients:
        def of(gene: str, parent: str) -> float:
            kinds = self._kinds_of(group)
            return sum(self._at(f"{gene}.{parent}.{kind}", group, values) for kind in kinds) / len(
                kinds
            )

        return Coefficients(
            weights=tuple(of("weight", parent) for parent in self.parents),
            drop_rates=tuple(of("drop_rate", parent) for parent in self.parents),
        )

    def _kinds_of(self, group: str) -> tuple[str, ...]:
        """Curves that a group follows: its own kind's, or the mean of all."""
        kind = LayerGroup.from_name(group).kind
        return (kind,) if kind in self.kinds else self.kinds

    def _at(self, curve: str, group: str, values: Mapping[str, float]) -> float:
        """Value of a curve at a group's place: embeddings at depth 0, final norm and head at 1."""
        place = LayerGroup.from_name(group)
        position = depth(place, self.n_layers)
        last = self.points - 1
        if self.depth.shape == "blocks":
            return values[f"{curve}.{min(int(position * self.points), last)}"]
        left = min(int(position * last), max(last - 1, 0))
        share = position * last - left
        low = values[f"{curve}.{left}"]
        return low if share == 0 else low + share * (values[f"{curve}.{left + 1}"] - low)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: what a resumed study must find unchanged."""
        return {
            "parents": list(self.parents),
            "groups": list(self.groups),
            "method": self.method,
            "depth": [self.depth.shape, self.points],
            "kinds": list(self.kinds),
            "weight": list(self.weight),
            "drop_rate": list(self.drop_rate),
            "lambda": list(self.lambda_),
            "mask_seed": self.mask_seed,
        }


def build_space(config: Config, groups: Sequence[str], n_layers: int) -> Space:
    """Return the space of a configuration over the layer groups of its parents."""
    parents = tuple(config.parents)
    section = config.space
    return Space(
        parents=parents,
        groups=tuple(groups),
        n_layers=n_layers,
        method=config.merge.method,
        depth=section.depth,
        kinds=section.modules or (ANY_KIND,),
        weight=weight_bounds(section, len(parents)),
        drop_rate=section.drop_rate,
        lambda_=section.lambda_,
        mask_seed=config.merge.mask_seed,
    )


def weight_bounds(section: SpaceSection, n_parents: int) -> tuple[float, float]:
    """Return the bounds of the weights; by default around the uniform merge's 1/P."""
    if section.weight is not None:
        return section.weight
    return 1 / n_parents - HALF_WIDTH, 1 / n_parents + HALF_WIDTH
