"""`heterosis show` and `compare`: one candidate in detail, and two side by side."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.leaderboard.compare import shared_items
from heterosis.search.storage.journal import StudyError

from ..conftest import refused
from ..studies import fingerprinted, make_study, scores_of, searched


def test_a_candidate_in_detail(heterosis, study):
    board = read_leaderboard(study)
    code, out, err = heterosis("show", study, "--items", 1)
    assert (code, err) == (0, "")
    recipe = board.winner.candidate.recipe
    assert f"{recipe.coefficients['layers.0.attn'].weights[0]:.3f}" in out
    parent = next(r for r in board.rows if r.candidate.name == board.best_parent)
    store = ItemStore(study / "items")
    ours, theirs = (store.read(r.candidate.number, CONFIRM) for r in (board.winner, parent))
    won = int(np.sum(ours.value > theirs.value))
    lost = int(np.sum(ours.value < theirs.value))
    assert f"confirm items won: {won}, lost: {lost}, tied: {ours.n - won - lost}" in out
    assert out.count("--- won: ") == min(won, 1)
    assert f"{board.winner.to_parent.value:+.4f}" in out


def test_by_number_by_name_and_against_another(heterosis, study):
    _, by_number, _ = heterosis("show", study, 1, "--items", 0)
    _, by_name, _ = heterosis("show", study, "parent:python", "--items", 0)
    assert by_number == by_name
    code, out, _ = heterosis("show", study, 1, "--against", 0, "--items", 0)
    assert code == 0
    assert "parent:python minus base" in out


def test_two_are_compared(heterosis, study):
    code, out, _ = heterosis("compare", study, "parent:python", "parent:java", "--items", 2)
    assert code == 0
    assert "+1.000 (" in out  # one has weight 1 where the other has 0
    assert "confirm items won: " in out
    _, same, _ = heterosis("compare", study, 1, 1)
    assert "won: 0, lost: 0" in same


@pytest.mark.parametrize("words", [("show", "99"), ("compare", "0", "nobody")])
def test_unknown_trials_are_refused(heterosis, study, words):
    command, *trials = words
    message = refused(heterosis(command, study, *trials))
    assert f"there is no trial `{trials[-1]}`; give a number from 0 to" in message


def test_two_of_two_studies_are_compared(heterosis, study, tmp_path):
    other = shutil.copytree(study, tmp_path / "other")
    one = heterosis("compare", study, "winner", "parent:java", "--items", 1)
    code, out, err = heterosis("compare", f"{study}:winner", f"{other}:parent:java", "--items", 1)
    assert (code, err) == (0, "")
    assert "other: parent:java, on the same" in out
    counts = [line for line in one[1].splitlines() if " items won: " in line]
    assert counts
    assert counts[0] in out
    _, winners, _ = heterosis("compare", study, other)
    assert "won: 0, lost: 0" in winners


def test_studies_scored_differently_are_refused_with_the_reason(heterosis, tmp_path):
    ours = fingerprinted(tmp_path / "ours", searched(0.8))
    changed = fingerprinted(tmp_path / "changed", searched(0.8), dtype="bfloat16")
    message = refused(heterosis("compare", ours, changed))
    assert "two candidates cannot be compared: they differ in dtype (float32 and bf" in message


def test_studies_of_an_earlier_version_are_not_compared(heterosis, tmp_path):
    for name in "ab":
        make_study(tmp_path / name, searched(0.8))
    message = refused(heterosis("compare", tmp_path / "a", tmp_path / "b"))
    assert "scored by an earlier version without fingerprints, so it cannot be compared" in message
    assert heterosis("compare", tmp_path / "a", 4, 3, "--items", 0)[0] == 0


def test_other_objectives_are_compared_task_by_task(heterosis, tmp_path):
    ours = fingerprinted(tmp_path / "ours", searched(0.8))
    other = fingerprinted(tmp_path / "other", searched(0.7), rule="min")
    code, out, _ = heterosis("compare", ours, other, "--items", 0)
    assert code == 0
    assert "objectives differ (mean of skill_a, skill_b and minimum of skill_a, skill_b)" in out
    assert out.count("+0.1000") == 2  # a line per task, none for an objective


@pytest.mark.parametrize("words", [("137",), ("nowhere:3",), ("made:",)])
def test_what_is_neither_a_study_nor_a_trial_of_one(heterosis, study, words):
    message = refused(heterosis("compare", study, *words))
    assert f"`{words[0]}` is neither a study's folder nor STUDY:TRIAL; give `compare" in message


def test_other_tasks_and_other_items_are_refused():
    ours = scores_of(0.5)
    fewer = ours.subset(np.arange(10, ours.n))
    with pytest.raises(StudyError, match="the same items, got 800 and 790 of which 790 are the"):
        shared_items(ours, fewer, all_items=True)
    assert shared_items(ours, fewer, all_items=False)[0].n == 790
    with pytest.raises(StudyError, match=r"the same tasks, got skill_a, skill_b and skill_a, x;"):
        shared_items(ours, replace(ours, tasks=("skill_a", "x")), all_items=True)
