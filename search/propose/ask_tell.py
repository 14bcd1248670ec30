"""Candidates between proposal and journal: asked, in flight, landed, told.

Knows the stages of a search, their proposers and their pace. Asks and tells happen in order of
number, at moments that follow from the numbers alone; results may come in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, Trial

from ...evals.scores.scores import ItemScores
from ..config.search import SearchSection
from ..storage.candidate import SEARCHED, Candidate
from .proposer import Proposer
from .space import Params
from .stages import Stage, StageStart, first_stage, next_stage


@dataclass
class PendingTrial:
    """A searched candidate that the sampler has not been told yet.

    Attributes:
        trial: The proposer's.
        candidate: Blank while it is not scored.
        known: How many searched candidates its proposal knew.
        rivals: Items of whom it is raced against: the best of those.
        landed: Whether it is in the journal.
    """

    trial: Trial | int
    candidate: Candidate
    known: int
    rivals: tuple[ItemScores, ...] = ()
    landed: bool = False


class TrialQueue:
    """Which candidate comes next, and when the sampler learns what.

    Args:
        stages: Of the search, at least one; each has a sampler of its own.
        section: Which sampler.
        n_values: How many values it is told of each candidate.
    """

    def __init__(self, stages: Sequence[Stage], section: SearchSection, n_values: int = 1) -> None:
        self._stages, self._section, self._n_values = stages, section, n_values
        self._untold: deque[PendingTrial] = deque()
        self._told = 0
        self._is_closing = False
        self._enter(0, first_stage(stages[0]), before=0)

    def recall(self, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> None:
        """Take up what an earlier run has finished; the sampler learns what it had known then."""
        searched = [c for c in candidates if c.is_searched]
        index = max((c.stage or 0 for c in searched), default=0)
        before = sum((c.stage or 0) < index for c in searched)
        place = next((i for i, c in enumerate(candidates) if c.is_searched and c.stage == index), 0)
        if index:
            self._enter(index, self._next(index, trials[:place], candidates[:place]), before)
        self._told = known = self._knows(len(searched))
        seen = before
        for trial, candidate in list(zip(trials, candidates, strict=True))[place if index else 0 :]:
            seen += candidate.is_searched
            if candidate.is_searched and seen > known:
                number = self._proposer.reopen(trial)
                self._untold.append(PendingTrial(number, candidate, known, landed=True))
            elif candidate.is_searched or not index:
                self._proposer.observe(trial)

    @property
    def stage(self) -> Stage:
        """The stage that proposes now."""
        return self._stages[self._index]

    @property
    def beginning(self) -> StageStart:
        """How that stage was begun."""
        return self._begun

    def stage_of(self, candidate: Candidate) -> Stage:
        """The stage that a candidate was proposed in."""
        return self._stages[candidate.stage or 0]

    @property
    def asked(self) -> int:
        """Searched candidates proposed so far."""
        return self._told + len(self._untold)

    @property
    def known(self) -> int:
        """Searched candidates that the next proposal knows; all of them at the end of a stage."""
        return self.asked if self._is_closing else self._knows(self.asked)

    @property
    def can_ask(self) -> bool:
        """Whether all that the next proposal must know is told."""
        return self.known <= self._told

    @property
    def waiting(self) -> int:
        """Proposed candidates that are not in the journal."""
        return sum(not flight.landed for flight in self._untold)

    @property
    def is_between(self) -> bool:
        """Whether a stage is over, and all its candidates are told."""
        return self._is_closing and self.can_ask

    def end_stage(self, used: float) -> bool:
        """End the stage if it is over; nothing is proposed until all its candidates are told.

        Args:
            used: Share of the budget that is used.
        """
        if self._index + 1 == len(self._stages) or not self.stage.is_over(self.asked, used):
            return False
        self._is_closing = True
        self.tell()
        return True

    def begin_stage(self, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> None:
        """Begin the next stage around the best of all that are finished."""
        assert self.is_between
        index = self._index + 1
        self._is_closing = False
        self._enter(index, self._next(index, trials, candidates), self.asked)

    def ask(self, number: int) -> PendingTrial:
        """Propose the next candidate.

        Args:
            number: Its number in the journal.
        """
        known, within = self.known, self.asked - self._before
        given = self._begun.given[within : within + 1]
        origin, params = given[0] if given else (None, None)
        trial, genes = self._proposer.propose(number, params)
        recipe = self._begun.space.decode(genes)
        stage = self._index if len(self._stages) > 1 else None
        name = f"candidate {number}"
        blank = Candidate(number, name, SEARCHED, recipe, stage=stage, origin=origin)
        self._untold.append(PendingTrial(trial, blank, known))
        return self._untold[-1]

    def land(self, flight: PendingTrial, candidate: Candidate) -> FrozenTrial:
        """Take a scored candidate, in order of number; return its trial for the journal."""
        assert isinstance(flight.trial, Trial)
        flight.candidate, flight.landed = candidate, True
        return self._proposer.finished(flight.trial, candidate.told, candidate.to_attribute())

    def given(self, params: Params | None, candidate: Candidate) -> FrozenTrial:
        """Take a scored candidate that no sampler has proposed; return its trial."""
        return self._proposer.given(params, candidate.told, candidate.to_attribute())

    def tell(self) -> None:
        """Let the sampler learn what its next proposal shall know, if it is there."""
        while not self.can_ask and self._untold[0].landed:
            flight = self._untold.popleft()
            self._proposer.tell(flight.trial, flight.candidate.told)
            self._told += 1

    def _knows(self, asked: int) -> int:
        """Searched candidates that the one after so many knows, in the stage of now.

        What is given is proposed at once; all that comes after it knows it.
        """
        within, given = asked - self._before, len(self._begun.given)
        if within < given:
            return self._before
        return self._before + given + self.stage.pace.known(within - given)

    def _next(
        self, index: int, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
    ) -> StageStart:
        return next_stage(self._stages[index], self._stages[0].space, trials, candidates)

    def _enter(self, index: int, begun: StageStart, before: int) -> None:
        """Make a stage the one that proposes; so many searched candidates came before it."""
        self._index, self._begun, self._before = index, begun, before
        self._proposer = Proposer(begun.space, self._section, self._n_values, begun.middle)
        for params, candidate in begun.taught:
            self._proposer.given(params, candidate.told, candidate.to_attribute())
