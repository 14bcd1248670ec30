"""What a merge is: recipes, methods, plans, layer groups; imports no torch."""

from .methods import METHODS
from .recipe import Coefficients, Recipe

__all__ = ["METHODS", "Coefficients", "Recipe"]
