"""Progress of a search: a live view on a terminal, plain lines elsewhere.

Knows rich and finished candidates; nothing of how they are scored.
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
    """Shows a search's stages and finished candidates."""

    def known(self, candidates: Sequence[Candidate]) -> None:
        """Take in the candidates of an earlier run."""

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Begin a stage of ``total`` candidates, ``done`` of them by an earlier run.

        A total of None: as many as time or items allow.
        """

    def forecast(self, total: int | None) -> None:
        """Update the expected total of the stage."""

    def finished(self, candidate: Candidate, items: int) -> None:
        """Show a finished candidate: scored on ``items`` items, or failed."""

    def note(self, message: str) -> None:
        """Show a message to the user."""


class Tracker:
    """A silent reporter: counts, best candidates, speed and time left of the current stage."""

    def __init__(self) -> None:
        self.name = ""
        self.total: int | None = 0
        self.done = self.items = self.failed = 0
        self.top: list[Candidate] = []
        self._start = time.monotonic()
        self._done_at_start = 0

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        self.name, self.total, self.done, self.items = name, total, done, 0
        self._start, self._done_at_start = time.monotonic(), done

    def known(self, candidates: Sequence[Candidate]) -> None:
        """See `Reporter`."""
        for candidate in candidates:
            self._rank(candidate)

    def _rank(self, candidate: Candidate) -> None:
        if candidate.value is not None and candidate.number not in [c.number for c in self.top]:
            ranked = sorted([*self.top, candidate], key=lambda c: (-(c.value or 0), c.number))
            self.top = ranked[:TOP]

    def forecast(self, total: int | None) -> None:
        """See `Reporter`."""
        self.total = total

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`."""
        self.done += 1
        self.items += items
        if candidate.value is None:
            self.failed += 1
        self._rank(candidate)

    def note(self, message: str) -> None:
        """Do nothing."""

    @property
    def items_per_second(self) -> float:
        """Items scored per second in this stage."""
        return self.items / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds left in this stage at its pace so far."""
        done = self.done - self._done_at_start
        if not done or self.total is None:
            return 0.0
        return (time.monotonic() - self._start) / done * (self.total - self.done)

    def line(self) -> str:
        """Return one line: stage, count, best so far, speed, time left."""
        parts = [f"{self.name} {self.done}/{'?' if self.total is None else self.total}"]
        if self.top:
            parts.append(f"best {score(self.top[0].value)} ({self.top[0].name})")
        parts.append(f"{self.items_per_second:.0f} items/s")
        parts.append(f"ETA {duration(self.seconds_left)}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return " | ".join(parts)


def _print(console: Console, message: str) -> None:
    """Print a line; a closed pipe does not end the search."""
    if console.file.closed:
        return
    try:
        console.file.write(f"{message}\n")
        console.file.flush()
    except BrokenPipeError:
        log.warning("the output is closed; the search continues without it")
        console.quiet = True
        console.file = io.StringIO()


class PlainReporter(Tracker):
    """Lines for a log file: each baseline, each new best, and a line every ten seconds."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        super().__init__()
        self._console, self._every = console, every
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        super().stage(name, total, done)
        known = f", {done} known already" if done else ""
        many = "as many candidates as there is room for" if total is None else f"{total} candidates"
        self.note(f"{name}: {many}{known}")

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`."""
        best = self.top[:1]
        super().finished(candidate, items)
        now = time.monotonic()
        if candidate.failure:
            self.note(f"{candidate.name}: FAILED: {candidate.failure}")
        if self.top[:1] != best or now - self._last > self._every or self.done == self.total:
            self._last = now
            self.note(self.line())

    def note(self, message: str) -> None:
        """See `Reporter`."""
        _print(self._console, message)


class LiveReporter(Tracker):
    """A progress bar, the tracker's line and the best candidates, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
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

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """See `Reporter`."""
        super().stage(name, total, done)
        self._bar.reset(self._task, total=total, completed=done, description=name)
        self._live.update(self._view())

    def forecast(self, total: int | None) -> None:
        """See `Reporter`."""
        super().forecast(total)
        self._bar.update(self._task, total=total)

    def finished(self, candidate: Candidate, items: int) -> None:
        """See `Reporter`."""
        super().finished(candidate, items)
        self._bar.update(self._task, completed=self.done)
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
        for candidate in self.top:
            recipe = recipe_line(candidate.recipe, candidate.origin)
            top.add_row(candidate.name, score(candidate.value), recipe)
        return Group(self._bar, Text(self.line()), top)


def make_reporter(console: Console) -> PlainReporter | LiveReporter:
    """Return the live view on a terminal, plain lines elsewhere."""
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
