"""Notes in the dashboard: written soon, not too often, and again after errors."""

import logging
import threading

import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.search import SearchSection
from heterosis.search.propose.proposer import Proposer
from heterosis.search.report import dashboard
from heterosis.search.report.dashboard import Mirror, keep_following
from heterosis.search.storage.candidate import Candidate
from heterosis.search.storage.journal import Journal, StudyError
from optuna.storages.journal import JournalFileBackend

from ..spaces import GROUPS
from ..studies import BASELINES, SPACE, make_study, scores_of

ROWS = [*BASELINES, ("c4", "candidate", 0.9, None), ("c5", "candidate", 0.8, None)]


class Clock:
    """A clock that stops, or advances by a step at each call."""

    now = step = 0.0

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture
def study(tmp_path):
    make_study(tmp_path / "study", ROWS)
    return tmp_path / "study"


@pytest.fixture
def mirror(study, tmp_path):
    (tmp_path / "copy").mkdir()
    clock = Clock()
    found = Mirror(study, tmp_path / "copy", clock)
    return found, clock


def note(mirror, number=None):
    """What the dashboard shows of a trial, or of the study."""
    owner = "" if number is None else f"{number}:"
    key = f"dashboard:{owner}note_str:0"
    return mirror.storage.get_study_system_attrs(0).get(key)


def test_confirm_scores_are_noted_although_the_journal_has_not_grown(mirror, study):
    mirror, clock = mirror
    mirror.follow()
    assert "Confirmed" not in note(mirror, 4)
    journal = (study / "study.journal").read_bytes()
    ItemStore(study / "items").append(4, CONFIRM, scores_of(0.8, seed=1))
    clock.now = 1e6
    mirror.follow()
    assert "Confirmed: 0.8000 ± 0.0142 (better)." in note(mirror, 4)
    assert note(mirror).startswith("# made\n\nc4 beats every baseline")
    assert (study / "study.journal").read_bytes() == journal


def grow(study, name, right):
    """One more searched candidate, as a search appends it."""
    journal = Journal(study, write=True)
    number, scores = len(journal.trials), scores_of(right)
    ItemStore(study / "items").append(number, SEARCH, scores)
    recipe = Recipe.uniform("linear", ("a", "b"), GROUPS, 0.1)
    candidate = Candidate(number, name, "candidate", recipe, right, scores.task_scores())
    proposer = Proposer(SPACE, SearchSection())
    journal.append(proposer.add(None, (right,), candidate.to_attribute()))


def test_a_new_trial_is_noted_at_once_and_the_leaderboard_when_its_turn_comes(
    mirror, study, monkeypatch
):
    mirror, clock = mirror
    derived = []
    read = dashboard.read_leaderboard
    monkeypatch.setattr(
        dashboard, "read_leaderboard", lambda folder: derived.append(folder) or read(folder)
    )
    mirror.follow()
    grow(study, "c6", 0.95)
    for _ in range(3):
        mirror.follow()
    assert note(mirror, 6).startswith("# c6\n")
    assert note(mirror).startswith("# made\n\nc4 leads on the search items")
    assert len(derived) == 1
    clock.now = 1e6
    for _ in range(3):
        mirror.follow()
    assert note(mirror).startswith("# made\n\nc6 leads on the search items")
    assert len(derived) == 2


def test_all_notes_are_written_in_one_piece(mirror, monkeypatch):
    mirror, _ = mirror
    pieces = []
    append = JournalFileBackend.append_logs
    monkeypatch.setattr(
        JournalFileBackend,
        "append_logs",
        lambda self, logs: pieces.append(len(logs)) or append(self, logs),
    )
    mirror.follow()
    assert pieces == [2 * (1 + len(ROWS))]
    mirror.follow()
    assert len(pieces) == 1


def test_following_goes_on_after_a_study_could_not_be_read(mirror, monkeypatch, caplog):
    mirror, clock = mirror
    read, tries, clock.step = dashboard.read_leaderboard, [], 1e6

    def fail_twice(folder):
        tries.append(folder)
        if len(tries) < 3:
            raise StudyError("the items are being written")
        ended.set()
        return read(folder)

    ended = threading.Event()
    monkeypatch.setattr(dashboard, "read_leaderboard", fail_twice)
    with caplog.at_level(logging.WARNING):
        keep_following(mirror, ended, every=0.001)
    assert note(mirror, 4).startswith("# c4\n")
    assert [r.message for r in caplog.records] == [
        "the notes are not up to date: the items are being written"
    ]


def test_a_study_that_has_not_begun_is_followed_until_it_has(tmp_path, caplog):
    folder, copy = tmp_path / "study", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    Journal(folder, write=True)
    mirror = Mirror(folder, copy, Clock())
    with pytest.raises(StudyError, match="this study has not begun yet"):
        mirror.follow()
    mirror._clock.now = 1e6
    make_study(folder, ROWS)
    mirror.follow()
    assert note(mirror, 4).startswith("# c4\n")
