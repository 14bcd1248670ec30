"""Writing to disk: whole files or none, and patience while the disk is full.

Knows the system's errors of a full disk, and nothing of what is written.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PAUSE = 10.0
"""Seconds between two tries."""
T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, or quota."""


@dataclass(frozen=True)
class Disk:
    """A disk that may be full: writes are retried until there is room.

    Attributes:
        note: Tells the user.
        should_stop: Whether the user wants to end the search instead of waiting.
        sleep: Waits for a number of seconds.
    """

    note: Callable[[str], None]
    should_stop: Callable[[], bool]
    sleep: Callable[[float], None] = time.sleep

    def write(self, write: Callable[[], T]) -> T:
        """Call what writes, again and again while the disk is full.

        Args:
            write: Writes everything or nothing, so that it can be called again.

        Returns:
            What ``write`` returns.

        Raises:
            OSError: If ``should_stop`` while the disk is full, or for any other reason.
        """
        is_waiting = False
        while True:
            try:
                result = write()
            except OSError as error:
                if error.errno not in FULL or self.should_stop():
                    raise
                if not is_waiting:
                    self.note(f"{error}: the search waits until there is room; Ctrl-C ends it")
                is_waiting = True
                self.sleep(PAUSE)
                continue
            if is_waiting:
                self.note("there is room on the disk again: the search continues")
            return result


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file completely or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
