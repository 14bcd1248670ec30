"""The table of columns: each is in every format that it declares, filtered and sorted by."""

import csv
import io
import json
from dataclasses import replace

import pytest
from heterosis.evals.scores.audit import Audit
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import GUARD
from heterosis.search.evaluate.objective import Objective
from heterosis.search.leaderboard import columns, studies_table, views
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.leaderboard.columns import Column, at, board_columns, fields
from heterosis.search.leaderboard.filters import filtered, select
from heterosis.search.leaderboard.formats import csv_text, json_text
from heterosis.search.leaderboard.kinds import COUNT
from heterosis.search.leaderboard.studies import read_line
from heterosis.search.leaderboard.studies_table import study_columns
from heterosis.search.report.page import page
from rich.console import Console

from ..studies import BASELINES, make_study, scores_of

ROWS = [
    *BASELINES,
    ("c4", "candidate", 0.9, 0.8),
    ("c5", "candidate", 0.85, None),
    ("c6", "candidate", None, None),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A study with every column: guards, generated answers, a term of them, a front, stages."""
    folder = tmp_path_factory.mktemp("study")
    audit = {"skill_b": Audit(truncated=0.25, no_answer=0.5, length=31.4, repetition=0.1)}
    make_study(folder, ROWS, rule="pareto", audit=audit.items())
    store = ItemStore(folder / "items")
    for number, right in enumerate((0.7, 0.5, 0.4, 0.3, 0.6)):
        store.append(
            number, GUARD, replace(scores_of(right, seed=2), tasks=("g_kind", "g_spelling"))
        )
    terms = {"skill_a": 1, "skill_b": 1, "short": -1}
    weights = dict.fromkeys(terms, 1.0)
    objective = Objective("pareto", weights, terms, {"short": ("skill_b", "length")})
    return replace(read_leaderboard(folder), objective=objective, stages=("global", "fine"))


def heads(board):
    """Titles in each view, as a reader has them."""
    out = io.StringIO()
    Console(file=out, width=1000).print(views.table(board, width=1000))
    lines = views.markdown(board).splitlines()
    head = page(board, {}, drawn="now").partition("<thead>")[2].partition("</thead>")[0]
    return {
        "terminal": out.getvalue(),
        "markdown": next(line for line in lines if line.startswith("|")),
        "page": head,
    }


def drawn(lines):
    out = io.StringIO()
    Console(file=out, width=1000).print(studies_table.studies_table(lines, 1000))
    return out.getvalue()


def test_a_board_has_each_column_in_every_format_that_it_declares(board):
    shown = heads(board)
    own = board_columns(board)
    keys = [*fields(own)]
    assert len(set(keys)) == len(keys)
    assert list(csv.DictReader(io.StringIO(csv_text(board))).fieldnames or ()) == keys
    assert [list(row) for row in json.loads(json_text(board))[0]["rows"]] == [keys] * len(ROWS)
    for column in own:
        for view, text in shown.items():
            title = getattr(column, view)
            assert title is None or title in text, (column.key, view)
    # Every kind of column is there.
    for key in (
        "stage",
        "search:skill_b length",
        "guard:g_kind:vs_base_p",
        "search:skill_b:truncated",
        "front",
    ):
        assert key in keys


def test_a_board_is_filtered_and_sorted_by_each_column(board):
    for key, value in fields(board_columns(board)).items():
        values = [value(row) for row in board.rows]
        present = [v for v in values if v is not None and v == v]
        ordered = [value(row) for row in select(board, (), f"-{key}")][: len(present)]
        is_word = any(isinstance(v, str) for v in present)
        assert ordered == sorted(present, reverse=is_word), key
        assert select(board, (f"{key}=*", f"{key}!=*"), None) == []
        empty = select(board, (f"{key}=",), None)
        assert len(empty) == sum(v is None or v == "" for v in values), key


def test_a_new_column_is_one_row_of_the_table(board, monkeypatch):
    new = Column("tries", COUNT, at("candidate.number"), "tries!", 0, "Tries", "tries made")
    monkeypatch.setattr(columns, "board_columns", lambda board: [*board_columns(board), new])
    shown = heads(board)
    assert "tries!" in shown["terminal"]
    assert "| Tries |" in shown["markdown"]
    assert "tries made" in shown["page"]
    lines = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert [line["tries"] for line in lines] == [line["trial"] for line in lines]
    assert all(row["tries"] == row["trial"] for row in json.loads(json_text(board))[0]["rows"])
    assert [row.candidate.name for row in select(board, ("tries=4",), None)] == ["c4"]
    first, *_ = select(board, (), "tries")
    assert first.candidate.name == "c6"


def test_studies_have_each_column_in_every_format_and_a_new_one_too(tmp_path, monkeypatch):
    for name, confirm in (("one", 0.8), ("two", 0.75)):
        make_study(tmp_path / name, [*BASELINES, ("c4", "candidate", 0.9, confirm)])
    (tmp_path / "three").mkdir()
    (tmp_path / "three/study.journal").write_text("no journal\nnor this\n")
    lines = [read_line(tmp_path / name) for name in ("one", "two", "three")]
    new = Column("rows", COUNT, at("board.finished"), "rows!")
    own = [*study_columns(), new]
    monkeypatch.setattr(studies_table, "study_columns", lambda: own)
    text, page = drawn(lines), studies_table.studies_markdown(lines)
    for column in own:
        if column.terminal is not None:
            assert column.terminal in text
            assert f"| {column.terminal} |" in page
    known = studies_table.study_fields()
    assert "rows" in known
    for key, value in known.items():
        found = filtered(lines, known, (), f"-{key}")
        assert {line.name for line in found} == {line.name for line in lines}
        empty = filtered(lines, known, (f"{key}=",), None)
        assert empty == [line for line in lines if value(line) is None], key
