"""Rungs of unfinished candidates are saved, and scored once."""

import pytest
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.storage import partial_scores
from heterosis.search.storage.files import Disk
from heterosis.search.storage.partial_scores import PartialScores

from ...evals.item_scores import scores
from ..shuffled import Shuffled, raced, run_shuffled
from ..studies import record

A, B = (Recipe.uniform("linear", ("a", "b"), ("layers.0.attn",), w) for w in (0.4, 0.5))
SOME = scores({"t": [1.0, 0.0, 1.0]})


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def at_once(monkeypatch):
    """Save the rungs of tiny models, too."""
    monkeypatch.setattr(partial_scores, "SECONDS", 0.0)


@pytest.fixture
def now():
    return [0.0]


def opened(folder, now) -> PartialScores:
    return PartialScores(folder, Disk(print, lambda: False), lambda: now[0])


def test_the_next_run_reads_saved_rungs(tmp_path, now):
    first = opened(tmp_path / "begun", now)
    assert first.begin(3, A, "requests") is None
    now[0] = partial_scores.SECONDS
    first.save(3, SOME)
    again = opened(tmp_path / "begun", now)
    scores = again.begin(3, A, SOME.fingerprint)
    assert scores is not None
    assert (scores.fingerprint, scores.value.tolist()) == (SOME.fingerprint, [1.0, 0.0, 1.0])
    assert again.begin(4, A, SOME.fingerprint) is None


def test_another_recipe_or_other_requests_start_over(tmp_path, now):
    first = opened(tmp_path / "begun", now)
    first.begin(3, A, "")
    now[0] = partial_scores.SECONDS
    first.save(3, SOME)
    again = opened(tmp_path / "begun", now)
    assert again.begin(3, B, SOME.fingerprint) is None
    assert again.begin(3, A, "other requests") is None
    assert again.begin(3, A, SOME.fingerprint) is not None


def test_rungs_of_a_second_are_not_saved(tmp_path, now):
    partial = opened(tmp_path / "begun", now)
    partial.begin(0, A, "")
    now[0] = 0.9 * partial_scores.SECONDS
    partial.save(0, SOME)
    assert not (tmp_path / "begun").exists()
    now[0] = partial_scores.SECONDS
    partial.save(0, SOME)
    assert ItemStore(tmp_path / "begun").has(0, SEARCH)


def test_finished_candidates_are_removed(tmp_path, now):
    partial = opened(tmp_path / "begun", now)
    for number in (0, 1):
        partial.begin(number, A, "")
        now[0] += partial_scores.SECONDS
        partial.save(number, SOME)
    partial.finish(0)
    assert ItemStore(tmp_path / "begun").keys() == {(1, SEARCH)}
    partial.close()
    assert (tmp_path / "begun").exists()
    partial.finish(1)
    partial.close()
    assert not (tmp_path / "begun").exists()


def killed_in_a_rung(monkeypatch, calls: int) -> list[int]:
    """Let a search die within the last rung of its candidate number `calls` that has one."""
    rungs, begins = Scorer.rungs, []

    def dying(self, split, met=None):
        begins.append(met.n if met else 0)
        for place, seen in enumerate(rungs(self, split, met)):
            if len(begins) == calls and place == 1:
                raise Killed
            yield seen

    monkeypatch.setattr(Scorer, "rungs", dying)
    return begins


def test_a_killed_search_continues_within_the_candidate(
    small_search, tmp_path, monkeypatch, at_once
):
    path = raced(small_search, racing={"first": 10, "alpha": 0.001})
    run_shuffled(path, tmp_path / "uninterrupted", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in_a_rung(patch, 5)
        run_shuffled(path, tmp_path / "killed", 1)
    assert (tmp_path / "killed/items/begun").is_dir()
    begins = killed_in_a_rung(monkeypatch, 0)
    outcome, _ = run_shuffled(path, tmp_path / "killed", 1)
    assert outcome.finished
    assert begins[0] == 10
    assert set(begins[1:10]) == {0}
    assert record(tmp_path / "killed") == record(tmp_path / "uninterrupted")
    assert not (tmp_path / "killed/items/begun").exists()


def test_a_candidate_that_waits_for_earlier_ones_is_not_scored_again(
    small_search, tmp_path, monkeypatch, at_once
):
    path = raced(small_search)
    run_shuffled(path, tmp_path / "uninterrupted", 5)
    waits, wait = [], Shuffled.wait

    def dying(self):
        waits.append(wait(self))
        if len(waits) == 7:
            raise Killed
        return waits[-1]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Shuffled, "wait", dying)
        run_shuffled(path, tmp_path / "killed", 5, seed=3)
    waiting = ItemStore(tmp_path / "killed/items/begun").keys()
    finished = sum(name.startswith("candidate") for name, *_ in record(tmp_path / "killed"))
    assert len(waiting) > 1
    begins = killed_in_a_rung(monkeypatch, 0)
    run_shuffled(path, tmp_path / "killed", 5)
    assert begins.count(0) == 14 - finished - len(waiting)
    assert record(tmp_path / "killed") == record(tmp_path / "uninterrupted")
