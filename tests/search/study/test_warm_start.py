"""Warm start: which recipes are taken, which studies are refused, and that it is recorded."""

import shutil
from dataclasses import replace

import pytest
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.propose.encode import is_same_merge
from heterosis.search.storage.candidate import candidate_of
from heterosis.search.storage.journal import Journal
from heterosis.search.study.finalists import finalists
from heterosis.search.study.warm_start import TAKEN, WarmStart

from ..conftest import QUICKSTART, SmallSearch, refused
from ..shuffled import run_shuffled
from ..studies import record, run

SPLITS = {"search_share": 0.3, "search_items": 20, "confirm_items": 30}


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    """A finished study, whose parents have other names."""
    small = SmallSearch(tmp_path_factory.mktemp("former"))
    parents = {"first": "java", "second": "python"}
    small.data["parents"] = {n: str(QUICKSTART / "parents" / place) for n, place in parents.items()}
    run(small.write(name="old", search={"trials": 8, "racing": False}))
    return small.results


def candidates_of(folder):
    return [candidate_of(trial) for trial in Journal(folder).trials]


def warmed(small_search, former, **changes):
    search = {"warm_start": str(former), "trials": 8} | changes.pop("search", {})
    return small_search.write(search=search, **changes)


def test_the_best_recipes_are_tried_first_scored_again_and_named(small_search, former, heterosis):
    path = warmed(small_search, former, splits=SPLITS | {"search_items": 12})
    outcome, text = run(path)
    assert outcome.finished
    assert "search, warm start: 8 candidates" in text
    assert "search: 8 candidates, 5 known already" in text
    best = finalists(candidates_of(former), TAKEN)
    found = [c for c in candidates_of(small_search.results) if c.is_searched]
    assert [c.origin for c in found] == [*(f"{c.name} of old" for c in best), None, None, None]
    assert [c.stage for c in found] == [0] * 5 + [1] * 3
    for mine, theirs in zip(found, best, strict=False):
        renamed = replace(theirs.recipe, parents=("java", "python"))
        assert is_same_merge(mine.recipe, renamed)
        assert mine.items <= 24 < theirs.items  # of this study's items, none of its scores
    number = found[0].number
    code, out, _ = heterosis("show", small_search.results, number, "--items", 0)
    assert code == 0
    assert f"candidate {number} of small, warm start: " in out
    assert f"| as {best[0].name} of old" in out
    assert f"as {best[0].name} of old" in (small_search.results / "leaderboard.md").read_text()


def test_a_warm_start_resumes_without_the_former_study(small_search, former, tmp_path):
    copy = tmp_path / "old"
    shutil.copytree(former, copy)
    path = warmed(
        small_search, copy, search={"racing": False}, stages=[{"trials": 2}, {"width": 0.3}]
    )
    run_shuffled(path, tmp_path / "uninterrupted", 2)
    asked = iter([False] * 3)
    run_shuffled(path, tmp_path / "parts", 2, 1, lambda: next(asked, True))
    shutil.rmtree(copy)
    outcome, _ = run_shuffled(path, tmp_path / "parts", 2, 2)
    assert outcome.finished
    assert record(tmp_path / "parts") == record(tmp_path / "uninterrupted")
    stages = [c.stage for c in candidates_of(tmp_path / "parts") if c.is_searched]
    assert stages == [0] * 5 + [1] * 2 + [2]


def test_a_warm_start_is_read_back_as_written():
    recipe = Recipe.uniform("linear", ["a"], ["embed"], 0.5)
    warm = WarmStart("old", (("candidate 3 of old", recipe),))
    assert WarmStart.from_dict(warm.to_dict()) == warm


def test_check_shows_what_is_tried_first(small_search, former, heterosis):
    code, out, _ = heterosis("check", warmed(small_search, former))
    assert code == 0
    assert "warm start: tried first, and scored anew: candidate" in out
    assert f" of old ({former})" in out


def test_unsuitable_former_studies_are_errors(small_search, former, heterosis, tmp_path):
    def told(**changes) -> str:
        return refused(heterosis("search", warmed(small_search, former, **changes)))

    own = warmed(small_search, small_search.results)
    assert "must be another study than this one" in refused(heterosis("search", own))
    nothing = warmed(small_search, tmp_path / "nothing")
    assert "nothing, which holds none (study.journal is missing)" in refused(
        heterosis("search", nothing)
    )
    both = small_search.data["parents"]
    small_search.data["parents"] = {"python": both["python"]}
    assert "`first` of" in (message := told())
    assert "is none of base, python here; leave it out, or search with the models" in message
    small_search.data["parents"] = both | {"third": both["java"]}
    assert "has no `third`; leave it out" in told()
    small_search.data["parents"] = both
    assert "none of the 8 candidates of" in told(space={"weight": [0.9, 1.0]})
    shares = {"search_share": 0.1, "confirm_items": 300}
    assert "items of quickstart_python that this study keeps to confirm" in told(splits=shares)


def test_a_warm_start_cannot_be_changed(small_search, former, heterosis):
    run(small_search.write(search={"trials": 0}))
    told = refused(heterosis("search", small_search.folder / "search.yaml", "--warm-start", former))
    assert "warm_start must not change within a study; warm_start was None" in told
    both = heterosis("search", "--continue", former, "--warm-start", former)
    assert "leave out --results, --run-seed and --warm-start" in refused(both)


def test_a_former_study_without_candidates_or_items_is_an_error(
    small_search, former, heterosis, tmp_path
):
    plain = SmallSearch(tmp_path)
    plain.results = tmp_path / "plain"
    run(plain.write(search={"trials": 0}, results=str(plain.results)))
    path = warmed(small_search, plain.results)
    assert "has no searched candidate that was scored on all items" in refused(
        heterosis("search", path)
    )
    copy = tmp_path / "lost"
    shutil.copytree(former, copy)
    shutil.rmtree(copy / "items")
    assert "has lost the items of candidate" in refused(
        heterosis("search", warmed(small_search, copy))
    )
