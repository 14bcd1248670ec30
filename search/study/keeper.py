"""Keeps a study's finished candidates: items first, then the journal line.

Knows the journal, the item store and a disk that may be full; nothing of how candidates are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.trial import FrozenTrial

from ...evals.scores.scores import ItemScores
from ...evals.scores.store import COMPACT_AT, ItemStore
from ...evals.tasks.splits import SEARCH
from ..evaluate.evaluator import Failure
from ..storage.candidate import Candidate, candidate_of
from ..storage.files import Disk
from ..storage.journal import Journal
from .finalists import search_items
from .progress import Reporter


class Keeper:
    """The finished candidates of a study, in memory and on disk.

    Args:
        journal: The study's journal, open for writing.
        store: Item scores.
        reporter: Notified of finished candidates, and of a full disk.
        should_stop: Whether the user wants to end the search instead of waiting for room.

    Attributes:
        candidates: All finished candidates, in order of number.
        disk: Writes journal and items.
    """

    def __init__(
        self,
        journal: Journal,
        store: ItemStore,
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._journal, self.store, self._reporter = journal, store, reporter
        self.disk = Disk(reporter.note, should_stop)
        self.candidates = [candidate_of(trial) for trial in journal.trials]

    def clean_up(self) -> None:
        """Remove items of candidates that never reached the journal; compact the others."""
        done = len(self.candidates)
        self.store.drop(lambda trial: trial >= done)
        self.compact()

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """Trials of the finished candidates."""
        return self._journal.trials

    @property
    def scored_baselines(self) -> list[Candidate]:
        """Baselines that have a value."""
        return [c for c in self.candidates if c.is_baseline and c.value is not None]

    def keep(self, trial: FrozenTrial, candidate: Candidate, scores: ItemScores | Failure) -> None:
        """Write a finished candidate; its items first, as a journal line promises that they exist.

        Raises:
            StudyError: As `Journal.check_unchanged`.
        """
        self._journal.check_unchanged()
        n_items = 0
        if isinstance(scores, ItemScores):
            n_items = scores.n
            if candidate.value is not None:
                self.keep_items(candidate, SEARCH, scores)
        self.disk.write(lambda: self._journal.append(trial))
        self.disk.write(lambda: self.store.compact(least=COMPACT_AT))
        self.candidates.append(candidate)
        self._reporter.finished(candidate, n_items)

    def keep_items(self, candidate: Candidate, split: str, scores: ItemScores) -> None:
        """Write items of a candidate."""
        self.disk.write(lambda: self.store.append(candidate.number, split, scores))

    def compact(self) -> None:
        """Move all items into one file."""
        self.disk.write(self.store.compact)

    def search_items(self, candidate: Candidate) -> ItemScores:
        """Return the search items of a candidate that has a value."""
        scores = search_items(self.store, candidate)
        assert scores is not None  # `Study` has scored lost items again
        return scores
