"""What candidates in flight have met is kept, and scored once."""

import pytest
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.storage import partial_scores
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
    """Rungs of tiny models are kept, too."""
    monkeypatch.setattr(partial_scores, "SECONDS", 0.0)


@pytest.fixture
def now():
    return [0.0]


def opened(folder, now) -> PartialScores:
    return PartialScores(folder, lambda write: write(), lambda: now[0])


def test_what_was_met_is_found_by_the_next_run(tmp_path, now):
    first = opened(tmp_path / "begun", now)
    assert first.begin(3, A, "requests") is None
    now[0] = partial_scores.SECONDS
    first.keep(3, SOME)
    again = opened(tmp_path / "begun", now)
    met = again.begin(3, A, SOME.fingerprint)
    assert met is not None
    assert (met.fingerprint, met.value.tolist()) == (SOME.fingerprint, [1.0, 0.0, 1.0])
    assert again.begin(4, A, SOME.fingerprint) is None


def test_another_recipe_or_other_requests_begin_anew(tmp_path, now):
    first = opened(tmp_path / "begun", now)
    first.begin(3, A, "")
    now[0] = partial_scores.SECONDS
    first.keep(3, SOME)
    again = opened(tmp_path / "begun", now)
    assert again.begin(3, B, SOME.fingerprint) is None
    assert again.begin(3, A, "other requests") is None
    assert again.begin(3, A, SOME.fingerprint) is not None


def test_what_is_soon_scored_again_is_not_kept(tmp_path, now):
    kept = opened(tmp_path / "begun", now)
    kept.begin(0, A, "")
    now[0] = 0.9 * partial_scores.SECONDS
    kept.keep(0, SOME)
    assert not (tmp_path / "begun").exists()
    now[0] = partial_scores.SECONDS
    kept.keep(0, SOME)
    assert ItemStore(tmp_path / "begun").has(0, SEARCH)


def test_nothing_stays_of_what_has_landed(tmp_path, now):
    kept = opened(tmp_path / "begun", now)
    for number in (0, 1):
        kept.begin(number, A, "")
        now[0] += partial_scores.SECONDS
        kept.keep(number, SOME)
    kept.land(0)
    assert ItemStore(tmp_path / "begun").keys() == {(1, SEARCH)}
    kept.close()
    assert (tmp_path / "begun").exists()
    kept.land(1)
    kept.close()
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


def test_a_killed_search_goes_on_within_the_candidate(small_search, tmp_path, monkeypatch, at_once):
    path = raced(small_search, racing={"first": 10, "alpha": 0.001})
    run_shuffled(path, tmp_path / "whole", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_in_a_rung(patch, 5)
        run_shuffled(path, tmp_path / "killed", 1)
    assert (tmp_path / "killed/items/begun").is_dir()
    begins = killed_in_a_rung(monkeypatch, 0)
    outcome, _ = run_shuffled(path, tmp_path / "killed", 1)
    assert outcome.finished
    assert begins[0] == 10
    assert set(begins[1:10]) == {0}
    assert record(tmp_path / "killed") == record(tmp_path / "whole")
    assert not (tmp_path / "killed/items/begun").exists()


def test_what_waits_for_the_candidates_before_it_is_not_scored_again(
    small_search, tmp_path, monkeypatch, at_once
):
    path = raced(small_search)
    run_shuffled(path, tmp_path / "whole", 5)
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
    landed = sum(name.startswith("candidate") for name, *_ in record(tmp_path / "killed"))
    assert len(waiting) > 1
    begins = killed_in_a_rung(monkeypatch, 0)
    run_shuffled(path, tmp_path / "killed", 5)
    assert begins.count(0) == 14 - landed - len(waiting)
    assert record(tmp_path / "killed") == record(tmp_path / "whole")
