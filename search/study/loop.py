"""Keep the workers busy until the budget is spent."""

from __future__ import annotations

from collections.abc import Callable

from ...evals.stats.racing import Race
from ..evaluate.evaluator import Evaluator
from ..evaluate.workers import Keep, Workers

MakeWorkers = Callable[[Evaluator, Race | None, Keep], Workers]
"""Makes the workers of a search, from its evaluator, its race and what hears of rungs."""
