"""Gene importance estimated from a search's trials: Optuna's evaluators against the truth.

    python benchmarks/importance.py results/reference/search/quickstart.npz

Searches are replayed on a recorded landscape, in its space plus a few genes without effect (idle
genes). The first table shows Optuna's evaluators, the second the report page's estimate
(search/report/importance.py): how often it shows an idle gene, or a true top gene, as significant.
The truth is the surrogate's: total-effect indices over the search space (Jansen's estimator).
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import RacingSection, SearchSection
from heterosis.search.propose.space import Space
from heterosis.search.report.importance import importances
from landscape import Landscape
from optuna.exceptions import ExperimentalWarning
from optuna.importance import (
    FanovaImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, create_trial
from samplers import Replay
from scipy.stats import qmc, rankdata, spearmanr

IDLE = tuple(f"idle.{number}" for number in range(4))
"""Genes without effect: any importance reported for them is noise."""

COUNTS = (30, 60, 100, 150, 300)
TOP = 4
"""Number of true top genes that an evaluator should rank first."""

Study = optuna.Study
Evaluator = Callable[[Study, int], Mapping[str, float]]


@dataclass(frozen=True)
class IdleSpace(Space):
    """A space with additional genes without effect."""

    @cached_property
    def _numbers(self) -> dict[str, tuple[float, float]]:
        return {**super()._numbers, **dict.fromkeys(IDLE, (0.0, 1.0))}


def trials_of(
    replay: Replay, space: Space, sampler: str, racing: bool, seed: int, count: int
) -> list[FrozenTrial]:
    """Return the trials of a search, as its journal would record them."""
    raced = RacingSection() if racing else False
    section = SearchSection(sampler=sampler, run_seed=seed, trials=count, racing=raced)
    steps = itertools.islice(replay.steps(space, section), count + 1)
    return [step.trial for step in steps if step.trial is not None]


def study_of(trials: list[FrozenTrial]) -> Study:
    """Return an Optuna study of the trials."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for t in trials:
        study.add_trial(create_trial(params=t.params, distributions=t.distributions, value=t.value))
    return study


def _optuna(make: Callable[[int], optuna.importance.BaseImportanceEvaluator]) -> Evaluator:
    return lambda study, seed: get_param_importances(study, evaluator=make(seed), normalize=False)


def _ranks(study: Study, _: int) -> dict[str, float]:
    """Return each gene's squared rank correlation with the score: the simplest estimate."""
    trials = study.get_trials(deepcopy=False)
    values = rankdata([t.value for t in trials])
    names = trials[0].params
    return {
        n: float(np.corrcoef(rankdata([t.params[n] for t in trials]), values)[0, 1] ** 2)
        for n in names
    }


EVALUATORS: dict[str, Evaluator] = {
    "PED-ANOVA, best 10 % (Optuna's default)": _optuna(lambda _: PedAnovaImportanceEvaluator()),
    "PED-ANOVA, best 25 %": _optuna(lambda _: PedAnovaImportanceEvaluator(target_quantile=0.25)),
    "PED-ANOVA, best 10 %, whole space": _optuna(
        lambda _: PedAnovaImportanceEvaluator(evaluate_on_local=False)
    ),
    "fANOVA": _optuna(lambda seed: FanovaImportanceEvaluator(seed=seed)),
    "mean decrease of impurity": _optuna(
        lambda seed: MeanDecreaseImpurityImportanceEvaluator(seed=seed)
    ),
    "squared rank correlation": _ranks,
}


def total_effects(replay: Replay, points: int = 512) -> dict[str, float]:
    """Return each gene's total-effect index: its share of variance, interactions included.

    Source:
        Jansen, Computer Physics Communications 117 (1999), Eq. 19.
    """
    genes = replay.parts.space.genes
    low, high = np.array(list(genes.values())).T
    unit = qmc.Sobol(2 * len(genes), rng=0).random(points)
    a, b = (low + half * (high - low) for half in np.split(unit, 2, axis=1))

    def scored(x: np.ndarray) -> np.ndarray:
        return np.array(
            [
                replay.value(
                    replay.predict(replay.parts.space, dict(zip(genes, row.tolist(), strict=True)))
                )
                for row in x
            ]
        )

    first, effects = scored(a), {}
    for index, gene in enumerate(genes):
        mixed = a.copy()
        mixed[:, index] = b[:, index]
        effects[gene] = float(((first - scored(mixed)) ** 2).mean() / 2 / first.var())
    return effects


def main() -> None:
    parser = argparse.ArgumentParser(description="Gene importance evaluators against the truth.")
    parser.add_argument("landscape", type=Path)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    landscape = Landscape.read(options.landscape)
    parts = landscape.setup(load_config(find_config(options.config)))
    replay = Replay(landscape, parts)
    truth = total_effects(replay)
    order = sorted(truth, key=lambda gene: -truth[gene])
    print("truth:", ", ".join(f"{gene} {truth[gene]:.3f}" for gene in order), flush=True)
    space = IdleSpace(**{n: getattr(parts.space, n) for n in parts.space.__dataclass_fields__})
    print("| search | candidates | evaluator | rank | top | first idle | repeat | seconds |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    raced: list[list[FrozenTrial]] = []
    for title, sampler, racing in (
        ("CMA-ES, raced", "CmaEsSampler", True),
        ("CMA-ES, every item", "CmaEsSampler", False),
    ):
        runs = [
            trials_of(replay, space, sampler, racing, seed, max(COUNTS))
            for seed in range(options.seeds)
        ]
        if racing:
            raced = runs
        for count in COUNTS:
            for name, evaluate in EVALUATORS.items():
                ranks, tops, idles, vectors, seconds = [], [], [], [], []
                for seed, trials in enumerate(runs):
                    study = study_of(trials[:count])
                    start = time.process_time()
                    importance = evaluate(study, seed)
                    seconds.append(time.process_time() - start)
                    mine = sorted(importance, key=lambda gene: -importance[gene])
                    vectors.append([importance[gene] for gene in truth])
                    ranks.append(float(np.asarray(spearmanr(vectors[-1], list(truth.values())))[0]))
                    tops.append(len(set(mine[:TOP]) & set(order[:TOP])) / TOP)
                    idles.append(min(mine.index(gene) for gene in IDLE) + 1)
                pairs = np.corrcoef(np.array([rankdata(v) for v in vectors]))
                repeat = pairs[np.triu_indices(len(vectors), 1)].mean()
                print(
                    f"| {title} | {count} | {name} | {np.mean(ranks):.2f} ± {np.std(ranks):.2f} | "
                    f"{np.mean(tops):.2f} | {np.median(idles):.0f} | {repeat:.2f} | "
                    f"{np.mean(seconds):.3f} |",
                    flush=True,
                )
    print("\n| candidates | idle genes shown | top genes shown | seconds |\n|---:|---:|---:|---:|")
    for count in COUNTS[1:]:
        print(_shown(raced, count, order[:TOP]), flush=True)


def _shown(runs: list[list[FrozenTrial]], count: int, first: list[str]) -> str:
    """Return a table row: how often the page shows idle genes and the true top genes."""
    start, idle, true = time.process_time(), [], []
    for trials in runs:
        result = importances(trials[:count], [t.value or 0.0 for t in trials[:count]])
        assert result is not None
        idle += [result.genes[gene].is_shown for gene in IDLE]
        true += [result.genes[gene].is_shown for gene in first]
    seconds = (time.process_time() - start) / len(runs)
    return f"| {count} | {np.mean(idle):.3f} | {np.mean(true):.2f} | {seconds:.2f} |"


if __name__ == "__main__":
    main()
