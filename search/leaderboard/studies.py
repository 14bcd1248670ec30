"""Studies side by side: one line for each, and which of them can be compared.

Knows folders and leaderboards; draws nothing. A study that cannot be read is a line that says why.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...evals.scores.fingerprint import differing, fingerprint_of
from ..evaluate.objective import Objective
from ..storage.journal import UNREADABLE, NotBegun, is_locked
from ..study.budget import time_spent
from .board import Leaderboard, Row, read_leaderboard

RUNNING, FINISHED, UNFINISHED, NOT_BEGUN, DAMAGED = (
    "running",
    "finished",
    "unfinished",
    "not begun",
    "damaged",
)


@dataclass(frozen=True)
class Line:
    """A study, or one of its best candidates.

    Attributes:
        folder: Where the study lies.
        state: ``running``, ``finished``, ``unfinished``, ``not begun`` or ``damaged``.
        board: Its leaderboard; None where that cannot be read.
        row: The candidate; None where none was scored.
        comparable: Letter that studies share whose scores may be compared; None where unknown.
        reason: Why there is no leaderboard.
    """

    folder: Path
    state: str
    board: Leaderboard | None = None
    row: Row | None = None
    comparable: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """The study's name, or its folder's."""
        return self.board.name if self.board else self.folder.name

    @property
    def why(self) -> str | None:
        """Why there is no leaderboard, as things are now."""
        is_starting = self.state == RUNNING and self.board is None
        return "its search is still starting" if is_starting else self.reason

    def at_work(self, held: bool) -> Line:
        """The same while a search is at work on it, or is not."""
        if self.state == DAMAGED:
            return self
        ended = NOT_BEGUN if self.board is None else FINISHED if self.board.finished else UNFINISHED
        return replace(self, state=RUNNING if held else ended)


def read_line(folder: Path, *, held: bool | None = None) -> Line:
    """Read one study; whatever is wrong with it is its line's reason.

    Args:
        folder: The study's.
        held: Whether a search is at work there; default: look.
    """
    held = is_locked(folder) if held is None else held
    try:
        board = read_leaderboard(folder)
    except NotBegun as error:
        return Line(folder, NOT_BEGUN, reason=str(error)).at_work(held)
    except UNREADABLE as error:
        return Line(folder, DAMAGED, reason=_line_of(error))
    state = FINISHED if board.finished else UNFINISHED
    return Line(folder, state, board, board.winner).at_work(held)


def _line_of(error: Exception) -> str:
    """What an exception says, in one line; those that are not ours with their kind."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def side_by_side(lines: Sequence[Line], top: int = 1) -> list[Line]:
    """Put studies in order: those that can be compared together, the best first.

    The largest such set comes first and is called a; of equal ones, the one with the first study.

    Args:
        lines: One per study.
        top: Candidates of each study.
    """
    sets: list[list[Line]] = []
    for line in lines:
        own = next((s for s in sets if line.board and not _differences(s[0], line)), None)
        if own is not None:
            own.append(line)
        elif line.board is not None:
            sets.append([line])
    sets.sort(key=len, reverse=True)
    found = [
        each
        for letter, own in zip(_letters(), sets, strict=False)
        for each in sorted(
            (replace(one, comparable=letter) for line in own for one in _best(line, top)),
            key=_order,
        )
    ]
    return found + [line for line in lines if line.board is None]


def _letters() -> Iterator[str]:
    """a to z, then aa, bb, ..."""
    times = 1
    while True:
        yield from (letter * times for letter in string.ascii_lowercase)
        times += 1


def _best(line: Line, count: int) -> list[Line]:
    """A line for each of the best candidates; one without any where none was scored."""
    rows = line.board.rows if line.board else ()
    best = [row for row in rows if row.place and row.candidate.is_searched][:count]
    return [replace(line, row=row) for row in best] or [line]


def _order(line: Line) -> tuple[float, float]:
    confirm, search = (line.row.confirm, line.row.search) if line.row else (None, None)
    return (
        -(confirm.value if confirm else -float("inf")),
        -(search.value if search else -float("inf")),
    )


def _differences(a: Line, b: Line) -> dict[str, tuple[str, str]]:
    """What keeps the scores of two studies from being compared: name -> (in a, in b)."""
    if a.board is None or b.board is None:
        return {"leaderboard": (a.state, b.state)}
    found = {"objective": (_said(a.board.objective), _said(b.board.objective))}
    found = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    if not a.board.fingerprint_parts or not b.board.fingerprint_parts:
        return found | {"fingerprint": ("unknown", "unknown")}
    texts = (fingerprint_of(board.fingerprint_parts) for board in (a.board, b.board))
    return found | differing(*texts)


def _said(objective: Objective) -> str:
    """An objective with all that decides its numbers; a scale depends on the parents."""
    scale = f" on {dict(objective.scale)}" if objective.normalize else ""
    return f"{objective.phrase}{scale}"


def objectives(lines: Sequence[Line]) -> dict[str, str]:
    """Letter of a set of comparable studies -> what is optimised there."""
    firsts = _firsts(lines)
    return {letter: b.objective.phrase for letter, line in firsts.items() if (b := line.board)}


def incomparable(lines: Sequence[Line]) -> Iterator[str]:
    """Say what each set of studies differs in from the first one."""
    firsts = _firsts(lines)
    letters = list(firsts)
    for letter in letters[1:]:
        changes = _differences(firsts[letters[0]], firsts[letter])
        names = [
            f"{name} ({a} and {b})" if _is_told(a, b) else name for name, (a, b) in changes.items()
        ]
        yield f"{letters[0]} and {letter} cannot be compared: other {', '.join(names)}."


def _firsts(lines: Sequence[Line]) -> dict[str, Line]:
    """The first study of each set that can be compared."""
    firsts: dict[str, Line] = {}
    for line in lines:
        if line.comparable is not None:
            firsts.setdefault(line.comparable, line)
    return dict(sorted(firsts.items()))


def _is_told(*values: str) -> bool:
    """Whether values say something to a person: digests do not."""
    return not any(len(v) == 32 and set(v) <= set(string.hexdigits) for v in values)


def found(line: Line) -> str:
    """What a study has found, in a few words; of a line's candidate."""
    row = line.row
    if line.board is None:
        return line.state
    if row is None:
        return "only baselines so far"
    if row.verdict == "better":
        return "beats every baseline"
    if row.verdict == "worse":
        return f"worse than {row.unbeaten}"
    return f"not shown to beat {row.unbeaten}" if row.verdict == "tie" else "not confirmed yet"


def hours(board: Leaderboard) -> float:
    """Hours of scoring on search items, however many were scored side by side."""
    return sum(time_spent(row.candidate) for row in board.rows) / 3600
