"""Derivatives with respect to a recipe's coefficients. Pure values; no torch.

Shapes: P parents.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RecipeGradient:
    """Derivatives of a loss with respect to a recipe's coefficients.

    Coefficients without a slope have derivative 0: a parent that takes no part where that is a
    choice of the method (`Recipe.differentiable_setting`), and tensors that the loss does not use.

    Attributes:
        weights: Layer group -> derivative by each parent's weight, in the recipe's order (P).
        lambdas: Layer group -> derivative by its lambda; their sum is that by the recipe's lambda,
            except for groups with a lambda of their own.
        parameters: Layer group -> smooth parameter -> one number per parent, or a single one.
    """

    weights: Mapping[str, tuple[float, ...]]
    lambdas: Mapping[str, float]
    parameters: Mapping[str, Mapping[str, tuple[float, ...]]]
