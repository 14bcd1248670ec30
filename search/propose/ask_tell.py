"""Trials between ask and tell, in the order of their numbers.

Knows the stages of a search, their proposers and their pace. Asks and tells come in order of
number, at moments that follow from the numbers alone; results may come in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, Trial

from ..config.search import SearchSection
from ..storage.candidate import SEARCHED, Candidate
from .proposer import Proposer
from .space import Params
from .stages import Stage, StageStart, first_stage, next_stage


@dataclass
class PendingTrial:
    """A searched candidate whose values the sampler does not have yet.

    Attributes:
        trial: The proposer's trial.
        candidate: Without scores until it is finished.
        n_known: Number of searched candidates that its proposal knew.
        is_finished: Whether it is in the journal.
    """

    trial: Trial | int
    candidate: Candidate
    n_known: int
    is_finished: bool = False


class TrialQueue:
    """Decides which candidate comes next, and when the sampler gets which values.

    Args:
        stages: Stages of the search, at least one; each has a sampler.
        section: Names the sampler.
        n_values: Number of values per candidate.
    """

    def __init__(self, stages: Sequence[Stage], section: SearchSection, n_values: int = 1) -> None:
        self._stages, self._section, self._n_values = stages, section, n_values
        self._pending: deque[PendingTrial] = deque()
        self._n_told = 0
        self._is_closing = False
        self._enter(0, first_stage(stages[0]), n_before=0)

    def restore(self, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> None:
        """Restore the state after the finished trials of an earlier run.

        The sampler gets the values that it had then; the other finished trials stay pending.
        """
        searched = [c for c in candidates if c.is_searched]
        index = max((c.stage or 0 for c in searched), default=0)
        n_before = sum((c.stage or 0) < index for c in searched)
        first = next((i for i, c in enumerate(candidates) if c.is_searched and c.stage == index), 0)
        if index:
            self._enter(index, self._next(index, trials[:first], candidates[:first]), n_before)
        self._n_told = n_known = self._n_known_after(len(searched))
        n_seen = n_before
        pairs = list(zip(trials, candidates, strict=True))
        for trial, candidate in pairs[first if index else 0 :]:
            n_seen += candidate.is_searched
            if candidate.is_searched and n_seen > n_known:
                number = self._proposer.reopen(trial)
                self._pending.append(PendingTrial(number, candidate, n_known, is_finished=True))
            elif candidate.is_searched or not index:
                self._proposer.observe(trial)

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self._stages[self._index]

    @property
    def start(self) -> StageStart:
        """The start of the current stage."""
        return self._start

    def stage_of(self, candidate: Candidate) -> Stage:
        """Return the stage in which a candidate was proposed."""
        return self._stages[candidate.stage or 0]

    @property
    def n_asked(self) -> int:
        """Number of searched candidates proposed so far."""
        return self._n_told + len(self._pending)

    @property
    def n_known(self) -> int:
        """Number of searched candidates that the next proposal knows; all at a stage's end."""
        return self.n_asked if self._is_closing else self._n_known_after(self.n_asked)

    @property
    def can_ask(self) -> bool:
        """Whether the sampler has all values that the next proposal must know."""
        return self.n_known <= self._n_told

    @property
    def n_unfinished(self) -> int:
        """Number of proposed candidates that are not in the journal."""
        return sum(not pending.is_finished for pending in self._pending)

    @property
    def is_between_stages(self) -> bool:
        """Whether a stage is over and the sampler has all its values."""
        return self._is_closing and self.can_ask

    def end_stage(self, used: float) -> bool:
        """End the stage if it is over; nothing is proposed until the sampler has all its values.

        Args:
            used: Share of the budget that is used.
        """
        if self._index + 1 == len(self._stages) or not self.stage.is_over(self.n_asked, used):
            return False
        self._is_closing = True
        self.tell()
        return True

    def begin_stage(self, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> None:
        """Begin the next stage around the best of all finished candidates."""
        assert self.is_between_stages
        index = self._index + 1
        self._is_closing = False
        self._enter(index, self._next(index, trials, candidates), self.n_asked)

    def ask(self, number: int) -> PendingTrial:
        """Propose the next candidate.

        Args:
            number: Its number in the journal.
        """
        n_known, within = self.n_known, self.n_asked - self._n_before
        enqueued = self._start.enqueued[within : within + 1]
        origin, params = enqueued[0] if enqueued else (None, None)
        trial, genes = self._proposer.propose(number, params)
        recipe = self._start.space.decode(genes)
        stage = self._index if len(self._stages) > 1 else None
        name = f"candidate {number}"
        blank = Candidate(number, name, SEARCHED, recipe, stage=stage, origin=origin)
        self._pending.append(PendingTrial(trial, blank, n_known))
        return self._pending[-1]

    def finish(self, pending: PendingTrial, candidate: Candidate) -> FrozenTrial:
        """Finish a scored candidate, in order of number; return its trial for the journal."""
        assert isinstance(pending.trial, Trial)
        pending.candidate, pending.is_finished = candidate, True
        return self._proposer.finished(
            pending.trial, candidate.sampler_values, candidate.to_attribute()
        )

    def add(self, params: Params | None, candidate: Candidate) -> FrozenTrial:
        """Add a scored candidate that no sampler has proposed; return its trial."""
        return self._proposer.add(params, candidate.sampler_values, candidate.to_attribute())

    def tell(self) -> None:
        """Tell the sampler the values that its next proposal must know, as far as finished."""
        while not self.can_ask and self._pending[0].is_finished:
            pending = self._pending.popleft()
            self._proposer.tell(pending.trial, pending.candidate.sampler_values)
            self._n_told += 1

    def _n_known_after(self, n_asked: int) -> int:
        """Number of searched candidates that the proposal after ``n_asked`` others knows.

        Enqueued trials of a stage are proposed at once; all later ones know them.
        """
        within, n_enqueued = n_asked - self._n_before, len(self._start.enqueued)
        if within < n_enqueued:
            return self._n_before
        return self._n_before + n_enqueued + self.stage.pace.n_known(within - n_enqueued)

    def _next(
        self, index: int, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]
    ) -> StageStart:
        return next_stage(self._stages[index], self._stages[0].space, trials, candidates)

    def _enter(self, index: int, start: StageStart, n_before: int) -> None:
        """Make a stage the current one, after ``n_before`` searched candidates of others."""
        self._index, self._start, self._n_before = index, start, n_before
        self._proposer = Proposer(start.space, self._section, self._n_values, start.middle)
        for params, candidate in start.seed_trials:
            self.add(params, candidate)
