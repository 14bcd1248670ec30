"""Rungs of a split: which items are scored when. Knows numpy; knows no model and no lm-eval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Item = tuple[str, int]  # task, row of its data


def rung_rows(
    items: Sequence[Item], order: Sequence[Item] | Sequence[int], ends: Sequence[int]
) -> list[dict[str, list[int]]]:
    """Return the rows of each task in each rung, ascending; none for a task without items in it.

    Args:
        items: All items, in the order of scores.
        order: The same items in the order of the rungs, or their indices in ``items``.
        ends: Number of items scored when each rung ends.

    Raises:
        ValueError: If ``order`` is no permutation, or ``ends`` does not increase to all items.
    """
    ordered: list[Any] = [items[o] if isinstance(o, int | np.integer) else tuple(o) for o in order]
    if sorted(ordered) != sorted(items):
        raise ValueError(
            f"`order` must name each of the {len(items)} items once, got {len(ordered)}, "
            f"{len(set(ordered) & set(items))} of them different items of the split"
        )
    starts = [0, *ends][:-1]
    if not ends or ends[-1] != len(items) or any(a >= b for a, b in zip(starts, ends, strict=True)):
        raise ValueError(f"`ends` must increase from above 0 to {len(items)}, got {list(ends)}")
    rungs = []
    for start, end in zip(starts, ends, strict=True):
        rows: dict[str, list[int]] = {task: [] for task, _ in items}
        for task, row in sorted(ordered[start:end]):
            rows[task].append(row)
        rungs.append(rows)
    return rungs
