"""The page that lists the studies of a folder; it is updated when a search ends.

Knows folders, leaderboards and the data in an earlier page: a study is re-read only if its files
have changed. Does not draw the studies' own pages.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..leaderboard.board import Leaderboard, read_leaderboard
from ..leaderboard.kinds import DIFFERENCE, SCORE
from ..leaderboard.sentences import verdict_sentence
from ..storage.files import write_atomically
from ..storage.journal import JOURNAL, UNREADABLE, StudyError, file_stamp, find_studies
from .html import TABLES, embedded, now, render, script, text
from .page import REPORT

INDEX = "index.html"
SIGN = "· heterosis</title>"
"""In the head of every page of ours."""
HEAD = 2000
"""Bytes of a file that are searched for that sign."""
FORM = 1
"""Version of the entries in a page; those of another version are re-read."""
Entry = dict[str, Any]


def index_page(entries: Sequence[Mapping[str, Any]], drawn: str | None = None) -> str:
    """Return the page that lists studies.

    Args:
        entries: One per study, from `index_entry`, or ``{"name", "error"}``.
        drawn: Time at which it was drawn; default: now.
    """
    return render(
        "index.html.j2",
        title="Studies",
        drawn=drawn or now(),
        entries=entries,
        data=embedded({"form": FORM, "entries": list(entries)}),
        scripts=[script(TABLES), text("report.js")],
    )


def index_entry(board: Leaderboard, link: str | None) -> Entry:
    """Return a study's entry: plain JSON values."""
    winner, baseline = board.winner, board.best_baseline
    cells = {
        "confirm": SCORE.cell(winner.confirm if winner else None),
        "baseline": SCORE.cell(baseline.confirm if baseline else None),
        "to_parent": DIFFERENCE.cell(winner.to_parent if winner else None, board.in_points),
    }
    return {
        "name": board.name,
        "link": link,
        "state": "finished" if board.finished else "unfinished",
        "verdict": verdict_sentence(board),
        "winner": winner.candidate.name if winner else "-",
        "candidates": board.searched,
        **{key: {"text": cell.text, "order": cell.order} for key, cell in cells.items()},
    }


def write_index(
    results: Path,
    folders: Sequence[Path],
    draw: Callable[[Path], tuple[Leaderboard, Path]],
    on_error: Callable[[str], object],
    out: Path | None = None,
) -> Path:
    """Write every study's page, then the page that lists them.

    Args:
        results: The folder of the studies.
        folders: The studies' folders.
        draw: Writes a study's page.
        on_error: Called with the error of each study that cannot be read.
        out: The file; default: ``index.html`` in `results`.

    Raises:
        StudyError: If the file exists and is not a page of ours.
    """
    goal = out or results / INDEX
    _refuse_foreign(goal)
    entries = []
    for folder in folders:
        try:
            board, path = draw(folder)
        except StudyError as error:
            on_error(str(error))
            entries.append({"name": folder.name, "error": str(error)})
        else:
            link = path.resolve().as_uri() if out else f"{quote(folder.name)}/{path.name}"
            entries.append(
                index_entry(board, link) | {"folder": folder.name, "at": file_stamp(folder)}
            )
    write_atomically(goal, index_page(entries))
    return goal


def refresh_index(board: Leaderboard) -> Path | None:
    """Update the list of studies beside a study's folder when its search has ended.

    It is written if it exists, or if the folder contains two studies and nothing else. Pages that
    are not ours, and folders that cannot be written to, are left unchanged.

    Returns:
        The page; None if none was written.

    Raises:
        OSError: If it cannot be written; it is then unchanged.
    """
    results = board.folder.absolute().parent
    goal = results / INDEX
    if (results / JOURNAL).is_file() or not os.access(results, os.W_OK):
        return None
    if not is_ours(goal) and not _has_only_studies(results):
        return None
    before = _entries(goal)
    entries = [_entry(f, before, board) for f in find_studies(results)]
    write_atomically(goal, index_page(entries))
    return goal


def _has_only_studies(results: Path) -> bool:
    """Whether a folder contains two studies or more, and nothing else but hidden files."""
    visible = [path for path in results.iterdir() if not path.name.startswith(".")]
    return len(visible) > 1 and all((path / JOURNAL).is_file() for path in visible)


def _entry(folder: Path, before: Mapping[str, Entry], board: Leaderboard) -> Entry:
    """A study's entry: of the given leaderboard, or from an earlier page, or re-read."""
    at, earlier = file_stamp(folder), before.get(folder.name, {})
    link = f"{quote(folder.name)}/{REPORT}" if (folder / REPORT).is_file() else None
    if folder == board.folder.absolute():
        entry = index_entry(board, link)
    elif earlier.get("at") == at:
        entry = {**earlier, "link": link}
    else:
        try:
            entry = index_entry(read_leaderboard(folder), link)
        except UNREADABLE as error:
            return {"name": folder.name, "error": str(error)}
    return entry | {"folder": folder.name, "at": at}


def is_ours(page: Path) -> bool:
    """Whether a file exists and is a page of ours."""
    try:
        with page.open("rb") as file:
            return SIGN.encode() in file.read(HEAD)
    except OSError:
        return False


def _refuse_foreign(goal: Path) -> None:
    if goal.exists() and not is_ours(goal):
        raise StudyError(
            f"{goal} was not written by heterosis and is not overwritten; choose another file "
            "with --out"
        )


def _entries(page: Path) -> dict[str, Entry]:
    """Folder -> entry of an earlier page; empty if its form is another."""
    try:
        match = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
        data = json.loads(match[1]) if match else {}
        if data.get("form") != FORM:
            return {}
        return {entry["folder"]: entry for entry in data["entries"] if "folder" in entry}
    except UNREADABLE:
        return {}
