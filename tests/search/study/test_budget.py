"""Budgets: candidates, items, hours, and an hour of the day."""

import datetime
import itertools
import time
from dataclasses import replace
from functools import partial

import pytest
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.search.config.load import load_config
from heterosis.search.config.search import SearchSection, deadline_of
from heterosis.search.storage.candidate import Candidate
from heterosis.search.storage.journal import Journal
from heterosis.search.study.budget import Budget, Limits, is_spent, limits_of, settle_deadline

from ..studies import run

NOW = datetime.datetime(2026, 11, 24, 22, 30)
RECIPE = Recipe("linear", ("a",), {"layers.0.attn": Coefficients((1.0,), (0.0,))})


def candidates(n: int, items: int = 100, seconds: float = 2.0, kind: str = "candidate"):
    return [
        Candidate(i, "", kind, RECIPE, value=0.5, items=items, seconds=seconds) for i in range(n)
    ]


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def in_utc(monkeypatch):
    yield from put_into(monkeypatch, "UTC0")


@pytest.fixture
def in_berlin(monkeypatch):
    yield from put_into(monkeypatch, "CET-1CEST,M3.5.0,M10.5.0/3")


def put_into(monkeypatch, zone: str):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("08:00", "2026-11-25T08:00:00+00:00"),
        ("23:15:30", "2026-11-24T23:15:30+00:00"),
        ("22:30", "2026-11-25T22:30:00+00:00"),
        ("00:15+02:00", "2026-11-26T00:15:00+02:00"),
        ("00:45+02:00", "2026-11-25T00:45:00+02:00"),
        ("2026-11-27T06:00", "2026-11-27T06:00:00+00:00"),
        ("2026-11-27T06:00+02:00", "2026-11-27T06:00:00+02:00"),
    ],
)
@pytest.mark.usefixtures("in_utc")
def test_until_is_the_next_such_hour_or_a_moment(until, expected):
    assert deadline_of(until, NOW).isoformat() == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-10-24T22:00", "2026-10-25T08:00:00+01:00"),
        ("2026-03-28T22:00", "2026-03-29T08:00:00+02:00"),
    ],
)
@pytest.mark.usefixtures("in_berlin")
def test_until_is_local_time_across_a_change_of_summer_time(now, expected):
    evening = datetime.datetime.fromisoformat(now)
    assert deadline_of("08:00", evening).isoformat() == expected
    morning = expected.partition("+")[0]
    assert deadline_of(morning, evening).isoformat() == expected


def test_an_unreadable_moment_is_refused(small_search):
    with pytest.raises(ValueError, match=r"`until` must be a time of day such .*got 'tomorrow'"):
        deadline_of("tomorrow", NOW)
    with pytest.raises(ValueError, match=r"search.until.*got 'eight'"):
        load_config(small_search.write(search={"until": "eight"}))


@pytest.mark.usefixtures("in_utc")
def test_a_deadline_is_settled_once_unless_the_user_changes_it():
    section = SearchSection(until="08:00")
    deadline = settle_deadline(section, {}, NOW)
    known = {
        "config": {"search": {"until": "08:00"}},
        "machine": {"deadline": deadline},
    }
    later = NOW + datetime.timedelta(days=3)
    assert settle_deadline(section, known, later) == deadline == "2026-11-25T08:00:00+00:00"
    changed = settle_deadline(SearchSection(until="09:00"), known, later)
    assert changed == "2026-11-28T09:00:00+00:00"
    assert settle_deadline(SearchSection(trials=3), known, later) is None


def test_the_default_is_200_candidates_without_another_limit():
    assert SearchSection().trials == 200
    assert SearchSection(trials=0).trials == 0
    assert SearchSection(hours=8).trials is None
    assert SearchSection(items=1000, trials=7).trials == 7


def test_the_first_limit_that_is_reached_ends_the_search():
    budget = Budget(Limits(trials=5, items=350), confirm_items=0)
    assert budget.spent(candidates(3)) is None
    assert budget.spent(candidates(4)) == "350 items"
    assert budget.spent(candidates(5, items=1)) == "5 candidates"
    assert budget.spent(candidates(9, kind="uniform")) is None, "baselines come on top"


def test_the_time_kept_for_confirmation_is_its_forecast_within_bounds():
    clock = Clock()
    done = candidates(10)  # 50 items a second
    for confirm_items, kept in ((0, 100.0), (6000, 120.0), (10**6, 200.0)):
        budget = Budget(Limits(seconds=1000.0), confirm_items, clock)
        assert budget.kept(done) == kept
    assert budget.kept([]) == 200.0, "nothing is known of the pace yet"
    clock.now += 797
    assert budget.spent(done) is None
    clock.now += 2  # one more candidate would take 2 seconds of the one that is left
    assert budget.spent(done) == "the time"


def test_hours_count_what_earlier_runs_took_and_a_deadline_what_is_left():
    done = candidates(10, seconds=360.0)
    assert limits_of(SearchSection(hours=2.0), None, done).seconds == 3600.0
    soon = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)).isoformat()
    assert limits_of(SearchSection(hours=2.0), soon, done).seconds == pytest.approx(90, abs=5)


@pytest.mark.parametrize(
    ("wall", "gone", "is_over"),
    [
        (0, 0, False),
        (-7200, 3590, False),  # put back two hours: the search is as long as it was
        (-7200, 3601, True),
        (3601, 60, True),  # put forward, or the machine has slept: it is as late as it is
        (120, 60, False),
    ],
)
def test_moving_the_system_clock_never_prolongs_a_search(wall, gone, is_over):
    begun = datetime.datetime(2026, 11, 24, 22, 30, tzinfo=datetime.UTC)
    clock, shown = Clock(), [begun]
    limits = Limits(seconds=3600.0, deadline=begun + datetime.timedelta(hours=1))
    budget = Budget(limits, 0, clock, lambda: shown[0])
    clock.now += gone
    shown[0] = begun + datetime.timedelta(seconds=gone + wall)
    assert budget.is_over == is_over
    assert bool(budget.spent(candidates(10))) == (is_over or gone > 3000)


def test_a_search_whose_clock_is_put_forward_still_confirms(small_search, monkeypatch):
    begun = datetime.datetime.now(datetime.UTC)
    asked = itertools.count()

    def jumping() -> datetime.datetime:
        late = 3 if next(asked) > 40 else 0
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=late)

    monkeypatch.setattr("heterosis.search.run.Budget", partial(Budget, wall=jumping))
    until = (begun + datetime.timedelta(hours=1)).isoformat()
    outcome, text = run(small_search.write(search={"trials": None, "until": until}))
    assert "search: the time given to it is spent" in text
    searched = [row for row in outcome.board.rows if row.candidate.is_searched]
    assert 1 < len(searched) < 40
    assert any(row.confirm is not None for row in searched), "finalists are confirmed all the same"
    assert outcome.finished


def test_time_of_parallel_workers_counts_as_elapsed_time():
    alone = candidates(10, seconds=360.0)
    beside = [replace(c, elapsed=90.0) for c in candidates(20, seconds=360.0)]
    both = limits_of(SearchSection(hours=3.0), None, alone + beside)
    assert both.seconds == 3 * 3600 - 10 * 360 - 20 * 90
    budget = Budget(Limits(seconds=1000.0), 0, Clock())
    assert budget.total(beside) == 20 + 10  # 900 seconds, one every 90


def test_elapsed_time_is_recorded_with_every_candidate(small_search):
    path = small_search.write(search={"trials": 5})
    start = time.monotonic()
    outcome, _ = run(path)
    searched = [row.candidate for row in outcome.board.rows if row.candidate.is_searched]
    assert all(c.elapsed >= c.seconds - 1e-3 for c in searched)
    assert sum(c.elapsed for c in searched) < time.monotonic() - start


def test_the_expected_number_of_candidates_follows_the_pace():
    clock = Clock()
    budget = Budget(Limits(seconds=100.0), 0, clock)
    assert budget.total([]) is None
    clock.now += 20
    assert budget.total(candidates(10)) == 10 + 35  # 100 - 20 - 10 kept, at 2 seconds each
    assert Budget(Limits(items=5000), 0).total(candidates(10)) == 50
    limits = Limits(seconds=100.0, items=5000)
    assert limits.candidates(2.0, 100, before=10.0, after=15.0) == 37
    assert limits.candidates(0.5, 100, before=10.0, after=15.0) == 50


def test_a_search_by_items_ends_at_the_limit_and_reports_it(small_search):
    path = small_search.write(search={"trials": None, "items": 150, "finalists": 1})
    outcome, text = run(path)
    assert outcome.finished
    assert outcome.board.finished
    searched = [row for row in outcome.board.rows if row.candidate.is_searched]
    assert len(searched) == 4  # of 40 items each
    assert "search: as many candidates as there is room for" in text
    assert "search: 150 items given to it is spent" in text


def test_a_search_without_time_left_still_confirms(small_search):
    first, _ = run(small_search.write(search={"trials": 3}))
    assert first.finished
    past = small_search.write(search={"trials": None, "until": "2020-01-01T08:00"})
    outcome, _ = run(past)
    assert outcome.finished
    assert len(outcome.board.rows) == len(first.board.rows)
    journal = Journal(small_search.results)
    assert journal.manifest["machine"]["deadline"].startswith("2020-01-01T08:00:00")
    assert is_spent(journal.manifest, ())


def test_the_used_share_is_of_the_limit_that_ends_the_search():
    limits = Limits(trials=10, items=2000)
    assert Budget(limits, 0).used(candidates(0)) == 0
    assert Budget(limits, 0).used(candidates(4)) == 0.4
    assert Budget(limits, 0).used(candidates(4, items=300)) == 0.6
    assert Budget(limits, 0).used(candidates(2, items=300), pending=2) == 0.6
    assert Budget(Limits(trials=0), 0).used(candidates(0)) == 0


def test_the_used_share_of_time_is_elapsed_over_available():
    clock = Clock()
    budget = Budget(Limits(seconds=100), 0, clock)  # 10 s are kept, at least
    clock.now += 60
    assert budget.used(candidates(10)) == pytest.approx(20 / (20 + 30))
    resumed = Budget(Limits(seconds=40), 0, Clock())
    assert resumed.used(candidates(10)) == pytest.approx(20 / (20 + 36))
