"""`heterosis show` and `compare`: what a person reads of one candidate, or of two."""

import numpy as np
import pytest
from heterosis.evals.splits import CONFIRM
from heterosis.evals.store import ItemStore
from heterosis.search.leaderboard import read_leaderboard

from .conftest import SmallSearch, refused
from .test_search import run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    small = SmallSearch(tmp_path_factory.mktemp("study"))
    run(small.write(search={"trials": 6, "finalists": 2}))
    return small.results


def test_a_candidate_is_laid_open(heterosis, study):
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
    assert f"confirm items won: {won}, lost: {lost}, alike: {ours.n - won - lost}" in out
    assert out.count("--- won: ") == min(won, 1)
    assert f"{board.winner.to_parent.value:+.4f}" in out


def test_by_number_by_name_and_against_another(heterosis, study):
    _, by_number, _ = heterosis("show", study, 1, "--items", 0)
    _, by_name, _ = heterosis("show", study, "parent:python", "--items", 0)
    assert by_number == by_name
    code, out, _ = heterosis("show", study, 1, "--against", 0, "--items", 0)
    assert code == 0
    assert "parent:python less base" in out


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
