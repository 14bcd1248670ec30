"""What a person sees while a search runs: a live view on a terminal, plain lines elsewhere.

Knows rich and finished candidates; nothing of how they came about.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..format import duration, recipe_line, score
from ..storage.candidate import Candidate

log = logging.getLogger(__name__)
TOP = 5


class Reporter(Protocol):
    """Hears of a search's stages and finished candidates."""

    def known(self, candidates: Sequence[Candidate]) -> None:
        """Candidates that an earlier run has finished."""

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """A stage of ``total`` candidates begins, ``done`` of which are known already; None: as
        many as time or items allow."""

    def forecast(self, total: int | None) -> None:
        """The stage is expected to be of so many candidates."""

    def finished(self, candidate: Candidate, items: int) -> None:
        """A candidate was scored on ``items`` items, or failed."""

    def note(self, message: str) -> None:
        """Something that a person should know."""


class Tracker:
    """Counts, best so far, speed and time left: what both views show."""

    def __init__(self) -> None:
        self.name = ""
        self.total: int | None = 0
        self.done = self.items = self.failed = 0
        self.top: list[Candidate] = []
        self._start = time.monotonic()
        self._done_at_start = 0

    def stage(self, name: str, total: int | None, done: int) -> None:
        """Begin a stage."""
        self.name, self.total, self.done, self.items = name, total, done, 0
        self._start, self._done_at_start = time.monotonic(), done

    def known(self, candidates: Sequence[Candidate]) -> None:
        """Take in the best of what was finished before."""
        for candidate in candidates:
            self._rank(candidate)

    def _rank(self, candidate: Candidate) -> None:
        if candidate.value is not None and candidate.number not in [c.number for c in self.top]:
            ranked = sorted([*self.top, candidate], key=lambda c: (-(c.value or 0), c.number))
            self.top = ranked[:TOP]

    def add(self, candidate: Candidate, items: int) -> None:
        """Count a candidate, keep the best."""
        self.done += 1
        self.items += items
        if candidate.value is None:
            self.failed += 1
        self._rank(candidate)

    @property
    def items_per_second(self) -> float:
        """Items scored per second in this stage."""
        return self.items / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Time left in this stage, at its pace so far."""
        done = self.done - self._done_at_start
        if not done or self.total is None:
            return 0.0
        return (time.monotonic() - self._start) / done * (self.total - self.done)

    def line(self) -> str:
        """One line: stage, count, best so far, speed, time left."""
        parts = [f"{self.name} {self.done}/{'?' if self.total is None else self.total}"]
        if self.top:
            parts.append(f"best {score(self.top[0].value)} ({self.top[0].name})")
        parts.append(f"{self.items_per_second:.0f} items/s")
        parts.append(f"ETA {duration(self.seconds_left)}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return " | ".join(parts)


def _print(console: Console, message: str) -> None:
    """Print a line; a viewer that has closed the pipe does not end the night."""
    if console.file.closed:
        return
    try:
        console.file.write(f"{message}\n")
        console.file.flush()
    except BrokenPipeError:
        log.warning("nobody reads the output any more; going on without it")
        console.quiet = True
        console.file = io.StringIO()


class PlainReporter:
    """Lines for a log file: each baseline, each new best, and a line every ten seconds."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self._console, self._every = console, every
        self._tracker = Tracker()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def known(self, candidates: Sequence[Candidate]) -> None:
        """See `Reporter`."""
        self._tracker.known(candidates)

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        self._tracker.stage(name, total, done)
        known = f", {done} known already" if done else ""
        many = "as many candidates as there is room for" if total is None else f"{total} candidates"
        self.note(f"{name}: {many}{known}")

    def forecast(self, total: int | None) -> None:
        """See `Reporter`."""
        self._tracker.total = total

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`."""
        was = self._tracker.top[:1]
        self._tracker.add(candidate, items)
        now = time.monotonic()
        new_best = self._tracker.top[:1] != was
        if candidate.failure:
            self.note(f"{candidate.name}: FAILED: {candidate.failure}")
        if new_best or now - self._last > self._every or self._tracker.done == self._tracker.total:
            self._last = now
            self.note(self._tracker.line())

    def note(self, message: str) -> None:
        """See `Reporter`."""
        _print(self._console, message)


class LiveReporter:
    """A progress bar, the line of the tracker and the best candidates, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tracker = Tracker()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._task = self._bar.add_task("", total=None)
        self._live = Live(self._view(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def known(self, candidates: Sequence[Candidate]) -> None:
        """See `Reporter`."""
        self._tracker.known(candidates)

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        self._tracker.stage(name, total, done)
        self._bar.reset(self._task, total=total, completed=done, description=name)
        self._live.update(self._view())

    def forecast(self, total: int | None) -> None:
        """See `Reporter`."""
        self._tracker.total = total
        self._bar.update(self._task, total=total)

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`."""
        self._tracker.add(candidate, items)
        self._bar.update(self._task, completed=self._tracker.done)
        if candidate.failure:
            self.note(f"{candidate.name}: FAILED: {candidate.failure}")
        self._live.update(self._view())

    def note(self, message: str) -> None:
        """See `Reporter`."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        top = Table(box=None, pad_edge=False)
        for title in ("best so far", "search", "recipe"):
            top.add_column(title, overflow="ellipsis", no_wrap=True)
        for candidate in self._tracker.top:
            recipe = recipe_line(candidate.recipe, candidate.origin)
            top.add_row(candidate.name, score(candidate.value), recipe)
        return Group(self._bar, Text(self._tracker.line()), top)


def make_reporter(console: Console) -> PlainReporter | LiveReporter:
    """Return the live view on a terminal, plain lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
