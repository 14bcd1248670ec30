"""Racing in a search: losers stop early, are told to the sampler, and resume alike."""

import pytest
from heterosis.evals.racing import PROBE
from heterosis.evals.splits import SEARCH
from heterosis.evals.store import ItemStore
from heterosis.search.candidate import candidate_of, finalists
from heterosis.search.config import load_config
from heterosis.search.export import export
from heterosis.search.journal import Journal, StudyError
from heterosis.search.rivals import Incumbents
from heterosis.search.views import markdown
from optuna.trial import TrialState

from .conftest import SmallSearch
from .test_search import record, run

RACE = {
    "splits": {"search_share": 0.5, "search_items": 100, "confirm_items": 30},
    "search": {"trials": 25, "racing": {"first": 20, "alpha": 0.1}},
}


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    small = SmallSearch(tmp_path_factory.mktemp("raced"))
    outcome, _ = run(small.write(**RACE))
    return small.results, outcome, [candidate_of(t) for t in Journal(small.results).trials]


def test_losers_are_stopped_and_told_to_the_sampler_with_an_estimate(raced):
    folder, outcome, candidates = raced
    store, trials = ItemStore(folder / "items"), Journal(folder).trials
    stopped = [c for c in candidates if c.raced]
    assert 3 < len(stopped) < 25
    for candidate in stopped:
        assert candidate.is_searched
        assert candidate.items in (PROBE, 20, 40, 80, 160)
        assert store.read(candidate.number, SEARCH).n == candidate.items
        assert trials[candidate.number].state == TrialState.COMPLETE
        assert trials[candidate.number].value == candidate.value
    for candidate in candidates:
        assert candidate.raced or candidate.items == 200
    assert outcome.finished


def test_raced_candidates_are_no_finalists_while_others_are_there(raced):
    _, outcome, candidates = raced
    assert not any(c.raced for c in finalists(candidates, 2))
    assert [c.raced for c in finalists(candidates, 100)] == sorted(
        c.raced for c in finalists(candidates, 100)
    )
    incumbents = Incumbents()
    for candidate in candidates:
        incumbents.see(candidate)
    whole = [c for c in candidates if not c.raced]
    assert incumbents.chosen == [max(whole, key=lambda c: c.value)]
    verdicts = {row.candidate.number: row.verdict for row in outcome.board.rows}
    assert {verdicts[c.number] for c in candidates if c.raced} == {"raced"}
    assert "Raced candidates were stopped" in markdown(outcome.board)


def test_a_raced_search_that_was_interrupted_ends_alike(raced, small_search, tmp_path):
    folder, _, _ = raced
    results = tmp_path / "parts"
    path = small_search.write(**RACE, results=str(results))
    stops = iter([False] * 12 + [True] * 1000)
    run(path, lambda: next(stops))
    assert 0 < len(record(results)) < len(record(folder))
    lost = ItemStore(results / "items")
    lost.drop([9, 10, 11])
    outcome, text = run(path)
    assert outcome.finished
    assert "items were lost and have been scored again" in text
    assert record(results) == record(folder)


def test_a_study_is_not_continued_with_another_race(raced, small_search):
    folder, _, _ = raced
    changed = RACE | {"search": {"trials": 25, "racing": False}}
    with pytest.raises(StudyError, match="begun with another racing"):
        run(small_search.write(**changed, results=str(folder)))


@pytest.mark.parametrize("section", [{"first": 1}, {"alpha": 0.7}, {"frist": 50}, True])
def test_senseless_races_are_refused(small_search, section):
    with pytest.raises(ValueError, match="racing"):
        load_config(small_search.write(search={"racing": section}))


def test_winner_and_stopped_candidate_are_exported(raced, tmp_path):
    folder, outcome, candidates = raced
    assert export(folder, tmp_path / "winner").row == outcome.board.winner
    stopped = next(c for c in candidates if c.raced)
    done = export(folder, tmp_path / "stopped", trial=stopped.number)
    assert done.splits == (SEARCH,)
