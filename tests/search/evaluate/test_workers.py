"""Several workers: the same study as with one, whatever comes first; what the sampler knows."""

import pytest
from heterosis.search.config.config import ConfigError
from heterosis.search.config.load import load_config
from heterosis.search.config.scoring import WorkersSection
from heterosis.search.config.search import SearchSection
from heterosis.search.propose.pace import Pace, lay_out, pace_of
from heterosis.search.storage.journal import Journal, StudyError
from heterosis.search.study.budget import Budget, Limits

from ..shuffled import raced, run_shuffled
from ..studies import record
from ..studies import run as run_local

SEARCHES = {
    "CmaEsSampler": {"sampler_args": {"popsize": 4}},
    "NSGAIISampler": {"sampler_args": {"population_size": 4}},
    "TPESampler": {"sampler_args": {"n_startup_trials": 4}},
    "QMCSampler": {},
}
BY_SAMPLER = pytest.mark.parametrize(
    "sampler",
    [
        "CmaEsSampler",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SEARCHES
            if name != "CmaEsSampler"
        ),
    ],
)


@BY_SAMPLER
def test_one_worker_and_five_find_the_same_candidates(small_search, tmp_path, sampler):
    path = raced(small_search, sampler=sampler, **SEARCHES[sampler])
    outcome, _ = run_local(path)
    assert outcome.finished
    _, (workers,) = run_shuffled(path, tmp_path / "five", 5)
    assert workers.most >= 4
    assert record(tmp_path / "five") == record(small_search.results)


@BY_SAMPLER
def test_a_study_stopped_within_a_generation_resumes(small_search, tmp_path, sampler):
    path = raced(small_search, sampler=sampler, **SEARCHES[sampler])
    run_shuffled(path, tmp_path / "whole", 3)
    seeds = iter(range(100))
    for count in (3, 1, 2, 5):
        asked = iter([False] * 4)
        run_shuffled(
            path, tmp_path / "parts", count, next(seeds), lambda asked=asked: next(asked, True)
        )
    outcome, _ = run_shuffled(path, tmp_path / "parts", 2, 9)
    assert outcome.finished
    assert record(tmp_path / "parts") == record(tmp_path / "whole")


def test_a_budget_of_items_ends_the_same_with_several_workers(small_search, tmp_path):
    path = raced(small_search, trials=None, items=260)
    run_local(path)
    _, _ = run_shuffled(path, tmp_path / "five", 5)
    assert record(tmp_path / "five") == record(small_search.results)


def test_pending_candidates_count_against_the_budget():
    assert Budget(Limits(trials=5), 0).spent((), pending=5) == "5 candidates"
    assert Budget(Limits(trials=5), 0).spent((), pending=4) is None


def test_one_after_another_each_proposal_knows_all_before_it():
    assert [Pace().n_known(place) for place in range(6)] == list(range(6))


def test_those_ahead_know_a_block_less_than_the_others():
    known = [Pace(3, 1).n_known(place) for place in range(13)]
    assert known == [0, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]


def test_a_generation_is_the_samplers_population():
    workers = WorkersSection()
    assert pace_of(SearchSection(), None, 20) == Pace(1, 0)
    assert pace_of(SearchSection(), workers, 20) == Pace(12, 3)  # 4 + 3 ln 20
    given = SearchSection(sampler_args={"popsize": 64})
    assert pace_of(given, WorkersSection(ahead=0), 20) == Pace(64, 0)
    assert pace_of(SearchSection(sampler="NSGAIISampler"), workers, 20) == Pace(50, 13)
    assert pace_of(SearchSection(sampler="RandomSampler"), workers, 20) == Pace(16, 4)
    assert pace_of(SearchSection(), WorkersSection(generation=5, ahead=1), 20) == Pace(5, 1)


def test_generations_are_laid_out_for_the_most_workers():
    whole, raced = SearchSection(racing=False), SearchSection()
    assert pace_of(raced, WorkersSection(engine="ray", num=4), 20) == Pace(12, 3)
    many = WorkersSection(engine="ray", num=64)
    assert pace_of(whole, many, 20) == Pace(64, 64)
    assert pace_of(raced, many, 20) == Pace(64, 128)
    assert pace_of(raced, WorkersSection(engine="ray", num=64, most=8), 20) == Pace(12, 16)
    assert pace_of(raced, WorkersSection(most=64), 20) == Pace(64, 128)
    assert pace_of(raced, WorkersSection(most=64, generation=20, ahead=5), 20) == Pace(20, 5)
    given = SearchSection(sampler_args={"popsize": 10})
    assert pace_of(given, many, 20) == Pace(10, 128)


def test_the_sampler_gets_a_population_of_the_generation():
    many = WorkersSection(engine="ray", num=64)
    section, workers = lay_out(SearchSection(), many, 20)
    assert section.sampler_args == {"popsize": 64}
    assert workers.most == 64
    assert lay_out(section, workers, 20) == (section, workers)
    assert pace_of(section, workers, 20) == pace_of(SearchSection(), many, 20)
    given = SearchSection(sampler_args={"popsize": 10})
    assert lay_out(given, many, 20)[0] == given
    assert lay_out(SearchSection(), WorkersSection(), 20)[0] == SearchSection()
    assert lay_out(SearchSection(), None, 20) == (SearchSection(), None)
    genetic = lay_out(SearchSection(sampler="NSGAIISampler"), many, 20)[0]
    assert genetic.sampler_args == {"population_size": 64}


@pytest.mark.parametrize("before, most", [({"num": 1, "most": 16}, 16), ({"num": 64}, 4)])
def test_a_study_keeps_what_it_was_laid_out_for(before, most):
    many = WorkersSection(engine="ray", num=64)
    assert lay_out(SearchSection(), many, 20, {"workers": before})[1].most == most


@pytest.mark.slow
def test_what_a_study_is_laid_out_for_decides_its_candidates(small_search, tmp_path):
    sampler = {"sampler": "RandomSampler", "trials": 40, "racing": False}
    path = small_search.write(search=sampler, workers={"engine": "local", "most": 18})
    outcome, _ = run_local(path)
    assert outcome.finished
    _, (workers,) = run_shuffled(path, tmp_path / "many", 18)
    assert workers.most == 18
    assert record(tmp_path / "many") == record(small_search.results)
    manifest = Journal(tmp_path / "many").manifest
    assert manifest["identity"]["generation"] == {"generation": 18, "ahead": 18}
    assert manifest["config"]["workers"]["most"] == 18
    small_search.write(search=sampler, workers={"engine": "local"})
    outcome, _ = run_local(path)
    assert outcome.finished, "a study keeps its pace"
    small_search.write(search=sampler, workers={"engine": "local", "most": 30})
    with pytest.raises(
        StudyError, match=r"must not change within a study; generation.generation was 18, is 30"
    ):
        run_local(path)


def test_the_state_of_cma_es_is_kept_once_for_each_generation(small_search):
    outcome, _ = run_local(raced(small_search, trials=21, **SEARCHES["CmaEsSampler"]))
    assert outcome.finished
    trials = [trial.system_attrs for trial in Journal(small_search.results).trials]
    holders = [attrs for attrs in trials if any("optimizer" in key for key in attrs)]
    generations = {attrs["cma:generation"] for attrs in trials if "cma:generation" in attrs}
    assert generations == {0, 1, 2, 3}
    assert sorted(attrs["cma:generation"] for attrs in holders) == [1, 2, 3]


@pytest.mark.parametrize("given", [{"num": 2}, {"timeout": 3.0}])
def test_this_process_scores_one_at_a_time(small_search, given):
    path = small_search.write(workers={"engine": "local", **given})
    with pytest.raises(ConfigError, match="leave them out, or use `engine: ray`"):
        load_config(path)
