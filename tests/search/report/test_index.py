"""The list of studies: when the end of a search redraws it, and what it leaves alone."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.report import index
from heterosis.search.report.index import INDEX, refresh_index
from heterosis.search.storage.journal import Journal

from ..conftest import refused
from ..studies import BASELINES, make_study

ROWS = [*BASELINES, ("c4", "candidate", 0.9, 0.8)]


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder with two studies and nothing else."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("one", "two"):
        make_study(folder / name, ROWS)
        (folder / name / "report.html").write_text("")
    return folder


def kept(results, name="one"):
    return refresh_index(read_leaderboard(results / name))


def test_it_is_drawn_where_studies_lie_side_by_side(results):
    assert kept(results) == results / INDEX
    text = (results / INDEX).read_text()
    assert text.count('<a href="') == 2
    assert '<a href="two/report.html">made</a>' in text


def test_studies_that_have_not_changed_are_not_read_again(results, monkeypatch):
    kept(results)
    first = (results / INDEX).read_text()
    monkeypatch.setattr(index, "read_leaderboard", None)
    kept(results)
    assert (results / INDEX).read_text().count("c4 beats every") == first.count("c4 beats every")
    (results / "two/report.html").unlink()
    kept(results)
    assert '<a href="two/report.html">' not in (results / INDEX).read_text()


def test_changed_studies_are_read_and_damaged_ones_are_listed(results):
    kept(results)
    (results / "two/study.journal").write_text("no journal\nnor this\n")
    assert kept(results) == results / INDEX
    text = (results / INDEX).read_text()
    assert "cannot be read" in text
    assert "the journal is damaged" in text


def test_a_page_of_another_form_is_drawn_anew(results, monkeypatch):
    monkeypatch.setattr(index, "FORM", 0)
    kept(results)
    monkeypatch.undo()
    assert index._entries(results / INDEX) == {}
    kept(results)
    assert set(index._entries(results / INDEX)) == {"one", "two"}


def test_folders_that_hold_other_things_get_no_page_unless_they_have_one(results, heterosis):
    (results / "holiday.jpg").write_text("")
    assert kept(results) is None
    assert not (results / INDEX).exists()
    assert heterosis("report", results)[0] == 0
    assert kept(results) == results / INDEX


def test_one_study_alone_gets_no_list(tmp_path):
    make_study(tmp_path / "one", ROWS)
    assert kept(tmp_path) is None


def test_a_study_inside_a_study_gets_no_list(results):
    make_study(results, ROWS)
    assert kept(results) is None


def test_other_peoples_pages_are_left_alone(results, heterosis):
    (results / INDEX).write_text("<title>My holidays</title>")
    assert kept(results) is None
    told = refused(heterosis("report", results))
    assert "was not written by heterosis and is not overwritten; choose another file" in told
    assert (results / INDEX).read_text() == "<title>My holidays</title>"


def test_a_folder_that_cannot_be_written_to_is_no_error(results, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert kept(results) is None


def test_a_full_disk_leaves_the_page_as_it_was(results, monkeypatch):
    kept(results)
    before = (results / INDEX).read_bytes()
    monkeypatch.setattr(Path, "replace", _full)
    with pytest.raises(OSError, match="no space"):
        kept(results)
    assert (results / INDEX).read_bytes() == before
    assert not list(results.glob(".*.tmp"))


def test_a_search_that_can_draw_no_page_says_so_and_ends_well(results, monkeypatch):
    from heterosis.search import run

    told = []
    journal = Journal(results / "one")
    board = read_leaderboard(results / "one", journal)
    for name in ("write_report", "refresh_index"):
        monkeypatch.setattr(run, name, _full)
    note: Any = SimpleNamespace(note=told.append)
    assert not run._write_pages(board, journal, note)
    assert told == [
        f"the page was not drawn (no space); heterosis report {results / 'one'} draws it",
        f"the list of studies was not drawn (no space); heterosis report {results} draws it",
    ]


def _full(*_):
    raise OSError("no space")
