"""Pareto fronts of several values, and the crowding distance of their members.

Pure. Legend: K candidates, m values; higher is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def is_on_front(values: Floats) -> NDArray[np.bool_]:
    """Return which candidates (K,) are dominated by no other: as good in all values, better in one.

    In lexicographic order, highest first, a candidate comes after all that dominate it, so each is
    compared with the members found before it only.
    """
    is_member = np.zeros(len(values), dtype=bool)
    front = np.empty_like(values)
    size = 0
    for index in np.lexsort(values.T[::-1])[::-1]:
        x, members = values[index], front[:size]
        if not ((members >= x).all(1) & (members > x).any(1)).any():
            front[size], is_member[index] = x, True
            size += 1
    return is_member


def front_members(values: Floats) -> list[int]:
    """Return the indices of the front of (K, m), the least crowded first."""
    members = np.flatnonzero(is_on_front(values))
    order = np.argsort(-crowding_distance(values[members]), kind="stable")
    return members[order].tolist()


def place_in_fronts(values: Floats, best: int) -> list[tuple[int, float]]:
    """Return a sort key for each candidate: its front from 0, and minus its crowding distance.

    Args:
        values: Values of the candidates (K, m).
        best: Number of candidates that must be ranked: the fronts after them count as one.

    Source:
        Deb et al., IEEE Trans. Evol. Comput. 6 (2002), Sec. III (NSGA-II).
    """
    front = np.full(len(values), -1)
    while (rest := np.flatnonzero(front < 0)).size:
        is_last = len(values) - rest.size >= best
        front[rest if is_last else rest[is_on_front(values[rest])]] = front.max() + 1
    distance = np.empty(len(values))
    for number in range(front.max() + 1):
        members = np.flatnonzero(front == number)
        distance[members] = crowding_distance(values[members])
    return [(int(f), -float(d)) for f, d in zip(front, distance, strict=True)]


def crowding_distance(values: Floats) -> Floats:
    """Return each member's distance to its neighbours on a front (K, m); infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance
