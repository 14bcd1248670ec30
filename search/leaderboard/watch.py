"""`heterosis leaderboard --watch`: studies read again when they have grown, drawn again in place.

Knows folders, clocks and the terminal; what is drawn comes in from outside.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.journal import file_stamp, is_locked
from .studies import DAMAGED, FINISHED, Line, read_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SHARE = 0.2
"""Most of one core's time that reading may take: large studies are read less often."""


class Follower:
    """Reads studies again, each only when its journal or its items have changed.

    Args:
        find: The folders of the studies; asked each time.
    """

    def __init__(self, find: Callable[[], Sequence[Path]]) -> None:
        """Read nothing yet."""
        self._find = find
        self._known: dict[Path, tuple[list[int], Line]] = {}

    def look(self) -> list[Line]:
        """A line per study, as it is now."""
        return [self._line(folder) for folder in self._find()]

    def _line(self, folder: Path) -> Line:
        held = is_locked(folder)  # read first: what an ended search left is complete
        seen = file_stamp(folder)
        known = self._known.get(folder)
        if known is not None and known[0] == seen:
            return known[1].at_work(held)
        line = read_line(folder, held=held)
        self._known[folder] = (seen, line)
        return line


def is_over(lines: Sequence[Line]) -> bool:
    """Whether nothing will change: all searches are finished and have let go of their folders."""
    return all(line.state in (FINISHED, DAMAGED) for line in lines)


def watch(
    screen: Console,
    look: Callable[[], list[Line]],
    draw: Callable[[list[Line]], RenderableType],
    interval: float,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Line]:
    """Draw again and again, until all searches are finished or Ctrl-C; return what was seen last.

    Args:
        screen: A terminal; what stood there comes back at the end.
        look: Reads the studies.
        draw: What to show of them.
        interval: Seconds between two looks, at least.
        sleep: Waits so many seconds.

    Raises:
        ValueError: If this is no terminal.
    """
    from rich.live import Live

    if not sys.stdout.isatty() or screen.is_dumb_terminal:
        raise ValueError(
            "`--watch` draws again in place and needs a terminal; leave it out to print once"
        )
    lines: list[Line] = []
    try:
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                begun = time.process_time()
                lines = look()
                live.update(draw(lines), refresh=True)
                if is_over(lines):
                    break
                spent = time.process_time() - begun
                sleep(max(interval, spent / SHARE))
    except KeyboardInterrupt:
        pass
    return lines
