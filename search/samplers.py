"""Optuna samplers by name, seeded so that an interrupted study equals an uninterrupted one.

One long-lived sampler carries a generator whose state a crash loses. So each trial gets a fresh
sampler, seeded by (run_seed, trial number); all else that samplers know they read from the trials.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from .config import ConfigError, SearchSection

ONE_SEQUENCE = ("QMCSampler",)
"""Samplers whose seed chooses one sequence for all trials; the study knows their place in it."""


def sampler_names() -> tuple[str, ...]:
    """Return the samplers that `search.sampler` may name: Optuna's own, by class name."""
    known = (
        name
        for name in optuna.samplers.__all__
        if inspect.isclass(cls := getattr(optuna.samplers, name)) and issubclass(cls, BaseSampler)
    )
    return tuple(sorted(set(known) - {"BaseSampler", "PartialFixedSampler", "GridSampler"}))


def check_sampler(section: SearchSection) -> None:
    """Build the sampler once and throw it away.

    Raises:
        ConfigError: If the name or an argument is not Optuna's, or a package is missing.
    """
    if section.sampler not in sampler_names():
        nearest = difflib.get_close_matches(section.sampler, sampler_names(), n=1, cutoff=0.4)
        hint = f"did you mean `{nearest[0]}`? " if nearest else ""
        raise ConfigError(
            f"search.sampler must be a sampler of optuna.samplers, got `{section.sampler}`; "
            f"{hint}known: {', '.join(sampler_names())}"
        )
    try:
        make_sampler(section, trial_number=0)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(
            f"search.sampler_args do not fit `{section.sampler}`: {' '.join(str(error).split())}"
        ) from error


def make_sampler(section: SearchSection, trial_number: int) -> BaseSampler:
    """Return a fresh sampler for one trial."""
    cls = getattr(optuna.samplers, section.sampler)
    arguments: dict[str, Any] = dict(section.sampler_args)
    if "seed" in inspect.signature(cls).parameters:
        number = 0 if section.sampler in ONE_SEQUENCE else trial_number
        arguments.setdefault("seed", trial_seed(section.run_seed, number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return cls(**arguments)


def trial_seed(run_seed: int, trial_number: int) -> int:
    """Return the 32-bit seed of a trial's sampler."""
    digest = hashlib.sha256(f"{run_seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
