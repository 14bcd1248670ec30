"""Studies side by side: which can be compared, what is damaged, and how a search is watched."""

import csv
import io
import json
import os
import shutil
import sys
import time

import pytest
from heterosis.search.leaderboard.studies import (
    FINISHED,
    RUNNING,
    UNFINISHED,
    read_line,
    side_by_side,
)
from heterosis.search.leaderboard.studies_table import studies_markdown
from heterosis.search.leaderboard.watch import Follower, is_over
from heterosis.search.storage.journal import JOURNAL, Journal, StudyError, is_locked, lock_folder

from ..conftest import refused
from ..studies import fingerprinted, make_study, searched


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three studies that can be compared, two that cannot, one damaged, one not begun."""
    results = tmp_path_factory.mktemp("results")
    fingerprinted(results / "good", searched(0.8))
    fingerprinted(results / "tied", searched(0.7))
    fingerprinted(results / "bad", searched(0.5, count=1))
    fingerprinted(results / "other", searched(0.9), tokens="b" * 32, dtype="bfloat16")
    fingerprinted(results / "weakest", searched(0.9), rule="min")
    fingerprinted(results / "torn", searched(0.9))
    lines = (results / "torn" / JOURNAL).read_bytes().splitlines(keepends=True)
    (results / "torn" / JOURNAL).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    (results / "young").mkdir()
    Journal(results / "young", write=True)
    return results


@pytest.fixture(scope="module")
def lines(results):
    return side_by_side([read_line(folder) for folder in sorted(results.iterdir())])


def test_comparable_studies_come_together_the_best_first(lines):
    names = [(line.folder.name, line.comparable) for line in lines]
    assert names[:3] == [("good", "a"), ("tied", "a"), ("bad", "a")]
    assert {line.folder.name: line.comparable for line in lines[3:]} == {
        "other": "b",
        "weakest": "c",
        "torn": None,
        "young": None,
    }


def test_what_each_has_found_in_a_few_words(lines):
    said = {line.folder.name: line.outcome for line in lines}
    assert said["good"] == "beats every baseline"
    assert said["tied"] == "not shown to beat uniform"
    assert said["bad"] == "worse than uniform"
    assert (said["torn"], said["young"]) == ("damaged", "not begun")
    assert {line.folder.name: line.state for line in lines}["good"] == FINISHED
    assert {line.folder.name: line.state for line in lines}["bad"] == UNFINISHED


def test_incomparable_and_unreadable_studies_are_listed_with_the_reason(lines):
    page = studies_markdown(lines)
    assert (
        "a and b cannot be compared: they differ in dtype (float32 and bfloat16), tokens." in page
    )
    assert (
        "a and c cannot be compared: they differ in objective "
        "(mean of skill_a, skill_b and minimum of skill_a, skill_b)." in page
    )
    assert "torn (damaged): the journal's records must be complete and in order" in page
    assert "young (not begun): " in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(lines)
    assert len({line.count("|") for line in table}) == 1


def test_studies_of_an_earlier_version_are_compared_with_none(tmp_path):
    for name in "ab":
        make_study(tmp_path / name, searched(0.8))
    letters = [
        line.comparable for line in side_by_side([read_line(tmp_path / name) for name in "ab"])
    ]
    assert letters == ["a", "b"]


def test_one_table_of_all_studies_on_the_screen_and_in_files(heterosis, results):
    code, out, err = heterosis("leaderboard", results)
    assert (code, err) == (0, "")
    assert out.count("confirm ± SE") == 1
    assert "heterosis compare A B" in " ".join(out.split())
    _, sheet, _ = heterosis("leaderboard", results, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(sheet)))
    assert len(rows) == 7
    first = rows[0]
    assert (first["study"], first["comparable"], first["verdict"]) == ("made", "a", "better")
    assert (first["candidates"], first["items"]) == ("3", "5600")
    assert "restore the journal" in next(r for r in rows if r["state"] == "damaged")["reason"]
    _, text, _ = heterosis("leaderboard", results, "--format", "json")
    told = json.loads(text)
    assert [row["folder"] for row in told] == [row["folder"] for row in rows]
    assert told[0]["confirm"] == float(first["confirm"])
    assert told[-1]["confirm"] is None


def test_studies_are_sorted_filtered_and_shown_with_more_candidates(heterosis, results):
    words = ("--format", "csv", "--filter", "comparable=a", "--sort", "-confirm")
    _, sheet, _ = heterosis("leaderboard", results, *words)
    confirm = [float(row["confirm"]) for row in csv.DictReader(io.StringIO(sheet))]
    assert confirm == sorted(confirm)
    assert len(confirm) == 3
    _, sheet, _ = heterosis("leaderboard", results, "--format", "csv", "--top", 2)
    names = [row["folder"] for row in csv.DictReader(io.StringIO(sheet))]
    assert names.count(str(results / "good")) == 2
    message = refused(heterosis("leaderboard", results, "--sort", "confrim"))
    assert "no column `confrim`; did you mean `confirm`?" in message


@pytest.mark.parametrize("width", [60, 80, 120, 250])
def test_the_table_of_studies_fits(heterosis, results, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = heterosis("leaderboard", results)
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    assert "good" in out


def test_the_lock_tells_whether_a_search_is_at_work(tmp_path):
    folder = fingerprinted(tmp_path / "study", searched(0.8))
    assert not is_locked(folder)
    with lock_folder(folder):
        assert is_locked(folder)
        assert read_line(folder).state == RUNNING
        held = pytest.raises(StudyError, match="another process is searching in this folder")
        with held, lock_folder(folder):
            pass
    assert not is_locked(folder)
    assert read_line(folder).state == FINISHED


def test_a_search_that_is_starting_gets_no_advice_to_run_again(tmp_path):
    Journal(tmp_path, write=True)
    with lock_folder(tmp_path):
        line = read_line(tmp_path)
        assert (line.state, line.reason) == (RUNNING, "its search is still starting")
    assert "run its search again" in read_line(tmp_path).reason


def test_a_study_is_read_again_only_when_it_has_changed(tmp_path):
    folder = fingerprinted(tmp_path / "study", searched(0.8))
    follower = Follower(lambda: [folder])
    (first,) = follower.look()
    assert follower.look()[0].board is first.board
    with lock_folder(folder):
        (held,) = follower.look()
        assert (held.state, held.board) == (RUNNING, first.board)
        assert not is_over([held])
    whole = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    (shorter,) = follower.look()
    assert len(shorter.board.rows) == len(first.board.rows) - 1
    assert not is_over([shorter])
    (folder / JOURNAL).write_bytes(whole)
    assert is_over(follower.look())


def test_watching_needs_a_terminal_and_a_table(heterosis, results):
    message = refused(heterosis("leaderboard", results, "--watch"))
    assert "`--watch` redraws in place and needs a terminal; leave it out to print" in message
    message = refused(heterosis("leaderboard", results, "--watch", "--format", "csv"))
    assert "`--watch` draws a table, got `--format csv`" in message


def spawned(*words):
    import pexpect

    code = "from heterosis.search.cli.main import main; main()"
    arguments = ["-c", code, "leaderboard", *map(str, words)]
    terminal = os.environ | {"TERM": "xterm-256color"}
    return pexpect.spawn(
        sys.executable, arguments, timeout=120, dimensions=(40, 120), encoding="utf8", env=terminal
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_a_search_is_watched_until_it_is_finished_and_lets_go(tmp_path):
    import pexpect

    folder = fingerprinted(tmp_path / "study", searched(0.8))
    whole = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    with lock_folder(folder):
        child = spawned(folder, "--watch", "--interval", "0.2")
        child.expect("made: running")
        child.expect(r"made \(unfinished\)")
        (folder / JOURNAL).write_bytes(whole)
        child.expect("made: mean of")
        time.sleep(0.5)
        assert child.isalive()  # finished, but the search is still at work
    child.expect("candidate 4 beats every baseline")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_ctrl_c_ends_the_watching(results, tmp_path):
    import pexpect

    again = shutil.copytree(results, tmp_path / "again")
    child = spawned(again, "--watch", "--interval", "0.2")
    child.expect("7 studies")
    child.expect("Ctrl-C stops watching")
    child.sendintr()
    child.expect(pexpect.EOF)
    said = str(child.before)
    assert "Traceback" not in said
    assert "beats every baseline" in said  # what was seen last stays on the screen
    child.close()
    assert child.exitstatus == 0
