"""The study on disk: torn tails, the lock, and what a reader may do."""

import logging
import shutil
import subprocess
import sys

import optuna
import pytest
from heterosis.search.storage.journal import (
    JOURNAL,
    Journal,
    StudyError,
    cut_torn_tail,
    find_studies,
    lock_folder,
)


def finished(value: float) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(
        value=value,
        params={"x": value},
        distributions={"x": optuna.distributions.FloatDistribution(0, 9)},
        user_attrs={"candidate": {"name": f"c{value}"}},
    )


def make(folder, n: int) -> Journal:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder, write=True)
    journal.write_manifest({"config": {"name": "t"}})
    for i in range(n):
        journal.append(finished(float(i)))
    return journal


def test_appended_trials_are_read_back(tmp_path):
    make(tmp_path, 3)
    journal = Journal(tmp_path)
    assert [trial.value for trial in journal.trials] == [0, 1, 2]
    assert journal.manifest == {"config": {"name": "t"}}


def test_a_reader_changes_no_byte(tmp_path):
    make(tmp_path, 3)
    before = (tmp_path / JOURNAL).read_bytes()
    Journal(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_record_cut_anywhere_costs_only_that_record(tmp_path, caplog):
    make(tmp_path, 3)
    whole = (tmp_path / JOURNAL).read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(start, len(whole), 37):
        (tmp_path / JOURNAL).write_bytes(whole[:cut])
        with caplog.at_level(logging.WARNING):
            journal = Journal(tmp_path, write=True)
        assert [trial.value for trial in journal.trials] == [0, 1]
        journal.append(finished(2.0))
        assert [trial.value for trial in Journal(tmp_path).trials] == [0, 1, 2]
    assert "the last record is incomplete" in caplog.text


def test_a_reader_of_a_torn_journal_sees_the_complete_records(tmp_path):
    make(tmp_path, 3)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:-5])
    assert [trial.value for trial in Journal(tmp_path).trials] == [0, 1]


def test_a_last_line_of_garbage_is_cut(tmp_path):
    make(tmp_path, 1)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b"\0\0\0\n")
    assert cut_torn_tail(tmp_path / JOURNAL) == 4
    assert len(Journal(tmp_path).trials) == 1


def test_a_search_that_is_not_alone_writes_nothing_more(tmp_path):
    first = make(tmp_path / "study", 2)
    shutil.rmtree(tmp_path / "study")
    with pytest.raises(StudyError, match=r"removed or changed .* now nothing\); nothing more is"):
        first.append(finished(2.0))
    second = make(tmp_path / "study", 1)
    whole = second.path.read_bytes()
    with pytest.raises(StudyError, match=rf"bytes were left there, now {len(whole)}\)"):
        first.append(finished(2.0))
    assert second.path.read_bytes() == whole
    second.append(finished(1.0))
    assert [trial.value for trial in Journal(tmp_path / "study").trials] == [0, 1]


def test_damage_before_the_last_line_is_refused(tmp_path):
    make(tmp_path, 3)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    with pytest.raises(StudyError, match=r"the journal is damaged .* restore it from a backup"):
        Journal(tmp_path, write=True)


def test_a_killed_start_leaves_a_folder_that_can_be_used(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"")
    assert Journal(tmp_path, write=True).trials == []


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"holds no study \(study.journal is missing\)"):
        Journal(tmp_path)
    with pytest.raises(StudyError, match="holds no study; give the folder"):
        find_studies(tmp_path)


def test_studies_are_found_in_a_folder_of_results(tmp_path):
    make(tmp_path / "b", 1)
    make(tmp_path / "a", 1)
    assert find_studies(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_studies(tmp_path / "a") == [tmp_path / "a"]


def test_a_renamed_folder_is_still_the_study(tmp_path):
    make(tmp_path / "old", 2)
    (tmp_path / "old").rename(tmp_path / "new")
    assert len(Journal(tmp_path / "new", write=True).trials) == 2


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path;"
        "from heterosis.search.storage.journal import lock_folder;"
        "lock = lock_folder(Path(sys.argv[1])); lock.__enter__(); print('held', flush=True);"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        with (
            pytest.raises(StudyError, match="another process is searching in this folder"),
            lock_folder(tmp_path),
        ):
            pass
        holder.kill()
    with lock_folder(tmp_path):
        pass
