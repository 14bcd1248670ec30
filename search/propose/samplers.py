"""Samplers by name, seeded so that an interrupted study equals an uninterrupted one.

Knows Optuna's samplers and ours. A long-lived sampler has a generator whose state a crash loses. So
each trial gets a fresh sampler, seeded by (run_seed, trial number); all other state that samplers
have they read from the trials.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler

from ...merge.hints import hint
from ..config.config import ConfigError
from ..config.search import SearchSection


@dataclass(frozen=True)
class SamplerRow:
    """A sampler that `search.sampler` may name.

    Attributes:
        make: Makes it, mostly its class. If it takes `seed`, `independent_sampler` (for what it
            cannot sample jointly) or `x0` (a genotype to start from), it gets them.
        population: Its argument for the size of a generation; None if it has no generations.
        default_population: Its default for that, from the number of genes.
        learns_choices: Whether it learns choices; if not, they are drawn at random.
        is_one_sequence: Whether its seed chooses one sequence for all trials; the study knows its
            place in it.
    """

    make: Callable[..., BaseSampler]
    population: str | None = None
    default_population: Callable[[int], int] | None = None
    learns_choices: bool = True
    is_one_sequence: bool = False


def _cma_es_population(genes: int) -> int:
    """Return the default that cmaes takes (Hansen, arXiv:1604.00772, Eq. 48)."""
    return 4 + math.floor(3 * math.log(max(genes, 1)))


UNFIT = {
    "BaseGASampler": "is abstract",
    "BaseSampler": "is abstract",
    "BruteForceSampler": "needs a finite space, and weights are real numbers",
    "GridSampler": "needs a finite space, and weights are real numbers",
    "PartialFixedSampler": "only wraps another sampler (a number in `space` fixes a gene)",
}
"""Name in optuna.samplers that cannot be used -> why."""
_CMA_ES = SamplerRow(
    optuna.samplers.CmaEsSampler, "popsize", _cma_es_population, learns_choices=False
)
_QMC = SamplerRow(optuna.samplers.QMCSampler, learns_choices=False, is_one_sequence=True)
_GENETIC = "population_size", lambda _: 50
"""Argument of Optuna's genetic samplers, and its default."""
SAMPLERS: dict[str, SamplerRow] = {
    name: SamplerRow(cls)
    for name in sorted(set(optuna.samplers.__all__) - UNFIT.keys())
    if inspect.isclass(cls := getattr(optuna.samplers, name)) and issubclass(cls, BaseSampler)
} | {
    "CmaEsSampler": _CMA_ES,
    "NSGAIISampler": SamplerRow(optuna.samplers.NSGAIISampler, *_GENETIC),
    "NSGAIIISampler": SamplerRow(optuna.samplers.NSGAIIISampler, *_GENETIC),
    "QMCSampler": _QMC,
}
"""Name in `search.sampler` -> sampler: Optuna's by class name, and ours."""


def check_sampler(section: SearchSection) -> None:
    """Refuse an unknown sampler, and arguments that it does not have.

    Raises:
        ConfigError: If no sampler has the name, or it cannot be used; if it lacks an argument.
    """
    if section.sampler in UNFIT:
        raise ConfigError(
            f"search.sampler cannot be `{section.sampler}`, which {UNFIT[section.sampler]}; use "
            f"one of {', '.join(SAMPLERS)}"
        )
    if section.sampler not in SAMPLERS:
        raise ConfigError(
            f"search.sampler must be a sampler of optuna.samplers, got `{section.sampler}`; "
            f"{hint(section.sampler, SAMPLERS)}"
        )
    known = [name for name in _parameters(SAMPLERS[section.sampler]) if name != "seed"]
    for name in section.sampler_args:
        if name not in known:
            raise ConfigError(
                f"search.sampler_args: `{section.sampler}` has no argument `{name}`; "
                f"{hint(name, known)}"
            )


def _parameters(row: SamplerRow) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(row.make).parameters


def make_sampler(
    section: SearchSection, trial_number: int, start: Mapping[str, float] | None = None
) -> BaseSampler:
    """Return a fresh sampler for one trial.

    Genes that a sampler cannot sample jointly (CMA-ES and QMC: choices) are drawn independently at
    random, from the trial's seed, without a warning.

    Args:
        section: The sampler's name and arguments.
        trial_number: Seeds the sampler, with the run seed.
        start: Genotype to start from (CMA-ES's ``x0``), unless the arguments give another.
    """
    row = SAMPLERS[section.sampler]
    parameters = _parameters(row)
    seed = trial_seed(section.run_seed, trial_number)
    arguments: dict[str, Any] = {}
    if "seed" in parameters:
        arguments["seed"] = trial_seed(section.run_seed, 0) if row.is_one_sequence else seed
    if "independent_sampler" in parameters:
        arguments["independent_sampler"] = RandomSampler(seed=seed)
        arguments["warn_independent_sampling"] = False
    if start and "x0" in parameters:
        arguments["x0"] = dict(start)
    arguments |= section.sampler_args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will drop `x0`
        return row.make(**arguments)


def trial_seed(run_seed: int, trial_number: int) -> int:
    """Return the 32-bit seed of a trial's sampler."""
    digest = hashlib.sha256(f"{run_seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
