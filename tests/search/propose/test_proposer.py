"""Samplers by name, and the law that an interrupted search equals an uninterrupted one."""

import math
from typing import Any

import pytest
from heterosis.search.config.config import ConfigError
from heterosis.search.config.search import SearchSection
from heterosis.search.propose.proposer import Proposer, rehearse
from heterosis.search.propose.samplers import SAMPLERS, SamplerRow, trial_seed
from heterosis.search.storage.journal import Journal, lock_folder
from optuna.samplers import BaseSampler

from ..spaces import SPACE, make_space
from ..studies import run

MIXED = make_space(
    method=["ties", "linear", "dare_ties"], depth="constant", parameters={"normalize": [0, 1]}
)
TRIALS = 24


def landscape(genes: dict[str, float | str]) -> float | None:
    """A smooth score; every genotype far to the left fails."""
    values = [float(len(value)) if isinstance(value, str) else value for value in genes.values()]
    if values[0] < 0.2:
        return None
    return -sum((value - 0.1 * i) ** 2 for i, value in enumerate(values)) + math.sin(9 * values[0])


def begin(section: SearchSection, journal: Journal, space=SPACE) -> Proposer:
    """A proposer that knows what the journal holds; an empty journal gets two baselines."""
    proposer = Proposer(space, section)
    if not journal.trials:
        for params in (space.middle, None):
            journal.append(proposer.add(params, (0.5,), {"name": "given"}))
    else:
        for trial in journal.trials:
            proposer.observe(trial)
    return proposer


def search(
    folder, section: SearchSection, interrupted: bool, space=SPACE
) -> list[tuple[dict, float | None]]:
    with lock_folder(folder):
        journal = Journal(folder, write=True)
        proposer = begin(section, journal, space)
        for _ in range(TRIALS):
            trial, genes = proposer.propose(len(journal.trials))
            value = landscape(genes)
            told = None if value is None else (value,)
            journal.append(proposer.finished(trial, told, {"name": "asked"}))
            proposer.tell(trial, told)
            if interrupted:
                journal = Journal(folder, write=True)
                proposer = begin(section, journal, space)
        return [(t.params, t.values[0] if t.values else None) for t in journal.trials]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        ("CmaEsSampler", {}),
        ("CmaEsSampler", {"use_separable_cma": True}),
        ("TPESampler", {"n_startup_trials": 5}),
        ("RandomSampler", {}),
        ("QMCSampler", {}),
        ("QMCSampler", {"scramble": True}),
        ("NSGAIISampler", {"population_size": 6}),
        ("GPSampler", {"n_startup_trials": 20}),
    ],
)
@pytest.mark.parametrize("space", [SPACE, MIXED], ids=["numbers", "mixed"])
def test_an_interrupted_search_equals_an_uninterrupted_one(
    tmp_path, sampler, arguments, space, caplog
):
    section = SearchSection(sampler=sampler, sampler_args=arguments, run_seed=3)
    whole = search(tmp_path / "whole", section, interrupted=False, space=space)
    pieces = search(tmp_path / "pieces", section, interrupted=True, space=space)
    assert whole == pieces
    assert len({tuple(params.values()) for params, _ in whole if params}) > TRIALS / 2
    for name, methods in space.choices.items():
        assert {params[name] for params, _ in whole if params} == set(methods)
    assert not caplog.records


def test_cma_es_learns_across_generations(tmp_path):
    trials = search(tmp_path, SearchSection(run_seed=1), interrupted=False)
    early = [value for _, value in trials[2:10] if value is not None]
    late = [value for _, value in trials[-8:] if value is not None]
    assert sum(late) / len(late) > sum(early) / len(early)


def test_a_sampler_of_one_value_is_refused_for_several():
    section = SearchSection(objective="pareto", sampler="CmaEsSampler")
    with pytest.raises(ConfigError, match=r"CmaEsSampler` takes one value.* use NSGAIISampler"):
        rehearse(SPACE, section, 2)
    assert SearchSection(objective="pareto").sampler == "NSGAIISampler"
    rehearse(SPACE, SearchSection(objective="pareto"), 3)


def test_other_run_seeds_search_elsewhere(tmp_path):
    one = search(tmp_path / "1", SearchSection(run_seed=1), interrupted=False)
    two = search(tmp_path / "2", SearchSection(run_seed=2), interrupted=False)
    assert one[:2] == two[:2]
    assert all(a != b for a, b in zip(one[2:], two[2:], strict=True))


def test_seeds_differ_by_trial_and_by_run():
    seeds = {trial_seed(run_seed, number) for run_seed in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_all_named_samplers_are_optunas():
    assert {"CmaEsSampler", "TPESampler", "RandomSampler"} <= set(SAMPLERS)


class Corner(BaseSampler):
    """A sampler of ours: the lower bounds of all genes, then the upper ones."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution: Any):
        return param_distribution.high if trial.number % 2 else param_distribution.low


def test_a_sampler_added_to_the_table_is_searched_with(small_search, monkeypatch):
    path = small_search.write(search={"sampler": "Corner", "trials": 2, "dissect": False})
    with pytest.raises(ConfigError, match="got `Corner`"):
        run(path)
    monkeypatch.setitem(SAMPLERS, "Corner", SamplerRow(Corner))
    outcome, _ = run(path)
    assert outcome.finished
    numbers = [set(trial.params.values()) for trial in Journal(small_search.results).trials[-2:]]
    assert sorted(numbers, key=min) == [{0.0}, {1.0}]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sampler": "CmaEs"}, r"got `CmaEs`; (did you mean `CmaEsSampler`|known: .*CmaEsSampler)"),
        ({"sampler_args": {"popsise": 3}}, r"no argument `popsise`; did you mean `popsize`"),
        ({"sampler": "BruteForceSampler"}, r"cannot be `BruteForceSampler`, which needs a finite"),
        ({"sampler": "GridSampler"}, r"needs a finite .*; use one of CmaEsSampler, .*TPESampler$"),
        ({"sampler": "PartialFixedSampler"}, r"Sampler`, which only wraps another .*; use one of"),
        (
            {"sampler": "TPESampler", "sampler_args": {"n_startup_trials": "ten"}},
            r"`TPESampler` cannot propose with .*ten",
        ),
    ],
)
def test_each_mistake_is_reported(section, message):
    with pytest.raises(ConfigError, match=message):
        rehearse(SPACE, SearchSection(**section))
