"""Studies side by side: their state, their best candidates, and which can be compared.

Knows folders and leaderboards; draws nothing. A study that cannot be read is a line with a reason.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...evals.scores.fingerprint import differing, fingerprint_of
from ..evaluate.objective import Objective
from ..storage.journal import UNREADABLE, NotBegun, is_locked
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
        folder: The study's folder.
        state: ``running``, ``finished``, ``unfinished``, ``not begun`` or ``damaged``.
        board: Its leaderboard; None if that cannot be read.
        row: The candidate; None if none was scored.
        comparable: Letter of the set of studies whose scores can be compared; None if unknown.
        error: Error in reading the leaderboard.
    """

    folder: Path
    state: str
    board: Leaderboard | None = None
    row: Row | None = None
    comparable: str | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The study's name, or its folder's."""
        return self.board.name if self.board else self.folder.name

    @property
    def reason(self) -> str | None:
        """Why there is no leaderboard."""
        is_starting = self.state == RUNNING and self.board is None
        return "its search is still starting" if is_starting else self.error

    @property
    def outcome(self) -> str:
        """What the study found, in a few words; for the line's candidate."""
        if self.board is None:
            return self.state
        if self.row is None:
            return "only baselines so far"
        if self.row.verdict == "better":
            return "beats every baseline"
        if self.row.verdict == "worse":
            return f"worse than {self.row.unbeaten}"
        is_tie = self.row.verdict == "tie"
        return f"not shown to beat {self.row.unbeaten}" if is_tie else "not confirmed yet"

    def with_lock(self, is_running: bool) -> Line:
        """Return the line, given whether a search is running in the study's folder."""
        if self.state == DAMAGED:
            return self
        ended = NOT_BEGUN if self.board is None else FINISHED if self.board.finished else UNFINISHED
        return replace(self, state=RUNNING if is_running else ended)


def read_line(folder: Path, *, is_running: bool | None = None) -> Line:
    """Read one study; an error becomes the line's reason.

    Args:
        folder: The study's folder.
        is_running: Whether a search is running there; default: look.
    """
    is_running = is_locked(folder) if is_running is None else is_running
    try:
        board = read_leaderboard(folder)
    except NotBegun as error:
        return Line(folder, NOT_BEGUN, error=str(error)).with_lock(is_running)
    except UNREADABLE as error:
        return Line(folder, DAMAGED, error=_one_line(error))
    return Line(folder, FINISHED, board, board.winner).with_lock(is_running)


def _one_line(error: Exception) -> str:
    """An exception's message in one line; with its type if it is not one of ours."""
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def side_by_side(lines: Sequence[Line], top: int = 1) -> list[Line]:
    """Return lines sorted by set of comparable studies, the best first.

    The largest set comes first and is called a; of equally large ones, that of the first study.

    Args:
        lines: One per study.
        top: Candidates of each study.
    """
    sets: list[list[Line]] = []
    for line in lines:
        match = next((s for s in sets if line.board and not _differences(s[0], line)), None)
        if match is not None:
            match.append(line)
        elif line.board is not None:
            sets.append([line])
    sets.sort(key=len, reverse=True)
    result: list[Line] = []
    for letter, members in zip(_letters(), sets, strict=False):
        best = [row for line in members for row in _best(line, top)]
        result += sorted((replace(line, comparable=letter) for line in best), key=_order)
    return result + [line for line in lines if line.board is None]


def _letters() -> Iterator[str]:
    """a to z, then aa, bb, ..."""
    times = 1
    while True:
        yield from (letter * times for letter in string.ascii_lowercase)
        times += 1


def _best(line: Line, count: int) -> list[Line]:
    """A line for each of the best candidates; the study's own if none was scored."""
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
    """Why the scores of two studies cannot be compared: name -> (in a, in b)."""
    if a.board is None or b.board is None:
        return {"leaderboard": (a.state, b.state)}
    objectives = (_words(a.board.objective), _words(b.board.objective))
    differences = {} if objectives[0] == objectives[1] else {"objective": objectives}
    if not a.board.fingerprint_parts or not b.board.fingerprint_parts:
        return differences | {"fingerprint": ("unknown", "unknown")}
    texts = (fingerprint_of(board.fingerprint_parts) for board in (a.board, b.board))
    return differences | differing(*texts)


def _words(objective: Objective) -> str:
    """An objective with all that determines its value; a scale depends on the parents."""
    scale = f" on {dict(objective.scale)}" if objective.normalize else ""
    return f"{objective.phrase}{scale}"


def objectives(lines: Sequence[Line]) -> dict[str, str]:
    """Return the letter of each set of comparable studies -> its objective."""
    firsts = _firsts(lines)
    return {letter: b.objective.phrase for letter, line in firsts.items() if (b := line.board)}


def incomparable(lines: Sequence[Line]) -> Iterator[str]:
    """Return why each set of studies cannot be compared with the first one."""
    firsts = _firsts(lines)
    letters = list(firsts)
    for letter in letters[1:]:
        changes = _differences(firsts[letters[0]], firsts[letter])
        names = [
            f"{name} ({a} and {b})" if _is_readable(a, b) else name
            for name, (a, b) in changes.items()
        ]
        yield f"{letters[0]} and {letter} cannot be compared: they differ in {', '.join(names)}."


def _firsts(lines: Sequence[Line]) -> dict[str, Line]:
    """The first study of each set."""
    firsts: dict[str, Line] = {}
    for line in lines:
        if line.comparable is not None:
            firsts.setdefault(line.comparable, line)
    return dict(sorted(firsts.items()))


def _is_readable(*values: str) -> bool:
    """Whether no value is a digest."""
    return not any(len(v) == 32 and set(v) <= set(string.hexdigits) for v in values)
