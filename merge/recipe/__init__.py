"""Recipes, methods, plans and layer groups; imports no torch."""

from .methods import METHODS
from .recipe import Coefficients, Recipe

__all__ = ["METHODS", "Coefficients", "Recipe"]
