"""Whether a study's record has changed since it was looked at. Knows files; reads none of them."""

from __future__ import annotations

from pathlib import Path

from .journal import JOURNAL

UNREADABLE = (OSError, LookupError, TypeError, ValueError)
"""What reading a study may raise that is damaged, or written to this moment; a StudyError is a
ValueError."""


def stamp(folder: Path) -> list[int]:
    """What is another after any change of journal or items: confirmation adds items, no trial.

    Args:
        folder: The study's.
    """
    found: list[int] = []
    for path in (folder / JOURNAL, folder / "items"):
        try:
            status = path.stat()
        except OSError:
            continue
        found += [status.st_size, status.st_mtime_ns]
    return found
