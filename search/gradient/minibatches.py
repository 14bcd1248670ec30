"""Minibatches of search items, and the items kept apart that choose the stopping step.

Each task gives the same number of items to every step, in an order drawn again for each pass over
its items. Everything follows from the seed and the number of the step, so a resumed descent sees
the same minibatches. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain

from ...evals.gradient.items import ItemKey

APART = 0.25
"""Share of each task's items that is kept apart."""


class Minibatches:
    """The minibatches of a descent.

    Args:
        keys: Items with a smooth loss: (task, row).
        size: Items of each task in a minibatch; all of a task's if it has fewer.
        seed: Seed of the order.
        apart: Share of each task's items that is kept apart, in [0, 1).

    Attributes:
        held: Items kept apart, in order of tasks and rows; of a task with one item none.
    """

    def __init__(self, keys: Iterable[ItemKey], size: int, seed: int, apart: float = APART) -> None:
        by_task: dict[str, list[ItemKey]] = {}
        for key in keys:
            by_task.setdefault(key[0], []).append(key)
        self._size, self._seed = size, seed
        self._seen: dict[str, list[ItemKey]] = {}
        held = []
        for task, items in by_task.items():
            shuffled = self._shuffled(items, f"{task}: kept apart")
            count = min(round(apart * len(items)), len(items) - 1)
            held.append(sorted(shuffled[:count]))
            self._seen[task] = sorted(shuffled[count:])
        self.held: tuple[ItemKey, ...] = tuple(chain.from_iterable(held))

    def at(self, step: int) -> tuple[ItemKey, ...]:
        """Return the items of a step, counted from 0."""
        return tuple(chain.from_iterable(self._of_task(task, step) for task in self._seen))

    def _of_task(self, task: str, step: int) -> list[ItemKey]:
        items = self._seen[task]
        size = min(self._size, len(items))
        chosen: list[ItemKey] = []
        place = step * size
        while len(chosen) < size:
            lap, start = divmod(place, len(items))
            order = self._shuffled(items, f"{task}: lap {lap}")
            # At the seam of two laps an item is not taken twice.
            chosen += [key for key in order[start:] if key not in chosen][: size - len(chosen)]
            place += len(order) - start
        return chosen

    def _shuffled(self, items: list[ItemKey], purpose: str) -> list[ItemKey]:
        order = list(items)
        random.Random(f"{self._seed}: {purpose}").shuffle(order)
        return order
