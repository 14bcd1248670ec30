"""The proposer: a sampler over the finished candidates, in an Optuna study in memory.

Knows Optuna and the space. The sampler gets the candidates and the baselines inside the space; one
outside would empty the intersection of the trials' spaces in which CMA-ES searches. TPE and GP
learn from baselines; CMA-ES only takes the space from them and starts at the best one.
"""

from __future__ import annotations

import copy
import datetime
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ..config.config import ConfigError
from ..config.search import PARETO_SAMPLER, SearchSection
from ..storage.candidate import ATTRIBUTE, SEARCHED
from ..storage.optuna_internals import (
    cma_es_generation,
    copy_of,
    share_search_space,
    without_cma_es_state,
)
from .samplers import check_sampler, make_sampler
from .space import Params, Space

SAMPLER_STATE = "sampler_state"
"""User attribute of a trial: the study attributes that its sampler has set (QMC's place in its
sequence, a genetic algorithm's parents). A resumed search sets them again with the trial."""
FIRST_STEP = 1 / 6
"""Optuna's ``sigma0`` of CMA-ES, as a share of a gene's interval."""


def rehearse(space: Space, section: SearchSection, n_values: int = 1) -> None:
    """Let a sampler propose twice, so that wrong arguments show before the search.

    Args:
        space: The space.
        section: The sampler's name and arguments.
        n_values: Number of values of each trial.

    Raises:
        ConfigError: If it cannot propose.
    """
    check_sampler(section)
    try:
        proposer, values = Proposer(space, section, n_values), (0.0,) * n_values
        proposer.add(space.middle, values, {})
        for number in (1, 2):
            trial, _ = proposer.propose(number)
            proposer.tell(trial, values)
    except (TypeError, ValueError, ImportError, AttributeError, AssertionError) as error:
        if n_values > 1 and "multi-objective" in str(error):
            raise ConfigError(
                f"search.sampler `{section.sampler}` takes one value per trial, `objective: "
                f"{section.objective}` has {n_values}; use {PARETO_SAMPLER} or TPESampler"
            ) from error
        raise ConfigError(
            f"search.sampler `{section.sampler}` cannot propose with `sampler_args` "
            f"{section.sampler_args}: {' '.join(str(error).split())}"
        ) from error


class Proposer:
    """Asks a sampler for trials and tells it their values.

    Args:
        space: The space.
        section: The sampler's name and arguments.
        n_values: Number of values of each trial.
        start: Genotype at which CMA-ES starts; default: the best trial that was added.
    """

    def __init__(
        self,
        space: Space,
        section: SearchSection,
        n_values: int = 1,
        start: Params | None = None,
    ) -> None:
        self._section = section
        self._distributions: dict[str, BaseDistribution] = {
            **{name: FloatDistribution(*bounds) for name, bounds in space.genes.items()},
            **{name: CategoricalDistribution(names) for name, names in space.choices.items()},
        }
        self._fixed = None if start is None else _inside(start, self._distributions)
        self._start: tuple[float, dict[str, float]] | None = None
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="proposer",
            directions=[StudyDirection.MAXIMIZE] * n_values,
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.NopPruner(),
        )
        self._generations: set[int] = set()  # of CMA-ES, whose state a finished trial holds
        self._shared: dict[str, IntersectionSearchSpace] = {}

    def observe(self, trial: FrozenTrial) -> None:
        """Give the sampler a trial that is finished already."""
        self._note_generation(trial)
        if trial.params:
            bare = copy.copy(trial)  # Optuna copies all attributes, and a recipe is long
            bare.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != ATTRIBUTE}
            self._study.add_trial(bare)
            self._consider_start(trial)
            for key, value in trial.user_attrs.get(SAMPLER_STATE, {}).items():
                self._storage.set_study_system_attr(self._study_id, key, value)

    def reopen(self, trial: FrozenTrial) -> int:
        """Add a finished trial as a running one; return its number for `tell`.

        For a resumed search: trials that were pending at a proposal are pending again.
        """
        self._note_generation(trial)
        running = copy.copy(trial)
        running.state, running.datetime_complete, running.values = TrialState.RUNNING, None, None
        number = len(self._study.get_trials(deepcopy=False))
        self.observe(running)
        return number

    def propose(self, number: int, params: Params | None = None) -> tuple[Trial, dict[str, Any]]:
        """Return the next trial and its genotype.

        Args:
            number: The trial's number in the journal; seeds the sampler, with the run seed.
            params: A genotype to be tried instead of the sampler's proposal.
        """
        best = self._start[1] if self._start else None
        self._study.sampler = make_sampler(self._section, number, self._fixed or best)
        share_search_space(self._study.sampler, self._shared)
        if params is not None:
            self._study.enqueue_trial(dict(params))
        before = self._sampler_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask()
            genes = {name: _suggest(trial, name, d) for name, d in self._distributions.items()}
        changed = {k: v for k, v in self._sampler_state().items() if before.get(k) != v}
        if changed:
            trial.set_user_attr(SAMPLER_STATE, changed)
        return trial, genes

    def finished(
        self, trial: Trial, values: Sequence[float] | None, attribute: dict[str, Any]
    ) -> FrozenTrial:
        """Return a proposed trial as it will be once the sampler has its values."""
        frozen = copy_of(self._storage, trial)
        frozen.user_attrs = frozen.user_attrs | {ATTRIBUTE: attribute}
        frozen.state = TrialState.FAIL if values is None else TrialState.COMPLETE
        frozen.datetime_complete = datetime.datetime.now()
        frozen.values = None if values is None else list(values)
        # All trials of a generation hold the same state of CMA-ES: the first one's is kept.
        if cma_es_generation(frozen) in self._generations:
            frozen.system_attrs = without_cma_es_state(frozen)
        self._note_generation(frozen)
        return frozen

    def _note_generation(self, trial: FrozenTrial) -> None:
        generation = cma_es_generation(trial)
        if generation is not None and trial.state is TrialState.COMPLETE:
            self._generations.add(generation)

    def tell(self, trial: Trial | int, values: Sequence[float] | None) -> FrozenTrial:
        """Tell the sampler the values of a trial; None if it failed."""
        if values is None:
            return self._study.tell(trial, state=TrialState.FAIL)
        return self._study.tell(trial, list(values))

    def add(
        self, params: Params | None, values: Sequence[float] | None, attribute: dict[str, Any]
    ) -> FrozenTrial:
        """Add a finished trial that no sampler has proposed, and return it."""
        trial = create_trial(
            state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            values=None if values is None else list(values),
            params=dict(params or {}),
            distributions=dict(self._distributions) if params else {},
            user_attrs={ATTRIBUTE: attribute},
        )
        self.observe(trial)
        return trial

    def _consider_start(self, trial: FrozenTrial) -> None:
        """Start the sampler at a trial that it has not proposed, if it is the best of these."""
        kind = trial.user_attrs.get(ATTRIBUTE, {}).get("kind")
        if kind == SEARCHED or trial.state != TrialState.COMPLETE or len(trial.values) != 1:
            return
        if self._start is None or trial.values[0] > self._start[0]:
            self._start = trial.values[0], _inside(trial.params, self._distributions)

    @property
    def _study_id(self) -> int:
        return self._storage.get_study_id_from_name(self._study.study_name)

    def _sampler_state(self) -> dict[str, Any]:
        return dict(self._storage.get_study_system_attrs(self._study_id))


def _inside(
    params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> dict[str, float]:
    """Return a genotype's numbers, at least a first step of CMA-ES away from their bounds."""
    inside = {}
    for name, d in distributions.items():
        if isinstance(d, FloatDistribution):
            step = FIRST_STEP * (d.high - d.low)
            inside[name] = min(max(params[name], d.low + step), d.high - step)
    return inside


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> float | str:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high)
    assert isinstance(distribution, CategoricalDistribution)
    return str(trial.suggest_categorical(name, distribution.choices))
