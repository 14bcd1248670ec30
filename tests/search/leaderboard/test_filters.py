"""Leaderboards sorted, filtered and as JSON: options and their errors."""

import json

import pytest
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.leaderboard.filters import select
from heterosis.search.leaderboard.formats import records

from ..conftest import refused


@pytest.fixture(scope="module")
def board(study):
    return read_leaderboard(study)


def test_json_holds_every_row_in_full(heterosis, study, board):
    code, out, _ = heterosis("leaderboard", study, "--format", "json")
    (told,) = json.loads(out)
    assert code == 0
    assert told["winner"] == board.winner.candidate.number
    assert [row["trial"] for row in told["rows"]] == [r.candidate.number for r in board.rows]
    first = told["rows"][0]
    assert first["confirm"] == board.rows[0].confirm.value
    assert first["items"] == board.rows[0].candidate.items


def test_highest_first_and_words_by_the_alphabet(board):
    searched = [row["search"] for row in records(board, select(board, (), "search"))]
    assert searched == sorted(searched, reverse=True)
    names = [row["name"] for row in records(board, select(board, (), "name"))]
    assert names == sorted(names)
    assert [row["name"] for row in records(board, select(board, (), "-name"))] == names[::-1]
    last = records(board, select(board, (), "confirm"))[-1]
    assert last["confirm"] is None


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("name = parent:*", lambda row: row["name"].startswith("parent:")),
        ("verdict!=baseline", lambda row: row["verdict"] != "baseline"),
        ("baseline=true", lambda row: row["baseline"]),
        ("search>=0.5", lambda row: row["search"] is not None and row["search"] >= 0.5),
        ("confirm<0.5", lambda row: row["confirm"] is not None and row["confirm"] < 0.5),
        ("confirm=", lambda row: row["confirm"] is None),
        ("trial=1", lambda row: row["trial"] == 1),
    ],
)
def test_filters(board, text, holds):
    expected = [row["trial"] for row in records(board) if holds(row)]
    assert 0 < len(expected) < len(board.rows)
    assert [row["trial"] for row in records(board, select(board, [text], None))] == expected


def test_notes_below_a_filtered_table_describe_the_complete_study(heterosis, study):
    _, whole, _ = heterosis("leaderboard", study)
    code, some, _ = heterosis("leaderboard", study, "--filter", "baseline=false", "--sort", "trial")
    assert code == 0
    assert "parent:python *" not in some
    assert whole.splitlines()[-1] == some.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sort", "serch"), "no column `serch`; did you mean `search`?"),
        (("--filter", "confrim>1"), "no column `confrim`; did you mean `confirm`?"),
        (("--filter", "confirm"), "a filter must be COLUMN OP VALUE"),
        (("--filter", "confirm>high"), "`>` needs a number, got 'high'"),
    ],
)
def test_invalid_filters_and_sorts_are_refused(heterosis, study, words, message):
    assert message in refused(heterosis("leaderboard", study, *words))
