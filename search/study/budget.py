"""The budget of a search: candidates, items, or time, part of which is kept for confirmation.

Knows clocks and finished candidates. Time is counted from the start by a monotonic clock; a search
with a deadline also ends when the system clock shows it: that may have been put forward, or the
machine may have slept.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.search import SearchSection, deadline_of
from ..storage.candidate import Candidate

KEPT = (0.1, 0.2)
"""Smallest and largest share of the time that is kept for confirmation."""


@dataclass(frozen=True)
class Limits:
    """Limits of a search; None: no limit.

    Attributes:
        trials: Candidates, including those of earlier runs.
        items: Items that candidates are scored on, including those of earlier runs.
        seconds: Time from now to the end, including confirmation.
        deadline: Date and time of the end; `seconds` do not reach beyond it.
    """

    trials: int | None = None
    items: int | None = None
    seconds: float | None = None
    deadline: datetime.datetime | None = None

    def candidates(self, seconds: float, items: int, before: float, after: float) -> int:
        """Return how many candidates fit.

        Args:
            seconds: Seconds per candidate.
            items: Items per candidate.
            before: Seconds of the baselines.
            after: Seconds of confirmation; the time kept for it is bounded by KEPT.
        """
        room = [self.trials] if self.trials is not None else []
        if self.items is not None:
            room.append(math.ceil(self.items / max(items, 1)))
        if self.seconds is not None:
            kept = _within(after, self.seconds)
            room.append(max(int((self.seconds - before - kept) / max(seconds, 1e-9)), 0))
        return min(room)


def _within(wanted: float, total: float) -> float:
    """Return the seconds of a total that are kept for confirmation."""
    return min(max(wanted, KEPT[0] * total), KEPT[1] * total)


def limits_of(
    section: SearchSection,
    deadline: str | None,
    candidates: Iterable[Candidate],
) -> Limits:
    """Return the limits from now on.

    Args:
        section: The configuration's section.
        deadline: From `settle_deadline`, in the study's manifest.
        candidates: All finished candidates; their time counts against `hours`.
    """
    ends, moment = [], None
    if section.hours is not None:
        ends.append(section.hours * 3600 - sum(time_spent(c) for c in candidates))
    if deadline is not None:
        moment = datetime.datetime.fromisoformat(deadline)
        ends.append((moment - _now()).total_seconds())
    return Limits(section.trials, section.items, min(ends, default=None), moment)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def settle_deadline(
    section: SearchSection, known: Mapping[str, Any], now: datetime.datetime
) -> str | None:
    """Return the date and time that ``until`` means, ISO 8601; a resumed search keeps it.

    Args:
        section: The configuration's section.
        known: The study's manifest; empty at the start.
        now: Local time.
    """
    if section.until is None:
        return None
    if known and known["config"]["search"].get("until") == section.until:
        return known["machine"]["deadline"]
    return deadline_of(section.until, now).isoformat(timespec="seconds")


def is_spent(manifest: Mapping[str, Any], candidates: Sequence[Candidate]) -> bool:
    """Return whether a study has spent its budget.

    Args:
        manifest: The study's manifest.
        candidates: All finished candidates.
    """
    section = SearchSection.model_validate(manifest["config"]["search"])
    limits = limits_of(section, manifest.get("machine", {}).get("deadline"), candidates)
    return Budget(limits, 0).spent(candidates) is not None


class Budget:
    """The budget of a running search.

    Args:
        limits: The limits; seconds count from now.
        confirm_items: Number of items that confirmation will score.
        clock: Returns seconds; monotonic.
        wall: Returns the system's date and time, with its zone.
    """

    def __init__(
        self,
        limits: Limits,
        confirm_items: int,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime.datetime] = _now,
    ) -> None:
        """Start the clock."""
        self.limits = limits
        self._confirm_items, self._clock, self._wall = confirm_items, clock, wall
        self._start = clock()

    def spent(self, candidates: Sequence[Candidate], pending: int = 0) -> str | None:
        """Return the limit that ends the search before the next candidate; None: none does.

        Args:
            candidates: All finished candidates, including baselines.
            pending: Number of proposed candidates besides, counted at the average cost of the
                searched ones, or of the baselines.
        """
        searched = [c for c in candidates if c.is_searched]
        limits = self.limits
        if limits.trials is not None and len(searched) + pending >= limits.trials:
            return f"{limits.trials} candidates"
        if limits.items is not None and _items(candidates, pending) >= limits.items:
            return f"{limits.items} items"
        return self.out_of_time(candidates)

    def used(self, candidates: Sequence[Candidate], pending: int = 0) -> float:
        """Return the used share of the limit that will end the search.

        Args:
            candidates: All finished candidates, including baselines.
            pending: As in `spent`.
        """
        searched, limits = [c for c in candidates if c.is_searched], self.limits
        shares = [0.0]
        if limits.trials is not None:
            shares.append((len(searched) + pending) / max(limits.trials, 1))
        if limits.items is not None:
            shares.append(_items(candidates, pending) / limits.items)
        if limits.seconds is not None:
            gone = sum(map(time_spent, searched))
            left = self._left - self.kept(candidates)
            shares.append(gone / max(gone + left, gone, 1e-9))
        return max(shares)

    def out_of_time(self, candidates: Sequence[Candidate]) -> str | None:
        """Return "the time" if another candidate would use time kept for confirmation."""
        limits = self.limits
        if limits.seconds is None:
            return None
        left = self._left - self.kept(candidates)
        return "the time" if left < _slowest(candidates) else None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def _left(self) -> float:
        """Seconds until the end, by the clock that reaches it first."""
        seconds = math.inf if self.limits.seconds is None else self.limits.seconds
        left = seconds - self.elapsed
        if self.limits.deadline is None:
            return left
        return min(left, (self.limits.deadline - self._wall()).total_seconds())

    @property
    def is_over(self) -> bool:
        """Whether all time is spent, including that for confirmation."""
        return self._left < 0

    def kept(self, candidates: Sequence[Candidate]) -> float:
        """Return the seconds kept for confirmation: its forecast, bounded by KEPT."""
        if self.limits.seconds is None:
            return 0.0
        seconds = sum(c.seconds for c in candidates if c.value is not None)
        items = sum(c.items for c in candidates if c.value is not None)
        wanted = self._confirm_items * seconds / items if items else math.inf
        return _within(wanted, self.limits.seconds)

    def total(self, candidates: Sequence[Candidate]) -> int | None:
        """Return the expected number of candidates at the pace so far; None before the first."""
        searched = [c for c in candidates if c.is_searched]
        wanted = [self.limits.trials] if self.limits.trials is not None else []
        items, seconds = sum(c.items for c in searched), sum(time_spent(c) for c in searched)
        if self.limits.items is not None and items:
            wanted.append(math.ceil(len(searched) * self.limits.items / items))
        if self.limits.seconds is not None and seconds:
            left = self._left - self.kept(candidates)
            wanted.append(len(searched) + max(int(left * len(searched) / seconds), 0))
        return min(wanted, default=None)


def _items(candidates: Sequence[Candidate], pending: int) -> int:
    """Return the items of searched candidates; pending ones count at the average."""
    searched = [c for c in candidates if c.is_searched]
    cost = [c.items for c in searched or candidates if c.value is not None]
    ahead = math.ceil(pending * sum(cost) / max(len(cost), 1)) if pending else 0
    return sum(c.items for c in searched) + ahead


def time_spent(candidate: Candidate) -> float:
    """Return the seconds of search time that a candidate took; several may be scored at once."""
    return candidate.seconds if candidate.elapsed is None else candidate.elapsed


def _slowest(candidates: Sequence[Candidate]) -> float:
    """Return the longest time of the last ten candidates: the next one may take as long."""
    return max((c.seconds for c in candidates[-10:]), default=0.0)
