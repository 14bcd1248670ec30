"""What to try next: a sampler over the finished candidates, kept in memory.

Knows Optuna and the space. The sampler is told the candidates and those baselines that the space
holds; one outside the space would empty the intersection that CMA-ES works on. TPE and GP learn
from such baselines; CMA-ES takes from them the space, and starts at the best.
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
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ..config.config import ConfigError
from ..config.search import PARETO_SAMPLER, SearchSection
from ..storage.candidate import ATTRIBUTE, SEARCHED
from .samplers import check_sampler, make_sampler
from .space import Params, Space

SAMPLER_STATE = "sampler_state"
"""User attribute of a trial: what its sampler wrote into the study (QMC's place in its sequence,
a genetic algorithm's parents). It comes back with the trial: a resumed search goes on alike.
"""
FIRST_STEP = 1 / 6
"""Optuna's ``sigma0`` of CMA-ES, as a share of a gene's interval."""
OPTIMIZER, GENERATION = "optimizer:", "generation"
"""In the system attributes of a trial, after a prefix and a colon: the state of CMA-ES from which
the trial was drawn, and the number of its generation.
"""


def rehearse(space: Space, section: SearchSection, n_values: int = 1) -> None:
    """Let a sampler propose twice and forget it, so that wrong arguments show before the night.

    Args:
        space: Where it proposes.
        section: Which sampler.
        n_values: How many values it is told of each trial.

    Raises:
        ConfigError: If it cannot.
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
                f"search.sampler `{section.sampler}` handles one value, `objective: "
                f"{section.objective}` tells it {n_values}; use {PARETO_SAMPLER} or TPESampler"
            ) from error
        raise ConfigError(
            f"search.sampler `{section.sampler}` cannot propose with `sampler_args` "
            f"{section.sampler_args}: {' '.join(str(error).split())}"
        ) from error


class Proposer:
    """Asks a sampler and tells it what came of it.

    Args:
        space: Where it proposes.
        section: Which sampler.
        n_values: How many values it is told of each trial.
        start: Genotype where CMA-ES starts; default: the best that is given.
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
        self._kept: set[int] = set()
        self._spaces: dict[str, IntersectionSearchSpace] = {}

    def observe(self, trial: FrozenTrial) -> None:
        """Let the sampler know a trial that was finished before."""
        self._note_state(trial)
        if trial.params:
            bare = copy.copy(trial)  # Optuna copies all of it, and a recipe is long
            bare.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != ATTRIBUTE}
            self._study.add_trial(bare)
            self._begin_at(trial)
            for key, value in trial.user_attrs.get(SAMPLER_STATE, {}).items():
                self._storage.set_study_system_attr(self._study_id, key, value)

    def reopen(self, trial: FrozenTrial) -> int:
        """Take in a finished trial as one that is still running; return what `tell` calls it.

        For a search that goes on: what was in flight at a proposal is in flight at it again.
        """
        self._note_state(trial)
        running = copy.copy(trial)
        running.state, running.datetime_complete, running.values = TrialState.RUNNING, None, None
        number = len(self._study.get_trials(deepcopy=False))
        self.observe(running)
        return number

    def propose(self, number: int, given: Params | None = None) -> tuple[Trial, dict[str, Any]]:
        """Return the next trial and its genotype.

        Args:
            number: The journal's number of the trial: with the run seed it seeds the sampler.
            given: A genotype that is to be tried now, whatever the sampler would propose.
        """
        best = self._start[1] if self._start else None
        sampler = make_sampler(self._section, number, self._fixed or best)
        self._study.sampler = self._with_known_space(sampler)
        if given is not None:
            self._study.enqueue_trial(dict(given))
        before = self._sampler_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self._study.ask()
            genes = {name: _suggest(trial, name, d) for name, d in self._distributions.items()}
        changed = {k: v for k, v in self._sampler_state().items() if before.get(k) != v}
        if changed:
            trial.set_user_attr(SAMPLER_STATE, changed)
        return trial, genes

    def _with_known_space(self, sampler: BaseSampler) -> BaseSampler:
        """Hand a fresh sampler what those before it know of the space that all trials share.

        It follows from the trials alone, but a sampler that knows nothing of it looks at each of
        them, gene by gene: after 10,000 trials that takes it half a second.
        """
        for name, value in vars(sampler).items():
            if isinstance(value, IntersectionSearchSpace):
                setattr(sampler, name, self._spaces.setdefault(name, value))
        return sampler

    def finished(
        self, trial: Trial, values: Sequence[float] | None, attribute: dict[str, Any]
    ) -> FrozenTrial:
        """Return a proposed trial as it will be once the sampler is told of it."""
        frozen = copy.copy(self._storage.get_trial(trial._trial_id))
        frozen.user_attrs = frozen.user_attrs | {ATTRIBUTE: attribute}
        frozen.state = TrialState.FAIL if values is None else TrialState.COMPLETE
        frozen.datetime_complete = datetime.datetime.now()
        frozen.values = None if values is None else list(values)
        if _generation_kept(frozen) in self._kept:
            attributes = frozen.system_attrs.items()
            frozen.system_attrs = {k: v for k, v in attributes if OPTIMIZER not in k}
        self._note_state(frozen)
        return frozen

    def _note_state(self, trial: FrozenTrial) -> None:
        """Every trial of a generation has written the same state of CMA-ES: one record has it."""
        generation = _generation_kept(trial)
        if generation is not None and trial.state is TrialState.COMPLETE:
            self._kept.add(generation)

    def tell(self, trial: Trial | int, values: Sequence[float] | None) -> FrozenTrial:
        """Finish a trial; without values it failed."""
        if values is None:
            return self._study.tell(trial, state=TrialState.FAIL)
        return self._study.tell(trial, list(values))

    def add(
        self, params: Params | None, values: Sequence[float] | None, attribute: dict[str, Any]
    ) -> FrozenTrial:
        """Return a finished trial for a recipe that was given, and let the sampler know it."""
        trial = create_trial(
            state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            values=None if values is None else list(values),
            params=dict(params or {}),
            distributions=dict(self._distributions) if params else {},
            user_attrs={ATTRIBUTE: attribute},
        )
        self.observe(trial)
        return trial

    def _begin_at(self, trial: FrozenTrial) -> None:
        """Let the sampler start from a trial that was given, if it is the best of these so far."""
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
    """A genotype's numbers, a first step of CMA-ES away from their bounds."""
    found = {}
    for name, d in distributions.items():
        if isinstance(d, FloatDistribution):
            step = FIRST_STEP * (d.high - d.low)
            found[name] = min(max(params[name], d.low + step), d.high - step)
    return found


def _generation_kept(trial: FrozenTrial) -> int | None:
    """The generation of CMA-ES whose state a trial holds."""
    prefixes = (key.partition(":")[0] for key in trial.system_attrs if OPTIMIZER in key)
    prefix = next(prefixes, None)
    return None if prefix is None else trial.system_attrs[f"{prefix}:{GENERATION}"]


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> float | str:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(name, distribution.low, distribution.high)
    assert isinstance(distribution, CategoricalDistribution)
    return str(trial.suggest_categorical(name, distribution.choices))
