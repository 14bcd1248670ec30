"""The setup of a worker on another device: open parents and tasks, load the model, once.

Knows how a search is built; nothing of Ray, samplers or the journal.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from ...evals.scores.fingerprint import parts_of
from ...evals.stats.racing import Race
from ..config.config import Config
from ..evaluate.workers import Score, score_job

OURS = "heterosis"
"""This package's name on PyPI."""


def _program() -> str:
    return version(OURS)


@dataclass(frozen=True)
class WorkerSetup:
    """Settings that the driver sends to every worker; called there, returns what scores jobs.

    Attributes:
        config: The search's configuration.
        machine: Scoring path and CPU threads, chosen by the driver.
        identity: The driver's identity; a worker must have the same parents, tasks, versions and
            requests.
        race: The driver's race; None: candidates are not raced.
        program: Version of this program on the driver's side.
    """

    config: Config
    machine: Mapping[str, Any]
    identity: Mapping[str, Any]
    race: Race | None
    program: str = field(default_factory=_program)

    def __call__(self) -> Score:
        """Build the evaluator and plan the rungs.

        Raises:
            StudyError: If this machine's identity differs from the driver's.
            ValueError: As `open_parts`.
        """
        from ..evaluate.racing import plan_rungs
        from .build import build_engine, build_evaluator, make_scorer, set_threads
        from .parts import open_parts
        from .resume import identity

        self._check_program()
        parts = open_parts(_on_one_device(self.config))
        self._check(identity(parts))
        engine = build_engine(parts)
        scorer = make_scorer(parts, engine.model)
        set_threads(parts, scorer, self.machine["threads"])
        scorer.path = self.machine["path"]
        self._check({"requests": parts_of(scorer.fingerprint)})
        evaluator = build_evaluator(parts, engine, scorer)
        race = self.race
        if race is not None:
            plan_rungs(scorer, race, parts.config.search)
        return partial(score_job, evaluator, race)

    def _check_program(self) -> None:
        from ..storage.journal import StudyError

        if self.program != _program():
            raise StudyError(
                f"worker on {socket.gethostname()}: all machines must run the same {OURS}, the "
                f"driver has {self.program}, this one {_program()}; install the driver's there"
            )

    def _check(self, now: Mapping[str, Any]) -> None:
        from ..storage.journal import StudyError
        from .resume import check_identity

        try:
            check_identity(self.identity, now, self.config.results_folder)
        except StudyError as error:
            raise StudyError(f"worker on {socket.gethostname()}: {error}") from None


def _on_one_device(config: Config) -> Config:
    """Return the configuration for the one card that a worker sees, whatever its number."""
    if not config.merge.device.startswith("cuda:"):
        return config
    return config.model_copy(update={"merge": config.merge.model_copy(update={"device": "cuda"})})
