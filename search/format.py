"""Numbers and recipes as text, the same in every view."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..merge.recipe.recipe import Recipe


def score(value: float | None, se: float | None = None) -> str:
    """Return a score with four digits, and its standard error where there is one."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if se is None else f"{value:.4f} ± {se:.4f}"


def short(value: float, se: float) -> str:
    """Return a score and its standard error with three digits."""
    return f"{value:.3f} ±{se:.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.4f}"


def p_value(p: float) -> str:
    """Return a p-value, never as zero."""
    return "<1e-4" if p < 1e-4 else f"{p:.4f}"


def duration(seconds: float) -> str:
    """Return seconds as ``12 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def recipe_line(recipe: Recipe, origin: str | None = None) -> str:
    """Return a recipe in one line: the method, then the weights of each parent.

    If layer groups have different methods, each method is followed by its share of the groups.

    Args:
        recipe: Any recipe.
        origin: Name of the warm-start candidate it was copied from.
    """
    coefficients = list(recipe.coefficients.values())
    parts = [_methods(recipe)]
    for index, parent in enumerate(recipe.parents):
        if not any(c.weights[index] for c in coefficients):
            parts.append(f"without {parent}")
            continue
        part = f"{parent} {mean_and_range([c.weights[index] for c in coefficients])}"
        rates = [c.drop_rates[index] for c in coefficients]
        if any(rates):
            part += f" drop {mean_and_range(rates)}"
        parts.append(part)
    for name in sorted({name for c in coefficients for name in c.parameters}):
        numbers = [number for c in coefficients for number in c.parameters.get(name, ())]
        parts.append(f"{name} {mean_and_range(numbers)}")
    if recipe.lambda_ != 1:
        parts.append(f"lambda {recipe.lambda_:.2f}")
    if origin is not None:
        parts.append(f"as {origin}")
    return " | ".join(parts)


def _methods(recipe: Recipe) -> str:
    if len(recipe.methods) == 1:
        return recipe.methods[0].name
    count = Counter(c.method or recipe.method for c in recipe.coefficients.values())
    return " + ".join(f"{name} {n / count.total():.0%}" for name, n in count.most_common())


def mean_and_range(values: Sequence[float]) -> str:
    """Return ``0.42 (0.10..0.80)``: mean and range; ``0.50`` if all values are equal."""
    low, high = min(values), max(values)
    if high - low < 0.005:
        return f"{low:.2f}"
    return f"{sum(values) / len(values):.2f} ({low:.2f}..{high:.2f})"
