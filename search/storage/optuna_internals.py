"""Internals of Optuna that heterosis relies on: names that Optuna does not promise to keep.

Checked with the versions that pyproject.toml allows; whoever raises them checks this file. Knows
Optuna alone.
"""

from __future__ import annotations

import copy
from typing import Any

from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial

SET_STUDY_ATTRIBUTE, CREATE_TRIAL = 2, 4
"""Operation codes in the journal: set a user attribute of the study, add a trial."""
_OPTIMIZER, _GENERATION = "optimizer:", "generation"
"""Keys of a trial's system attributes, after a prefix and a colon: the state of CMA-ES from which
the trial was drawn, and the number of its generation."""


def copy_of(storage: BaseStorage, trial: Trial) -> FrozenTrial:
    """Return a copy of a trial as the storage has it."""
    return copy.copy(storage.get_trial(trial._trial_id))


def cma_es_generation(trial: FrozenTrial) -> int | None:
    """Return the generation whose CMA-ES state a trial holds; None if it holds none."""
    keys = (key for key in trial.system_attrs if _OPTIMIZER in key)
    key = next(keys, None)
    return None if key is None else trial.system_attrs[f"{key.partition(':')[0]}:{_GENERATION}"]


def without_cma_es_state(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's system attributes without the state of CMA-ES."""
    return {key: value for key, value in trial.system_attrs.items() if _OPTIMIZER not in key}


def share_search_space(sampler: BaseSampler, spaces: dict[str, IntersectionSearchSpace]) -> None:
    """Give a fresh sampler the intersection of the trials' spaces as the samplers before it had it.

    It follows from the trials alone, but a sampler without it reads all trials, gene by gene: half
    a second after 10,000 trials.

    Args:
        sampler: A new sampler.
        spaces: Attribute of samplers -> intersection; the sampler's are added if missing.
    """
    for name, value in vars(sampler).items():
        if isinstance(value, IntersectionSearchSpace):
            setattr(sampler, name, spaces.setdefault(name, value))
