"""Optuna samplers by name, seeded so that an interrupted study equals an uninterrupted one.

One long-lived sampler carries a generator whose state a crash loses. So each trial gets a fresh
sampler, seeded by (run_seed, trial number); all else that samplers know they read from the trials.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler

from ...merge.hints import hint
from ..config.config import ConfigError
from ..config.search import SearchSection

ONE_SEQUENCE = ("QMCSampler",)
"""Samplers whose seed chooses one sequence for all trials; the study knows their place in it."""
NUMBERS_ONLY = ("CmaEsSampler", "QMCSampler")
"""Samplers that know no choices: these are drawn independently."""
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


def make_sampler(
    section: SearchSection, trial_number: int, start: Mapping[str, float] | None = None
) -> BaseSampler:
    """Return a fresh sampler for one trial.

    What a sampler cannot handle together (CMA-ES and QMC know numbers only, no choices), it draws
    one by one at random, from the trial's own seed, and says nothing of it.

    Args:
        section: Which sampler, with what arguments.
        trial_number: With the run seed it seeds the sampler.
        start: Where a sampler begins that begins somewhere (CMA-ES's ``x0``), unless the section's
            arguments say otherwise.
    """
    cls = getattr(optuna.samplers, section.sampler)
    known = inspect.signature(cls).parameters
    seed = trial_seed(section.run_seed, trial_number)
    arguments: dict[str, Any] = {}
    if "seed" in known:
        is_one = section.sampler in ONE_SEQUENCE
        arguments["seed"] = trial_seed(section.run_seed, 0) if is_one else seed
    if "independent_sampler" in known:
        arguments["independent_sampler"] = RandomSampler(seed=seed)
        arguments["warn_independent_sampling"] = False
    if start and "x0" in known:
        arguments["x0"] = dict(start)
    arguments |= section.sampler_args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # `x0` is said to go in Optuna 6
        return cls(**arguments)


def trial_seed(run_seed: int, trial_number: int) -> int:
    """Return the 32-bit seed of a trial's sampler."""
    digest = hashlib.sha256(f"{run_seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
