"""Columns of a task's items that an objective may use. Imports nothing: configurations use it."""

from typing import Literal

METRIC: Literal["metric"] = "metric"
TermColumn = Literal["metric", "margin", "log_likelihood", "length"]
"""``metric``: the task's metric; ``margin``: right answer minus the best other (nats);
``log_likelihood``: of the right answer (nats); ``length``: of a generated answer (tokens)."""
LOWER_IS_BETTER = ("length",)
NEEDS: dict[TermColumn, tuple[str, ...]] = {
    "margin": ("multiple_choice", "loglikelihood"),
    "log_likelihood": ("multiple_choice", "loglikelihood"),
    "length": ("generate_until",),
}
"""Column -> lm-eval's output types that have it; every type has the metric."""
