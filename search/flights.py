"""Candidates between proposal and journal: asked, in flight, landed, told.

Knows the proposer and the pace. Asks and tells happen in order of number, at moments that follow
from the numbers alone; results may come in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, Trial

from .candidate import SEARCHED, Candidate
from .generations import Pace
from .proposer import Proposer
from .space import Space


@dataclass
class Flight:
    """A searched candidate that the sampler has not been told yet.

    Attributes:
        trial: The proposer's.
        candidate: Blank while it is not scored.
        known: How many searched candidates its proposal knew.
        landed: Whether it is in the journal.
    """

    trial: Trial | int
    candidate: Candidate
    known: int
    landed: bool = False


class Flights:
    """Which candidate comes next, and when the sampler learns what.

    Args:
        proposer: Asked and told.
        space: Decodes genotypes.
        pace: Says what each proposal knows.
    """

    def __init__(self, proposer: Proposer, space: Space, pace: Pace) -> None:
        self._proposer, self._space, self._pace = proposer, space, pace
        self._untold: deque[Flight] = deque()
        self._told = 0

    def recall(self, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> None:
        """Take up what an earlier run has finished; the sampler learns what it had known then."""
        self._told = known = self._pace.known(sum(c.is_searched for c in candidates))
        seen = 0
        for trial, candidate in zip(trials, candidates, strict=True):
            seen += candidate.is_searched
            if candidate.is_searched and seen > known:
                number = self._proposer.reopen(trial)
                self._untold.append(Flight(number, candidate, known, landed=True))
            else:
                self._proposer.observe(trial)

    @property
    def asked(self) -> int:
        """Searched candidates proposed so far."""
        return self._told + len(self._untold)

    @property
    def known(self) -> int:
        """Searched candidates that the next proposal knows."""
        return self._pace.known(self.asked)

    @property
    def can_ask(self) -> bool:
        """Whether all that the next proposal must know is told."""
        return self.known <= self._told

    @property
    def waiting(self) -> int:
        """Proposed candidates that are not in the journal."""
        return sum(not flight.landed for flight in self._untold)

    def ask(self, number: int) -> Flight:
        """Propose the next candidate.

        Args:
            number: Its number in the journal.
        """
        known = self.known
        trial, genes = self._proposer.propose(number)
        recipe = self._space.decode(genes)
        blank = Candidate(number, f"candidate {number}", SEARCHED, recipe)
        self._untold.append(Flight(trial, blank, known))
        return self._untold[-1]

    def land(self, flight: Flight, candidate: Candidate) -> FrozenTrial:
        """Take a scored candidate, in order of number; return its trial for the journal."""
        assert isinstance(flight.trial, Trial)
        flight.candidate, flight.landed = candidate, True
        return self._proposer.finished(flight.trial, candidate.told, candidate.to_attribute())

    def tell(self) -> None:
        """Let the sampler learn what its next proposal shall know, if it is there."""
        while not self.can_ask and self._untold[0].landed:
            flight = self._untold.popleft()
            self._proposer.tell(
                flight.trial, flight.candidate.told, flight.candidate.to_attribute()
            )
            self._told += 1
