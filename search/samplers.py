"""Optuna samplers by name, seeded so that an interrupted study equals an uninterrupted one.

One long-lived sampler carries a generator whose state a crash loses. So each trial gets a fresh
sampler, seeded by (run_seed, trial number); all else that samplers know they read from the trials.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from .config import ConfigError, SearchSection, hint

ONE_SEQUENCE = ("QMCSampler",)
"""Samplers whose seed chooses one sequence for all trials; the study knows their place in it."""


UNFIT = {"BaseSampler", "BaseGASampler", "PartialFixedSampler", "GridSampler", "BruteForceSampler"}
"""Of optuna.samplers, what is abstract, wraps another sampler, or needs a finite space."""


def sampler_names() -> tuple[str, ...]:
    """Return the samplers that `search.sampler` may name: Optuna's own, by class name."""
    known = (
        name
        for name in optuna.samplers.__all__
        if inspect.isclass(cls := getattr(optuna.samplers, name)) and issubclass(cls, BaseSampler)
    )
    return tuple(sorted(set(known) - UNFIT))


def check_sampler(section: SearchSection) -> None:
    """Refuse a sampler that is not there.

    Raises:
        ConfigError: If the name is not that of one of Optuna's samplers.
    """
    if section.sampler not in sampler_names():
        raise ConfigError(
            f"search.sampler must be a sampler of optuna.samplers, got `{section.sampler}`; "
            f"{hint(section.sampler, sampler_names())}"
        )


def make_sampler(section: SearchSection, trial_number: int) -> BaseSampler:
    """Return a fresh sampler for one trial."""
    cls = getattr(optuna.samplers, section.sampler)
    arguments: dict[str, Any] = dict(section.sampler_args)
    if "seed" in inspect.signature(cls).parameters:
        number = 0 if section.sampler in ONE_SEQUENCE else trial_number
        arguments["seed"] = trial_seed(section.run_seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return cls(**arguments)


def trial_seed(run_seed: int, trial_number: int) -> int:
    """Return the 32-bit seed of a trial's sampler."""
    digest = hashlib.sha256(f"{run_seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
