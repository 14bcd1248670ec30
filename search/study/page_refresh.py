"""Refresh a study's page while its search runs, in a child process.

Knows reporters and clocks; nothing of pages. The child has the lowest priority and one thread:
candidates do not wait for it, and its errors do not end the search.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from ..storage.candidate import Candidate
from .progress import Reporter

FIRST, EVERY = 15.0, 60.0
"""Seconds before the first refresh, and at least between two."""
SHARE = 0.05
"""Largest share of CPU time spent on refreshes: large studies are refreshed less often."""
LOWEST = 19
"""Priority (`nice`) of the child."""


class PageRefresh:
    """A reporter that passes everything on and refreshes the page from time to time.

    Args:
        reporter: Receives all calls.
        folder: The study's folder.
        command: Writes the page; default: ``heterosis report FOLDER``.
        clock: Returns seconds; monotonic.
    """

    def __init__(
        self,
        reporter: Reporter,
        folder: Path,
        command: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock."""
        self._reporter, self._clock = reporter, clock
        default = [sys.executable, "-m", "heterosis.search", "report", str(folder)]
        self._command = list(command) or default
        self._child: subprocess.Popen[bytes] | None = None
        self._begun, self._next = 0.0, clock() + FIRST

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill a running refresh: the search writes a newer page itself."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def known(self, candidates: Sequence[Candidate]) -> None:
        """See `Reporter`."""
        self._reporter.known(candidates)

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        self._reporter.stage(name, total, done)

    def forecast(self, total: int | None) -> None:
        """See `Reporter`."""
        self._reporter.forecast(total)

    def note(self, message: str) -> None:
        """See `Reporter`."""
        self._reporter.note(message)

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`; starts a refresh if it is time."""
        self._reporter.finished(candidate, items)
        now = self._clock()
        if self._child is not None and (spent := _spent(self._child)) is not None:
            self._child = None
            self._next = self._begun + max(EVERY, spent / SHARE)
        if self._child is None and now >= self._next:
            self._begun = now
            self._child = _started(self._command)


def _spent(child: subprocess.Popen[bytes]) -> float | None:
    """Return the CPU-seconds that a child took; None while it runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.poll() is None:
        return None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _started(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start a silent child of the lowest priority, shielded from Ctrl-C; None if that fails."""
    null = subprocess.DEVNULL
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        child = subprocess.Popen(
            command,
            stdin=null,
            stdout=null,
            stderr=null,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return None
    with contextlib.suppress(psutil.Error):
        psutil.Process(child.pid).nice(LOWEST)
    return child
