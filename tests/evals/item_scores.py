"""Item scores for tests."""

import math

from heterosis.evals.scores.scores import ItemScores, item_scores


def scores(
    values: dict[str, list[float]],
    aggregation: str = "mean",
    weights: dict[str, list[float]] | None = None,
    higher: bool = True,
) -> ItemScores:
    """Item scores of tasks; doc ids count up from 0."""
    flat = [v for task in values.values() for v in task]
    ones = {task: [1.0] * len(v) for task, v in values.items()}
    header = {
        "tasks": list(values),
        "metrics": ["acc,none"] * len(values),
        "aggregations": [aggregation] * len(values),
        "higher_is_better": [higher] * len(values),
    }
    columns = {
        "task_index": [i for i, v in enumerate(values.values()) for _ in v],
        "doc_id": [i for v in values.values() for i in range(len(v))],
        "value": flat,
        "weight": [w for task in (weights or ones).values() for w in task],
        "margin": [math.nan] * len(flat),
    }
    return item_scores(header, columns)
