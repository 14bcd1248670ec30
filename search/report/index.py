"""The page that lists the studies of a folder, and how it is kept true when a search ends.

Knows folders, leaderboards and what the page said before: a study is read again only if its files
have changed since. Draws no study's own page.
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
"""In the head of every page that is drawn here."""
HEAD = 2000
"""Bytes of a file that are looked at for that sign."""
FORM = 1
"""Of the entries that a page keeps; others are read anew."""
Entry = dict[str, Any]


def index_page(entries: Sequence[Mapping[str, Any]], drawn: str | None = None) -> str:
    """The page that lists studies.

    Args:
        entries: Of each study, from `index_entry`, or ``{"name", "error"}``.
        drawn: When; default: now.
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
    """One line of the page that lists studies; plain JSON values."""
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
    """Draw every study's page, then the page that lists them.

    Args:
        results: The folder that holds the studies.
        folders: Theirs.
        draw: Draws a study's page.
        on_error: Told of each that cannot be read.
        out: The file; default: ``index.html`` in `results`.

    Raises:
        StudyError: If the file that would be written is somebody else's page.
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
    """Keep the list of studies true that lies beside a study's folder, when its search has ended.

    It is drawn where it has been drawn before, or where a folder holds two studies and nothing
    else; other pages, and folders that cannot be written to, are left alone.

    Returns:
        The page; None where there is none to keep.

    Raises:
        OSError: If it cannot be written; it is then as it was.
    """
    results = board.folder.absolute().parent
    goal = results / INDEX
    if (results / JOURNAL).is_file() or not os.access(results, os.W_OK):
        return None
    if not is_ours(goal) and not _holds_studies_alone(results):
        return None
    before = _entries(goal)
    entries = [_kept(f, before, board) for f in find_studies(results)]
    write_atomically(goal, index_page(entries))
    return goal


def _holds_studies_alone(results: Path) -> bool:
    """Whether a folder holds two studies or more, and nothing else that can be seen."""
    seen = [path for path in results.iterdir() if not path.name.startswith(".")]
    return len(seen) > 1 and all((path / JOURNAL).is_file() for path in seen)


def _kept(folder: Path, before: Mapping[str, Entry], board: Leaderboard) -> Entry:
    """A study's line: of the search that has ended, or as it was, or read anew."""
    at, known = file_stamp(folder), before.get(folder.name, {})
    link = f"{quote(folder.name)}/{REPORT}" if (folder / REPORT).is_file() else None
    if folder == board.folder.absolute():
        found = index_entry(board, link)
    elif known.get("at") == at:
        found = {**known, "link": link}
    else:
        try:
            found = index_entry(read_leaderboard(folder), link)
        except UNREADABLE as error:
            return {"name": folder.name, "error": str(error)}
    return found | {"folder": folder.name, "at": at}


def is_ours(page: Path) -> bool:
    """Whether a file is there, and was drawn here."""
    try:
        with page.open("rb") as file:
            return SIGN.encode() in file.read(HEAD)
    except OSError:
        return False


def _refuse_foreign(goal: Path) -> None:
    if goal.exists() and not is_ours(goal):
        raise StudyError(
            f"{goal}: is not a page that heterosis has drawn, and is not overwritten; give another "
            "file by --out"
        )


def _entries(page: Path) -> dict[str, Entry]:
    """Folder -> what a page said of its study; nothing where the page is of another form."""
    try:
        found = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
        data = json.loads(found[1]) if found else {}
        if data.get("form") != FORM:
            return {}
        return {entry["folder"]: entry for entry in data["entries"] if "folder" in entry}
    except UNREADABLE:
        return {}
