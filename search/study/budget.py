"""How much a search may spend: candidates, items, or hours, of which a part is kept to confirm.

Knows clocks and finished candidates. Time is counted from the start by a clock that nobody can put
back; a search that shall end at a moment also ends when the wall's clock shows it: that may have
been put forward, or the machine may have slept.
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
"""Least and largest share of the time that is kept for confirmation."""


@dataclass(frozen=True)
class Limits:
    """What a search may spend; None where nothing is said.

    Attributes:
        trials: Candidates, those of earlier runs included.
        items: Items that candidates are scored on, those of earlier runs included.
        seconds: From now to the end, confirmation included.
        deadline: The moment of the end, if one was said; `seconds` are not more than until then.
    """

    trials: int | None = None
    items: int | None = None
    seconds: float | None = None
    deadline: datetime.datetime | None = None

    def candidates(self, seconds: float, items: int, before: float, after: float) -> int:
        """How many candidates there is room for.

        Args:
            seconds: That one takes.
            items: That one is scored on.
            before: Seconds of the baselines.
            after: Seconds that confirmation would take; what is kept for it lies within KEPT.
        """
        room = [self.trials] if self.trials is not None else []
        if self.items is not None:
            room.append(math.ceil(self.items / max(items, 1)))
        if self.seconds is not None:
            kept = _within(after, self.seconds)
            room.append(max(int((self.seconds - before - kept) / max(seconds, 1e-9)), 0))
        return min(room)


def _within(wanted: float, whole: float) -> float:
    # What is kept of a time for confirmation.
    return min(max(wanted, KEPT[0] * whole), KEPT[1] * whole)


def limits_of(
    section: SearchSection,
    deadline: str | None,
    candidates: Iterable[Candidate],
) -> Limits:
    """What may be spent from now on.

    Args:
        section: What the configuration says.
        deadline: From `settle_deadline`, kept with the study.
        candidates: All that are finished; their time counts against `hours`.
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
    """The moment that ``until`` means, ISO 8601: settled once, so that a resumed search keeps it.

    Args:
        section: What the configuration says.
        known: Manifest of the study so far; empty at the start.
        now: As this machine's clock shows it.
    """
    if section.until is None:
        return None
    if known and known["config"]["search"].get("until") == section.until:
        return known["machine"]["deadline"]
    return deadline_of(section.until, now).isoformat(timespec="seconds")


def is_spent(manifest: Mapping[str, Any], candidates: Sequence[Candidate]) -> bool:
    """Whether a study has spent what its configuration gives it.

    Args:
        manifest: The study's, begun.
        candidates: All that are finished.
    """
    section = SearchSection.model_validate(manifest["config"]["search"])
    limits = limits_of(section, manifest.get("machine", {}).get("deadline"), candidates)
    return Budget(limits, 0).spent(candidates) is not None


class Budget:
    """What is left of the limits while a search runs.

    Args:
        limits: What may be spent; the seconds count from here.
        confirm_items: Items that confirmation will score.
        clock: Seconds, never put back.
        wall: The wall's clock, with its zone.
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

    def spent(self, candidates: Sequence[Candidate], flying: int = 0) -> str | None:
        """Which limit ends the search before the next candidate; None while there is room.

        Args:
            candidates: All that are finished, baselines among them.
            flying: Candidates proposed besides; each is taken to cost what those did on average,
                or what a baseline does.
        """
        searched = [c for c in candidates if c.is_searched]
        limits = self.limits
        if limits.trials is not None and len(searched) + flying >= limits.trials:
            return f"{limits.trials} candidates"
        if limits.items is not None and _items(candidates, flying) >= limits.items:
            return f"{limits.items} items"
        return self.out_of_time(candidates)

    def used(self, candidates: Sequence[Candidate], flying: int = 0) -> float:
        """Share of the budget that is used: of that limit which will end the search.

        Args:
            candidates: All that are finished, baselines among them.
            flying: Candidates proposed besides, as in `spent`.
        """
        searched, limits = [c for c in candidates if c.is_searched], self.limits
        shares = [0.0]
        if limits.trials is not None:
            shares.append((len(searched) + flying) / max(limits.trials, 1))
        if limits.items is not None:
            shares.append(_items(candidates, flying) / limits.items)
        if limits.seconds is not None:
            gone = sum(map(time_spent, searched))
            left = self._left - self.kept(candidates)
            shares.append(gone / max(gone + left, gone, 1e-9))
        return max(shares)

    def out_of_time(self, candidates: Sequence[Candidate]) -> str | None:
        """Whether no candidate may begin any more: it would eat what is kept for confirmation."""
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
        """Seconds until the end, by whichever clock comes to it first."""
        seconds = math.inf if self.limits.seconds is None else self.limits.seconds
        left = seconds - self.elapsed
        if self.limits.deadline is None:
            return left
        return min(left, (self.limits.deadline - self._wall()).total_seconds())

    @property
    def is_over(self) -> bool:
        """Whether all time is spent, what was kept for confirmation too."""
        return self._left < 0

    def kept(self, candidates: Sequence[Candidate]) -> float:
        """Seconds kept for confirmation: what it will take at the candidates' pace, within KEPT."""
        if self.limits.seconds is None:
            return 0.0
        seconds = sum(c.seconds for c in candidates if c.value is not None)
        items = sum(c.items for c in candidates if c.value is not None)
        wanted = self._confirm_items * seconds / items if items else math.inf
        return _within(wanted, self.limits.seconds)

    def total(self, candidates: Sequence[Candidate]) -> int | None:
        """How many candidates there will be at the pace so far; None before the first."""
        searched = [c for c in candidates if c.is_searched]
        wanted = [self.limits.trials] if self.limits.trials is not None else []
        items, seconds = sum(c.items for c in searched), sum(time_spent(c) for c in searched)
        if self.limits.items is not None and items:
            wanted.append(math.ceil(len(searched) * self.limits.items / items))
        if self.limits.seconds is not None and seconds:
            left = self._left - self.kept(candidates)
            wanted.append(len(searched) + max(int(left * len(searched) / seconds), 0))
        return min(wanted, default=None)


def _items(candidates: Sequence[Candidate], flying: int) -> int:
    # Those of the searched ones; each in flight is taken to cost what they did on average.
    searched = [c for c in candidates if c.is_searched]
    cost = [c.items for c in searched or candidates if c.value is not None]
    ahead = math.ceil(flying * sum(cost) / max(len(cost), 1)) if flying else 0
    return sum(c.items for c in searched) + ahead


def time_spent(candidate: Candidate) -> float:
    """What a candidate has taken of the night (seconds): many may be scored at the same time."""
    return candidate.seconds if candidate.elapsed is None else candidate.elapsed


def _slowest(candidates: Sequence[Candidate]) -> float:
    # The next one may take as long as any of the last ten.
    return max((c.seconds for c in candidates[-10:]), default=0.0)
