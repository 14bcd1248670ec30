"""`heterosis leaderboard --watch`: studies re-read when they have grown, redrawn in place.

Knows folders, clocks and the terminal; the caller draws.
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
"""Largest share of one core's time spent on reading: large studies are read less often."""


class Follower:
    """Studies that are re-read only when their journals or items have changed.

    Args:
        find: Returns the folders of the studies; called each time.
    """

    def __init__(self, find: Callable[[], Sequence[Path]]) -> None:
        self._find = find
        self._cached: dict[Path, tuple[list[int], Line]] = {}

    def look(self) -> list[Line]:
        """Return a line per study, as it is now."""
        return [self._line(folder) for folder in self._find()]

    def _line(self, folder: Path) -> Line:
        is_running = is_locked(folder)  # read first: what an ended search left is complete
        stamp = file_stamp(folder)
        cached = self._cached.get(folder)
        if cached is not None and cached[0] == stamp:
            return cached[1].with_lock(is_running)
        line = read_line(folder, is_running=is_running)
        self._cached[folder] = (stamp, line)
        return line


def is_over(lines: Sequence[Line]) -> bool:
    """Whether nothing will change: all searches are finished, none holds its folder."""
    return all(line.state in (FINISHED, DAMAGED) for line in lines)


def watch(
    screen: Console,
    look: Callable[[], list[Line]],
    draw: Callable[[list[Line]], RenderableType],
    interval: float,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Line]:
    """Redraw until all searches are finished or the user presses Ctrl-C; return the last lines.

    Args:
        screen: A terminal; its content is restored at the end.
        look: Reads the studies.
        draw: Draws them.
        interval: Minimum seconds between two looks.
        sleep: Waits for a number of seconds.

    Raises:
        ValueError: If the output is not a terminal.
    """
    from rich.live import Live

    if not sys.stdout.isatty() or screen.is_dumb_terminal:
        raise ValueError(
            "`--watch` redraws in place and needs a terminal; leave it out to print once"
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
