"""Who beats whom where several values count: fronts, and how far apart their members stand.

Pure. Legend: K candidates, m values; higher is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def is_on_front(values: Floats) -> NDArray[np.bool_]:
    """Whether no other candidate is as good in every value (K, m) and better in one (K,)."""
    return np.array(
        [not ((values >= own).all(1) & (values > own).any(1)).any() for own in values], dtype=bool
    )


def front_members(values: Floats) -> list[int]:
    """Indices of the front of (K, m), those that stand apart first."""
    own = np.flatnonzero(is_on_front(values))
    order = np.argsort(-crowding_distance(values[own]), kind="stable")
    return own[order].tolist()


def place_in_fronts(values: Floats) -> list[tuple[int, float]]:
    """Sort keys (front from 0, minus crowding distance) of each candidate (K, m).

    Source:
        Deb et al., IEEE Trans. Evol. Comput. 6 (2002), Sec. III (NSGA-II).
    """
    front = np.full(len(values), -1)
    while (rest := np.flatnonzero(front < 0)).size:
        front[rest[is_on_front(values[rest])]] = front.max() + 1
    distance = np.empty(len(values))
    for number in range(front.max() + 1):
        own = np.flatnonzero(front == number)
        distance[own] = crowding_distance(values[own])
    return [(int(f), -float(d)) for f, d in zip(front, distance, strict=True)]


def crowding_distance(values: Floats) -> Floats:
    """How far each member of a front (K, m) stands from its neighbours; infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance
