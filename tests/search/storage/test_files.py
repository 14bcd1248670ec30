"""A full disk: the search waits, loses nothing, and gives the same result as with room."""

import errno
import os
import subprocess
import threading
import time

import optuna
import pytest
from heterosis.search.storage.files import PAUSE, Disk
from heterosis.search.storage.journal import JOURNAL, Journal

from ..studies import record, run


def full(times: int):
    """Something to write that fails a number of times."""
    left = [times]

    def write() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", "items")
        return "written"

    return write


def test_a_write_is_retried_until_there_is_room():
    notes, pauses = [], []
    assert Disk(notes.append, lambda: False, pauses.append).write(full(3)) == "written"
    assert pauses == [PAUSE] * 3
    assert len(notes) == 2
    assert "No space left on device: 'items': the search waits until there is room" in notes[0]
    assert notes[1] == "there is room on the disk again: the search continues"
    assert Disk(notes.append, lambda: False, pauses.append).write(full(0)) == "written"
    assert len(notes) == 2


def test_a_stop_ends_the_wait_and_other_errors_are_raised():
    with pytest.raises(OSError, match="No space left"):
        Disk(print, lambda: True, lambda _: pytest.fail("waited")).write(full(1))

    def refused() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "items")

    with pytest.raises(PermissionError):
        Disk(print, lambda: False, lambda _: pytest.fail("waited")).write(refused)


def test_a_journal_line_that_does_not_fit_leaves_the_journal_unchanged(tmp_path, monkeypatch):
    journal = Journal(tmp_path, write=True)
    journal.append(optuna.trial.create_trial(value=1.0))
    before = (tmp_path / JOURNAL).read_bytes()
    real = os.fsync

    def half_written(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        with (tmp_path / JOURNAL).open("r+b") as file:
            file.truncate(len(before) + 20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", half_written)
    with pytest.raises(OSError, match="No space left"):
        journal.append(optuna.trial.create_trial(value=2.0))
    assert (tmp_path / JOURNAL).read_bytes() == before
    journal.append(optuna.trial.create_trial(value=3.0))
    assert [trial.value for trial in Journal(tmp_path).trials] == [1.0, 3.0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_search_on_a_full_disk_continues_when_there_is_room(
    small_search, small_disk, monkeypatch
):
    monkeypatch.setattr("heterosis.search.storage.files.PAUSE", 0.1)
    whole = small_search.write()
    run(whole)
    path = small_search.write(results=str(small_disk / "study"))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 60_000))

    def make_room() -> None:
        while not (small_disk / "study" / JOURNAL).is_file():
            time.sleep(0.1)
        time.sleep(15)
        ballast.unlink()

    helper = threading.Thread(target=make_room)
    helper.start()
    outcome, text = run(path)
    helper.join()
    assert outcome.finished
    assert "the search waits until there is room" in text
    assert "there is room on the disk again" in text
    assert record(small_disk / "study") == record(small_search.results)
