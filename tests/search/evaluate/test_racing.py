"""Racing in a search: losers stop early, the sampler gets estimates, and searches resume."""

import random

import numpy as np
import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.stats.racing import PROBE
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.search.config.load import load_config
from heterosis.search.evaluate.pareto import front_members
from heterosis.search.evaluate.racing import (
    MOST_INCUMBENTS,
    IncumbentItems,
    Incumbents,
    open_race,
    rungs_up_to,
)
from heterosis.search.leaderboard.views import markdown
from heterosis.search.models.export import export
from heterosis.search.propose.pace import first_searched
from heterosis.search.storage.candidate import Candidate, candidate_of
from heterosis.search.storage.journal import Journal, StudyError
from heterosis.search.study.build import build_engine, make_scorer
from heterosis.search.study.finalists import REST, search_items
from heterosis.search.study.parts import open_parts
from optuna.trial import TrialState

from ..conftest import SmallSearch
from ..studies import RACE, record, run, without_seconds


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    small = SmallSearch(tmp_path_factory.mktemp("raced"))
    outcome, _ = run(small.write(**RACE))
    return small.results, outcome, [candidate_of(t) for t in Journal(small.results).trials]


def test_losers_are_stopped_and_the_sampler_gets_estimates(raced):
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


def test_the_best_by_estimate_are_scored_on_all_items_before_they_are_finalists(raced):
    folder, outcome, candidates = raced
    store, trials = ItemStore(folder / "items"), Journal(folder).trials
    rows = {row.candidate.number: row for row in outcome.board.rows}
    done = [c for c in candidates if c.raced and not rows[c.number].candidate.raced]
    assert 0 < len(done) <= 8
    assert {c.number for c in candidates if store.has(c.number, REST)} == {c.number for c in done}
    for candidate in done:
        row = rows[candidate.number]
        assert store.read(candidate.number, REST).n == 200 - candidate.items
        assert row.candidate.items == 200
        assert row.verdict != "raced"
        assert trials[candidate.number].value == candidate.value, "the sampler's value stays"
    finalists = [r for r in rows.values() if r.candidate.is_searched and r.confirm]
    assert len(finalists) == 8
    assert not any(row.candidate.raced for row in finalists)
    least = min(row.search.value for row in finalists)
    assert all(r.search.value <= least for r in rows.values() if r.verdict == "unconfirmed")


def test_a_completed_candidate_has_the_scores_of_one_that_was_never_stopped(raced):
    folder, outcome, candidates = raced
    parts = open_parts(load_config(folder.parent / "search.yaml"))
    store = ItemStore(folder / "items")
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    scorer.path = Journal(folder).begun["machine"]["path"]
    assert open_race(scorer, store, candidates, parts.config.search, parts.objective)
    rows = [row for row in outcome.board.rows if store.has(row.candidate.number, REST)]
    for row in rows[:2]:
        engine.load(row.candidate.recipe)
        whole, found = rungs_up_to(scorer, 200), search_items(store, row.candidate)
        assert whole.keys.tolist() == found.keys.tolist()
        assert whole.value.tobytes() == found.value.tobytes()
        assert whole.margin.tobytes() == found.margin.tobytes()
        assert row.search == parts.objective.combined(whole)


def test_raced_candidates_are_no_incumbents(raced):
    _, outcome, candidates = raced
    incumbents = Incumbents()
    for candidate in candidates:
        incumbents.add(candidate)
    whole = [c for c in candidates if not c.raced]
    assert incumbents.members == [max(whole, key=lambda c: c.value)]
    raced_rows = [row for row in outcome.board.rows if row.candidate.raced]
    assert {row.verdict for row in raced_rows} == {"raced"}
    assert "Raced candidates were stopped" in markdown(outcome.board)


def test_an_interrupted_raced_search_ends_the_same(raced, small_search, tmp_path):
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
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert without_seconds(results / name) == without_seconds(folder / name)


def test_a_study_is_not_continued_with_another_race(raced, small_search):
    folder, _, _ = raced
    changed = RACE | {"search": {"trials": 25, "racing": False}}
    with pytest.raises(StudyError, match="racing must not change within a study"):
        run(small_search.write(**changed, results=str(folder)))


@pytest.mark.parametrize("section", [{"first": 1}, {"alpha": 0.7}, {"frist": 50}, True])
def test_senseless_races_are_refused(small_search, section):
    with pytest.raises(ValueError, match="racing"):
        load_config(small_search.write(search={"racing": section}))


def test_winner_and_stopped_candidate_are_exported(raced, tmp_path):
    folder, outcome, candidates = raced
    assert export(folder, tmp_path / "winner").row == outcome.board.winner
    rows = {row.candidate.number: row for row in outcome.board.rows}
    stopped = next(c for c in candidates if rows[c.number].candidate.raced)
    done = export(folder, tmp_path / "stopped", trial=stopped.number)
    assert done.splits == (SEARCH,)
    completed = next(c for c in candidates if c.raced and rows[c.number].confirm)
    done = export(folder, tmp_path / "completed", trial=completed.number)
    assert done.splits == (SEARCH, CONFIRM)


RECIPE = Recipe("linear", ("a",), {"layers.0.attn": Coefficients((1.0,), (0.0,))})


def random_candidates(n: int, n_values: int) -> list[Candidate]:
    """Baselines, then searched ones, of which some failed, were raced, or are variants."""
    chance, found = random.Random(n_values), []
    for number in range(n):
        kind = "uniform" if number < 4 else chance.choice(["candidate"] * 9 + ["reset"])
        values = tuple(chance.randrange(12) / 12 for _ in range(n_values))
        value = None if kind == "candidate" and chance.random() < 0.1 else sum(values) / n_values
        is_raced = kind == "candidate" and value is not None and chance.random() < 0.4
        several = values if n_values > 1 and value is not None else ()
        found.append(
            Candidate(number, "", kind, RECIPE, value=value, values=several, raced=is_raced)
        )
    return found


def expected_incumbents(candidates: list[Candidate], known: int) -> list[int]:
    """The best candidates, by definition."""
    counted = first_searched(candidates, known)
    whole = [c for c in counted if c.value is not None and not c.raced and not c.is_variant]
    if whole and whole[0].values:
        members = front_members(np.array([c.values for c in whole]))
        return [whole[index].number for index in members[:MOST_INCUMBENTS]]
    return [max(whole, key=lambda c: c.value or 0.0).number] if whole else []


@pytest.mark.parametrize("n_values", [1, 2, 3])
def test_incumbents_are_the_best_that_a_proposal_knew(n_values):
    candidates, read = random_candidates(300, n_values), []

    def items(candidate):
        read.append(candidate.number)
        return candidate.number

    incumbents = IncumbentItems(items)
    for known in range(200):
        seen = candidates[: known + 60]  # more are finished than the proposal knew
        assert list(incumbents.of_proposal(seen, known)) == expected_incumbents(seen, known)
    assert len(read) < 200, "items of the same incumbents are read once"
    assert len(read) > len(set(read)) * 0.5
