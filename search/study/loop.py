"""Keep the workers busy until the budget is spent."""

from __future__ import annotations

from collections.abc import Callable

from ...evals.stats.racing import Race
from ..evaluate.evaluator import Bench
from ..evaluate.workers import Keep, Workers

Hire = Callable[[Bench, Race | None, Keep], Workers]
"""Makes the workers of a search, from its bench, its race and what hears of rungs."""
