"""Who beats whom where several values count: fronts, and how far apart their members stand.

Pure. Legend: K candidates, m values; higher is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def is_on_front(values: Floats) -> NDArray[np.bool_]:
    """Whether no other candidate is as good in every value (K, m) and better in one (K,).

    Whoever beats another comes before it in the order of the alphabet, highest first: each is held
    against the members of the front so far alone.
    """
    found = np.zeros(len(values), dtype=bool)
    front = np.empty_like(values)
    size = 0
    for index in np.lexsort(values.T[::-1])[::-1]:
        own, members = values[index], front[:size]
        if not ((members >= own).all(1) & (members > own).any(1)).any():
            front[size], found[index] = own, True
            size += 1
    return found


def front_members(values: Floats) -> list[int]:
    """Indices of the front of (K, m), those that stand apart first."""
    own = np.flatnonzero(is_on_front(values))
    order = np.argsort(-crowding_distance(values[own]), kind="stable")
    return own[order].tolist()


def place_in_fronts(values: Floats, best: int) -> list[tuple[int, float]]:
    """Sort keys (front from 0, minus crowding distance) of each candidate (K, m).

    Args:
        values: Of the candidates.
        best: How many are looked for: fronts behind those that hold so many are counted as one.

    Source:
        Deb et al., IEEE Trans. Evol. Comput. 6 (2002), Sec. III (NSGA-II).
    """
    front = np.full(len(values), -1)
    while (rest := np.flatnonzero(front < 0)).size:
        is_last = len(values) - rest.size >= best
        front[rest if is_last else rest[is_on_front(values[rest])]] = front.max() + 1
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
