"""What may count of a task for an objective. Imports nothing heavy: configurations name these."""

from typing import Literal

METRIC: Literal["metric"] = "metric"
TermColumn = Literal["metric", "margin", "log_likelihood", "length"]
"""``metric``: the task's own; ``margin``: of the right answer over its best rival (nats);
``log_likelihood``: of the right answer (nats); ``length``: of a generated answer (tokens)."""
LOWER_IS_BETTER = ("length",)
NEEDS: dict[TermColumn, tuple[str, ...]] = {
    "margin": ("multiple_choice", "loglikelihood"),
    "log_likelihood": ("multiple_choice", "loglikelihood"),
    "length": ("generate_until",),
}
"""Column -> lm-eval's output types of the tasks that have it; the metric is everybody's."""
