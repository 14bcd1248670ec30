"""Ranks, corrected p-values and verdicts, on item scores made for the purpose."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from heterosis.evals.scores.audit import Audit
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import GUARD
from heterosis.search.evaluate.objective import Objective
from heterosis.search.leaderboard import views
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.leaderboard.formats import csv_text
from heterosis.search.leaderboard.ranking import Comparisons, holm
from heterosis.search.leaderboard.sentences import verdict_sentence
from heterosis.search.storage.journal import JOURNAL, Journal, StudyError
from rich.console import Console

from ..studies import BASELINES, N, make_study, scores_of

OBJECTIVE = Objective("mean", {"skill_a": 1.0, "skill_b": 1.0}, {"skill_a": 1, "skill_b": 1})


def by_name(board):
    return {row.candidate.name: row for row in board.rows}


def test_rows_are_ranked_by_confirm_then_search_and_failures_come_last(tmp_path):
    board = make_study(
        tmp_path,
        [
            *BASELINES,
            ("c4", "candidate", 0.9, 0.75),
            ("c5", "candidate", 0.85, 0.8),
            ("c6", "candidate", 0.99, None),
            ("c7", "candidate", None, None),
        ],
    )
    names = [row.candidate.name for row in board.rows]
    assert names == ["c5", "c4", "uniform", "parent:a", "parent:b", "base", "c6", "c7"]
    assert [row.place for row in board.rows] == [1, 2, 3, 4, 5, 6, 7, None]
    assert [row.rank for row in board.rows] == [1, 2, 3, 4, 5, 6, None, None]
    assert board.winner.candidate.name == "c5"
    assert board.best_parent == "parent:a"
    assert by_name(board)["c6"].verdict == "unconfirmed"
    assert by_name(board)["c7"].verdict == "failed"


@pytest.mark.parametrize(
    ("confirm", "verdict"), [(0.8, "better"), (0.705, "tie"), (0.7, "tie"), (0.5, "worse")]
)
def test_verdicts_come_from_the_confirm_items(tmp_path, confirm, verdict):
    board = make_study(tmp_path, [*BASELINES, ("c", "candidate", 0.99, confirm)])
    assert by_name(board)["c"].verdict == verdict


def test_differences_are_paired_and_refer_to_best_parent_and_uniform(tmp_path):
    rows = by_name(make_study(tmp_path, [*BASELINES, ("c", "candidate", 0.8, 0.8)]))
    assert rows["c"].to_parent.value == pytest.approx(0.2)
    assert rows["c"].to_uniform.value == pytest.approx(0.1)
    assert rows["parent:a"].to_parent is None
    assert rows["uniform"].to_uniform is None
    assert rows["uniform"].to_parent.value == pytest.approx(0.1)
    assert rows["c"].to_uniform.p < 1e-10


def test_the_p_value_of_a_finalist_is_corrected_for_their_number(tmp_path):
    one = make_study(tmp_path / "1", [*BASELINES, ("c4", "candidate", 0.8, 0.71)])
    many = make_study(
        tmp_path / "2",
        [*BASELINES, *((f"c{i}", "candidate", 0.8, 0.71) for i in range(4, 8))],
    )
    p = by_name(one)["c4"].to_uniform.p
    assert by_name(many)["c4"].to_uniform.p == pytest.approx(min(4 * p, 1))


def noisy(rng, right):
    """Independent 0/1 scores of two tasks: two models differ by chance, in both directions."""
    values = (rng.random(2 * N) < right).astype(float)
    return replace(scores_of(0.5), value=values)


def compared(values, baselines=()):
    """Comparisons of models that are right so often, by number."""
    rng = np.random.default_rng(5)
    confirmed = {number: noisy(rng, right) for number, right in enumerate(values)}
    found = Comparisons.of(confirmed, baselines, OBJECTIVE)
    order = sorted(confirmed, key=lambda number: -found.scores[number].value)
    return confirmed, found, order


def test_no_two_rows_of_equal_rank_differ_significantly():
    confirmed, found, order = compared([0.9, 0.9, 0.9, 0.8, 0.8, 0.5, 0.5], baselines=(5, 6))
    ranks = found.ranks(order)
    assert ranks == {0: 1, 1: 1, 2: 1, 3: 4, 4: 4, 5: 6, 6: 6}
    for a in ranks:
        for b in ranks:
            if a != b and ranks[a] == ranks[b]:
                assert (a, b) not in found.worse
    # By hand: 5 candidates make 10 pairs, so p of any two that differ significantly is below 0.005.
    p = OBJECTIVE.difference(confirmed[3], confirmed[0]).p
    assert (3, 0) in found.worse
    assert p < 0.005


def test_insignificance_is_not_transitive_and_a_rank_begins_where_any_above_is_better():
    ranks = Comparisons({}, {}, frozenset({(2, 0), (4, 3)})).ranks([0, 1, 2, 3, 4])
    assert ranks == {0: 1, 1: 1, 2: 3, 3: 3, 4: 5}
    middle = Comparisons({}, {}, frozenset({(2, 1)})).ranks([0, 1, 2])
    assert middle == {0: 1, 1: 1, 2: 3}  # worse than the second, if not shown against the first
    assert Comparisons({}, {}, frozenset()).ranks([]) == {}


def test_a_rank_is_corrected_for_the_pairs_that_were_looked_at():
    two = [0.9, 0.875]
    confirmed, few, order = compared(two)
    assert few.ranks(order) == {0: 1, 1: 2}
    assert 0.05 / 45 < OBJECTIVE.difference(confirmed[1], confirmed[0]).p < 0.05
    _, many, _ = compared([*two, *[0.88] * 8])
    assert (1, 0) not in many.worse


def test_no_rank_contradicts_a_verdict(tmp_path):
    rows = [*BASELINES, ("c4", "candidate", 0.9, 0.72), ("c5", "candidate", 0.8, 0.715)]
    board = make_study(tmp_path, rows)
    found = by_name(board)
    assert found["c4"].verdict == "better"
    assert found["c4"].rank < found["uniform"].rank
    worse = make_study(tmp_path / "w", [*BASELINES, ("c4", "candidate", 0.9, 0.68)])
    assert by_name(worse)["c4"].verdict == "worse"
    assert by_name(worse)["c4"].rank > by_name(worse)["uniform"].rank


def test_what_is_not_confirmed_has_a_place_and_no_rank(tmp_path):
    rows = [(name, kind, search, None) for name, kind, search, _ in BASELINES]
    board = make_study(tmp_path, [*rows, ("c4", "candidate", 0.9, None)])
    assert [row.rank for row in board.rows] == [None] * 5
    assert [row.place for row in board.rows] == [1, 2, 3, 4, 5]
    assert board.winner.candidate.name == "c4"
    text = drawn(board, 250)
    assert "equal rank" not in text
    assert "Δ" not in text
    assert "a (search)" in text


def test_guard_differences_are_paired_to_the_base_and_the_best_parent(tmp_path):
    make_study(tmp_path, [*BASELINES, ("c4", "candidate", 0.9, 0.8)])
    store = ItemStore(tmp_path / "items")
    for number, right in enumerate((0.7, 0.5, 0.4, 0.3, 0.6)):
        scores = replace(
            scores_of(right, seed=2),
            tasks=("kind", "spelling"),
            higher_is_better=(True, False),
        )
        store.append(number, GUARD, scores)
    board = read_leaderboard(tmp_path)
    row = by_name(board)["c4"]
    assert row.guard_to_base["kind"].value == pytest.approx(-0.1)
    assert row.guard_to_base["spelling"].value == pytest.approx(0.1)  # lower is better
    assert row.guard_to_parent["kind"].value == pytest.approx(0.1)
    assert row.guard_to_base["kind"].p < 1e-10
    base = by_name(board)["base"]
    assert base.guard_to_base == {}
    assert set(base.guard_to_parent) == {"kind", "spelling"}
    (line,) = [r for r in csv.DictReader(io.StringIO(csv_text(board))) if r["name"] == "c4"]
    assert float(line["guard:kind:vs_base"]) == row.guard_to_base["kind"].value
    assert float(line["guard:kind:vs_parent_p"]) == row.guard_to_parent["kind"].p
    text = drawn(board, 250)
    assert "guard Δ kind" in text
    assert "guard Δ: the same on guard tasks, to the base" in text
    page = views.markdown(board)
    assert "| kind Δ base | p |" in page
    assert "its p is not corrected, so that a loss shows" in page


def drawn(board, width=150, rows=None):
    out = io.StringIO()
    Console(file=out, width=width).print(views.table(board, rows, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 150, 250])
def test_columns_are_left_out_in_the_order_that_is_stated(tmp_path, width):
    board = make_study(tmp_path, [*BASELINES, ("candidate 4", "candidate", 0.8, 0.8)])
    lines = drawn(board, width).splitlines()
    head = next(line for line in lines if "name" in line)
    assert max(map(len, lines)) <= width
    order = ["recipe", "seconds", "items", "a (confirm)", "Δ uniform", "Δ parent", "search"]
    shown = [title in head for title in [*order, "verdict", "confirm"]]
    assert shown == sorted(shown)
    assert shown[-1]
    assert all(shown) == (width == 250)
    assert ("Left out" in drawn(board, width)) != all(shown)


def test_a_table_says_how_many_rows_it_leaves_out(tmp_path):
    many = [(f"c{n}", "candidate", 0.9 - n / 100, None) for n in range(4, 20)]
    board = make_study(tmp_path, [*BASELINES, *many])
    assert "10 of 20 rows; `--all` shows all" in drawn(board)
    assert "`--all`" not in drawn(board, rows=board.rows)


def test_holm_against_a_worked_example():
    # Holm (1979) by hand: sorted .005, .01, .03, .04 times 4, 3, 2, 1, then made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("confirm", "sentence"),
    [
        (0.8, r"^c beats every baseline: 0.8000 against 0.7000 for the best baseline \(uniform\)"),
        (0.7, r"^c is not shown to beat every baseline \(not uniform\): 0.7000 against 0.7000"),
        (0.4, r"^c is worse than the best baseline: 0.4000 against 0.7000"),
        (None, r"^c leads on the search items; nothing is confirmed yet"),
    ],
)
def test_the_verdict_sentence(tmp_path, confirm, sentence):
    board = make_study(tmp_path, [*BASELINES, ("c", "candidate", 0.8, confirm)])
    text = verdict_sentence(board)
    assert re.search(sentence, text), text


def test_markdown_has_one_cell_per_column_and_marks_baselines(tmp_path):
    rows = [*BASELINES, ("c", "candidate", 0.8, 0.8), ("f", "candidate", None, None)]
    page = views.markdown(make_study(tmp_path, rows))
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1
    assert "| uniform * |" in page
    assert "NaN in x, by · design" in page


def test_csv_holds_the_numbers_in_full(tmp_path):
    rows = [*BASELINES, ("c", "candidate", 0.8, 0.8), ("f", "candidate", None, None)]
    board = make_study(tmp_path, rows)
    lines = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert len(lines) == len(rows)
    first = lines[0]
    assert (first["name"], first["baseline"], first["verdict"]) == ("c", "False", "better")
    assert float(first["confirm"]) == board.rows[0].confirm.value
    assert float(first["vs_uniform_p"]) == board.rows[0].to_uniform.p
    assert float(first["confirm:skill_b"]) == pytest.approx(0.8)
    assert lines[-1]["failure"] == "NaN in x, by | design"


def test_views_show_how_generated_answers_came_about(tmp_path):
    audit = {"skill_b": Audit(truncated=0.25, no_answer=0.5, length=31.4, repetition=0.1)}
    rows = [*BASELINES, ("c", "candidate", 0.8, 0.8), ("f", "candidate", None, None)]
    board = make_study(tmp_path, rows, audit=audit.items())
    page = views.markdown(board)
    assert "skill_b answers" in page
    assert "25% cut short, 50% without an answer, 31 tokens, 10% repeated" in page
    assert "share cut short at the token limit" in page
    lines = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert (lines[0]["search:skill_b:length"], lines[-1]["search:skill_b:length"]) == ("31.4", "")
    assert "skill_b cut" in drawn(board, 250)


def test_the_terminal_table_fits_and_shows_recipes(tmp_path):
    board = make_study(tmp_path, [*BASELINES, ("c", "candidate", 0.8, 0.8)])
    text = drawn(board)
    assert "uniform *" in text
    assert "…" not in text
    assert "c: linear | a 0.40 | b 0.40" in text


def test_views_are_written_atomically(tmp_path):
    board = make_study(tmp_path, [*BASELINES, ("c", "candidate", 0.8, 0.8)])
    page, sheet = views.write_views(board)
    assert page.read_text() == views.markdown(board)
    assert sheet.read_text() == csv_text(board)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 150, 200])
def test_columns_that_do_not_fit_are_left_out_entirely(tmp_path, width):
    board = make_study(tmp_path, [*BASELINES, ("candidate 4", "candidate", 0.8, 0.8)])
    text = drawn(board, width)
    assert "…" not in text
    assert "candidate 4" in text
    assert "0.800 ±" in text


def test_only_todays_finalists_are_confirmed_whoever_else_was_scored(tmp_path):
    rows = [*BASELINES, ("c4", "candidate", 0.7, 0.9), ("c5", "candidate", 0.8, 0.8)]
    few, many = (make_study(tmp_path / str(n), rows, finalists=n) for n in (1, 2))
    assert by_name(few)["c4"].verdict == "unconfirmed"
    assert by_name(few)["c4"].confirm is None
    assert by_name(few)["c5"].rank == 1
    assert by_name(many)["c4"].rank == 1


def test_a_study_that_has_not_begun_is_refused(tmp_path):
    Journal(tmp_path, write=True)
    with pytest.raises(StudyError, match="has not begun yet; run its search again"):
        read_leaderboard(tmp_path)


def test_a_journal_that_lost_a_record_is_refused(tmp_path):
    make_study(tmp_path, BASELINES)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(StudyError, match="must be complete and in order, got number 2 in place"):
        read_leaderboard(tmp_path)


def test_items_that_were_scored_otherwise_are_refused(tmp_path):
    make_study(tmp_path, [("base", "base", 0.3, 0.3), ("candidate 1", "candidate", 0.6, 0.6)])
    scores = replace(scores_of(0.6), fingerprint="dtype=bfloat16")
    ItemStore(tmp_path / "items").append(1, "confirm", scores)
    with pytest.raises(StudyError, match=r"items of trial 1 are not of this study.*earlier"):
        read_leaderboard(tmp_path)
    journal = Journal(tmp_path, write=True)
    journal.write_manifest(
        journal.begun | {"identity": journal.begun["identity"] | {"requests": {"dtype": "float32"}}}
    )
    for trial, split in sorted(ItemStore(tmp_path / "items").fingerprints()):
        kept = ItemStore(tmp_path / "items").read(trial, split)
        dtype = "float32" if trial == 0 else "bfloat16"
        again = replace(kept, fingerprint=f"dtype={dtype}")
        ItemStore(tmp_path / "items").append(trial, split, again)
    with pytest.raises(StudyError, match=r"dtype \(float32 and bfloat16\).*or remove them from"):
        read_leaderboard(tmp_path)
