"""Which requests share tokens, and which rows they fill. Pure: token ids in, plans of rows out.

A `Group` is a tree of depth two: a trunk that all its rows begin with, and a branch for what each
row has alone. The choices of a question are such a group, its trunk the question; so are the same
choice behind several questions that begin alike. Nothing here knows which request is which.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = tuple[int, ...]
# A row joins a group if that spares at least this share of its tokens: for less, the longer packed
# row costs in attention what it spares elsewhere.
_WORTHWHILE = 0.125
# A prefix is computed apart if it is at least this long (tokens) and spares at least this share of
# all tokens; below, the extra pass costs more than it spares.
_SHORTEST_PREFIX = 16
_PREFIX_SHARE = 0.1


@dataclass(frozen=True)
class Group:
    """Rows with a common beginning.

    Attributes:
        rows: The rows, each with the ``trunk`` first tokens in common.
        trunk: How many tokens they share; all of them if there is one row.
    """

    rows: tuple[Row, ...]
    trunk: int

    @property
    def length(self) -> int:
        """Tokens when packed: the trunk once, then every branch."""
        return self.trunk + sum(len(row) - self.trunk for row in self.rows)


def common_length(rows: Iterable[Row]) -> int:
    """Number of tokens that all rows begin with; of nothing, 0."""
    listed = list(rows)
    if not listed:
        return 0
    first, last = min(listed), max(listed)  # the two that differ soonest
    limit = min(len(first), len(last))
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def shared_prefix(rows: Sequence[Row], longest: Sequence[int]) -> Row:
    """Return the prefix of some rows that is worth a pass of its own, or nothing.

    Args:
        rows: Distinct rows of one task.
        longest: Per row, how many tokens may be in the prefix: none of them scored.
    """
    if len(rows) < 2:
        return ()
    length = min(common_length(rows), *longest)
    spared = length * (len(rows) - 1)
    if length < _SHORTEST_PREFIX or spared < _PREFIX_SHARE * sum(map(len, rows)):
        return ()
    return rows[0][:length]


def group_rows(rows: Iterable[Row], most: int) -> list[Group]:
    """Join rows that share enough of their beginning.

    Rows are taken in lexicographic order, where those that share most are neighbours.

    Args:
        rows: Distinct rows.
        most: Longest group, in packed tokens; a longer row is a group of its own.
    """
    groups: list[Group] = []
    for row in sorted(rows):
        joined = _joined(groups[-1], row, most) if groups else None
        if joined is None:
            groups.append(Group((row,), len(row)))
        else:
            groups[-1] = joined
    return groups


def _joined(group: Group, row: Row, most: int) -> Group | None:
    """Return the group with a row more, or None where that spares too little or grows too long."""
    joined = Group((*group.rows, row), common_length((group.rows[0][: group.trunk], row)))
    spared = group.length + len(row) - joined.length
    if spared < _WORTHWHILE * len(row) or joined.length > most:
        return None
    return joined


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put pieces into as few rows as best-fit decreasing finds.

    Args:
        lengths: Of the pieces, in tokens; one above ``capacity`` gets a row of its own.
        capacity: Tokens of a row.

    Returns:
        Indices of the pieces of each row; the fullest row first.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    used: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = max(capacity, lengths[index]), len(rows)
            rows.append([])
            used.append(0)
        rows[row].append(index)
        used[row] += lengths[index]
        insort(room, (left - lengths[index], row))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (-used[i], i))]
