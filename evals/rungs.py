"""Rungs: items scored a few at a time, and the scores so far. Knows numpy; no model, no lm-eval."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from .scores import ItemScores

Item = tuple[str, int]  # task, row of its data


def rung_rows(
    items: Sequence[Item], order: Sequence[Item] | Sequence[int], ends: Sequence[int]
) -> list[dict[str, list[int]]]:
    """Rows of each task in each rung, ascending.

    Args:
        items: Every item, as scores are ordered.
        order: The same items in the order of the rungs, or their indices in ``items``.
        ends: How many items each rung has scored when it ends.

    Raises:
        ValueError: If ``order`` is no permutation, or ``ends`` does not grow to all items.
    """
    ordered: list[Any] = [items[o] if isinstance(o, int | np.integer) else tuple(o) for o in order]
    if sorted(ordered) != sorted(items):
        raise ValueError(
            f"`order` must name each of the {len(items)} items once, got {len(ordered)}, "
            f"{len(set(ordered) & set(items))} of them different items of the split"
        )
    starts = [0, *ends][:-1]
    if not ends or ends[-1] != len(items) or any(a >= b for a, b in zip(starts, ends, strict=True)):
        raise ValueError(f"`ends` must grow from above 0 to {len(items)}, got {list(ends)}")
    rungs = []
    for start, end in zip(starts, ends, strict=True):
        rows: dict[str, list[int]] = {}
        for task, row in sorted(ordered[start:end]):
            rows.setdefault(task, []).append(row)
        rungs.append(rows)
    return rungs


def joined(parts: Sequence[ItemScores], names: Sequence[str]) -> ItemScores:
    """Join scores of different items of one model into one, ordered by (task, doc_id).

    Args:
        parts: At least one; no item twice.
        names: Tasks in the order wanted; those without items are left out.
    """
    tasks = [name for name in names if any(name in part.tasks for part in parts)]
    source = [(next(p for p in parts if name in p.tasks), name) for name in tasks]
    arrays: dict[str, Any] = {}
    header: dict[str, Any] = {}
    for field in fields(ItemScores):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            arrays[field.name] = np.concatenate(values)
        elif isinstance(values[0], tuple):
            header[field.name] = tuple(
                getattr(p, field.name)[p.tasks.index(name)] for p, name in source
            )
        else:
            header[field.name] = values[0]
    places = [np.array([tasks.index(t) for t in part.tasks], dtype=np.int64) for part in parts]
    arrays["task_index"] = np.concatenate(
        [place[part.task_index] for place, part in zip(places, parts, strict=True)]
    )
    order = np.lexsort((arrays["doc_id"], arrays["task_index"]))
    return ItemScores(**header, **{name: values[order] for name, values in arrays.items()})
