"""A full disk does not end the night: the search waits for room, and says so once.

Knows what the system calls a full disk, and nothing of what is written.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PAUSE = 10.0
"""Seconds between two tries."""
T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def with_room(
    write: Callable[[], T],
    note: Callable[[str], None],
    should_stop: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Write, as often as it takes until the disk has room for it.

    Args:
        write: Writes whole or not at all, so that it can be called again.
        note: Tells a person.
        should_stop: Whether somebody would rather end the search.
        sleep: Waits so many seconds.

    Returns:
        What ``write`` returns.

    Raises:
        OSError: If ``should_stop`` while the disk is full, or for any other reason.
    """
    waited = 0
    while True:
        try:
            done = write()
        except OSError as error:
            if error.errno not in _FULL or should_stop():
                raise
            if not waited:
                note(f"{error}: the search waits until there is room, then goes on; Ctrl-C ends it")
            waited += 1
            sleep(PAUSE)
            continue
        if waited:
            note("there is room on the disk again: going on")
        return done


def write_whole(path: Path, text: str) -> None:
    """Write a small text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
