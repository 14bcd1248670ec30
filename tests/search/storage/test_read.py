"""The reader for views: it gives what Optuna's reader gives, and names what is damaged."""

import math

import pytest
from heterosis.evals.scores.audit import Audit
from heterosis.evals.scores.scores import TaskScore
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.search.config.search import SearchSection
from heterosis.search.propose.proposer import Proposer
from heterosis.search.storage.candidate import Candidate, candidate_of
from heterosis.search.storage.journal import JOURNAL, Journal, StudyError
from heterosis.search.storage.read import read_record

from ..spaces import SPACE

SCORES = {"a": TaskScore(0.25, 0.125, 8), "b": TaskScore(-1.5, math.inf, 1)}
RECIPE = Recipe("ties", ("x", "y"), {"layers.0.attn": Coefficients((0.3, 1.0), (0.1, 0.0))})
ODD = [
    Candidate(0, "base", "base", RECIPE, 0.25, scores=SCORES, items=9, seconds=1.5),
    Candidate(1, "candidate 1", "candidate", RECIPE, failure="weights | are NaN", elapsed=2.5),
    Candidate(2, "candidate 2", "candidate", RECIPE, 1.0, SCORES, items=8, raced=True),
    Candidate(3, "c", "candidate", RECIPE, 0.5, SCORES, {"a": Audit(0.5, 0.0, 3.0, 0.25)}, items=9),
    Candidate(4, "4 without g", "reset", RECIPE, 0.5, SCORES, items=9, of=3, reset=("g", "h")),
]


def write(folder, candidates, n_values: int = 1) -> None:
    journal = Journal(folder, write=True, n_values=n_values)
    journal.write_manifest({"config": {"name": "odd"}})
    proposer = Proposer(SPACE, SearchSection(sampler="RandomSampler"), n_values)
    for c in candidates:
        params = SPACE.middle if c.is_searched else None
        journal.append(proposer.add(params, c.sampler_values, c.to_attribute()))


def test_candidates_are_read_as_written_and_as_by_optunas_reader(tmp_path):
    write(tmp_path, ODD)
    record = read_record(tmp_path)
    assert list(record.candidates) == ODD
    assert list(record.candidates) == [candidate_of(t) for t in Journal(tmp_path).trials]
    assert record.manifest == Journal(tmp_path).manifest
    assert record.candidates[0].recipe is record.candidates[0].recipe


def test_several_values_are_read_back(tmp_path):
    several = [
        Candidate(n, f"c{n}", "candidate", RECIPE, 0.5, SCORES, values=(0.25, n), items=9)
        for n in range(3)
    ]
    write(tmp_path, several, n_values=2)
    assert list(read_record(tmp_path).candidates) == several


def test_a_study_of_an_older_version_with_fewer_fields_is_read(tmp_path):
    write(tmp_path, ODD[:1])
    path = tmp_path / JOURNAL
    text = path.read_text()
    for gone in ('"audit":{},', '"items":9,', '"raced":false,'):
        assert gone in text
        text = text.replace(gone, "")
    path.write_text(text)
    assert read_record(tmp_path).candidates == (ODD[0],)
    assert candidate_of(Journal(tmp_path).trials[0]) == ODD[0]


def test_an_incomplete_last_record_does_not_count(tmp_path):
    write(tmp_path, ODD)
    whole = (tmp_path / JOURNAL).read_bytes()
    for torn in (whole[:-1], whole[:-300], whole[: whole[:-1].rfind(b"\n") + 1] + b"\0\0\n"):
        (tmp_path / JOURNAL).write_bytes(torn)
        assert list(read_record(tmp_path).candidates) == ODD[:-1]
        assert (tmp_path / JOURNAL).read_bytes() == torn, "a reader changes nothing"


def test_damage_a_missing_record_and_a_missing_study_are_errors(tmp_path):
    with pytest.raises(StudyError, match=r"holds no study \(study.journal is missing\)"):
        read_record(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"")
    with pytest.raises(StudyError, match="has not begun yet; run its search again"):
        read_record(tmp_path)
    write(tmp_path, ODD)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[4:]]))
    with pytest.raises(StudyError, match=r"journal is damaged \(line 4: .*restore it from a back"):
        read_record(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with pytest.raises(StudyError, match=r"must be complete and in order, got number 2 in place 1"):
        read_record(tmp_path)


def test_a_recipe_is_decoded_on_first_use(tmp_path, monkeypatch):
    write(tmp_path, ODD)
    decoded, real = [], Recipe.from_dict

    def counted(data):
        decoded.append(data)
        return real(data)

    monkeypatch.setattr(Recipe, "from_dict", counted)
    candidates = read_record(tmp_path).candidates
    assert not decoded
    assert candidates[3].recipe == candidates[3].recipe == RECIPE
    assert len(decoded) == 1
