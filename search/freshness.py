"""Whether a study's record has changed since it was looked at. Knows files; reads none of them."""

from __future__ import annotations

from pathlib import Path

from .journal import JOURNAL

UNREADABLE = (OSError, LookupError, TypeError, ValueError)
"""What reading a study may raise that is damaged, or written to this moment; a StudyError is a
ValueError."""


def stamp(folder: Path) -> list[int]:
    """What is another after any change of journal or items: bytes in all, time of the last write.

    Args:
        folder: The study's.
    """
    files = [folder / JOURNAL, *sorted((folder / "items").glob("*"))]
    states = [path.stat() for path in files if path.is_file()]
    return [sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
