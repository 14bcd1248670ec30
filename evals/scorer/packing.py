"""Group rows that share tokens, and pack groups into rows. Pure: token ids in, plans of rows out.

A `Group` is a tree of depth two: a trunk, with which all its rows begin, and a branch per row for
the rest. The choices of a question are a group whose trunk is the question. Knows no requests.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = tuple[int, ...]
# A row joins a group if that saves at least this share of the row's tokens; below, the longer
# packed row costs more in attention than it saves.
_WORTHWHILE = 0.125
# A prefix gets a forward pass of its own if it has at least this many tokens and saves at least
# this share of all tokens; below, the extra pass costs more than it saves.
_SHORTEST_PREFIX = 16
_PREFIX_SHARE = 0.1


@dataclass(frozen=True)
class Group:
    """Rows with a common beginning.

    Attributes:
        rows: Rows with equal first ``trunk`` tokens.
        trunk: Number of shared tokens; all tokens if there is one row.
    """

    rows: tuple[Row, ...]
    trunk: int

    @property
    def length(self) -> int:
        """Tokens of the packed group: the trunk once, then every branch."""
        return self.trunk + sum(len(row) - self.trunk for row in self.rows)


def common_length(rows: Iterable[Row]) -> int:
    """Return the length of the longest common prefix of some rows; 0 without rows."""
    listed = list(rows)
    if not listed:
        return 0
    first, last = min(listed), max(listed)  # in lexicographic order, these two differ first
    limit = min(len(first), len(last))
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def shared_prefix(rows: Sequence[Row], longest: Sequence[int]) -> Row:
    """Return the common prefix of some rows if it is worth a pass of its own, else no tokens.

    Args:
        rows: Distinct rows of one task.
        longest: Most tokens of each row that may be in the prefix, none of them scored.
    """
    if len(rows) < 2:
        return ()
    length = min(common_length(rows), *longest)
    saved = length * (len(rows) - 1)
    if length < _SHORTEST_PREFIX or saved < _PREFIX_SHARE * sum(map(len, rows)):
        return ()
    return rows[0][:length]


def group_rows(rows: Iterable[Row], most: int) -> list[Group]:
    """Group rows that share enough of their beginning.

    In lexicographic order, rows that share most are neighbours, so one pass is enough.

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
    """Return the group with one more row; None if that saves too little or is too long."""
    joined = Group((*group.rows, row), common_length((group.rows[0][: group.trunk], row)))
    saved = group.length + len(row) - joined.length
    if saved < _WORTHWHILE * len(row) or joined.length > most:
        return None
    return joined


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack pieces into few rows by best-fit decreasing.

    Args:
        lengths: Length of each piece, in tokens; one above ``capacity`` gets a row of its own.
        capacity: Tokens of a row.

    Returns:
        Indices of the pieces of each row, fullest row first.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    used: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):  # longest first
        place = bisect_left(room, (lengths[index], -1))  # the fullest row with enough room
        if place < len(room):
            left, row = room.pop(place)
        else:  # no row has enough room: open a new one
            left, row = max(capacity, lengths[index]), len(rows)
            rows.append([])
            used.append(0)
        rows[row].append(index)
        used[row] += lengths[index]
        insort(room, (left - lengths[index], row))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (-used[i], i))]
