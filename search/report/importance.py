"""Importances of genes, estimated from all trials of a search. Knows trials; nothing of models.

Random forests compute how much of the scores each gene explains (Optuna's mean decrease of
impurity), each on a bootstrap sample of the trials. Beside every gene they see its shadow: the same
values permuted. A gene that does not exceed every shadow is not distinguishable from chance.

Genes do not vary independently in a search: one that drifts along with a better one looks like it.
The ablation of the winner tests genes; this is a hint before there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, create_trial

from ..study.variants import curves

FEWEST = 50
"""Fewest trials for an estimate (docs/experiments.md, "Genes from all trials")."""
MOST = 200
"""Most trials that a forest sees, drawn at random: more are not worth their seconds."""
REPEATS = 8
"""Number of forests, each on its own bootstrap sample."""
SHADOW = "shadow of "


@dataclass(frozen=True)
class Importance:
    """Importance of a gene, or of a curve if there are many genes.

    Attributes:
        share: Its share of the explained variance, the median over forests.
        low: The smallest share.
        high: The largest share.
        is_shown: Whether its share exceeded that of every shadow in every forest.
    """

    share: float
    low: float
    high: float
    is_shown: bool


@dataclass(frozen=True)
class Importances:
    """Importances of all genes.

    Attributes:
        genes: Gene or curve -> its importance, the largest first.
        chance: The largest share of a shadow in any forest.
        trials: Number of trials.
    """

    genes: Mapping[str, Importance]
    chance: float
    trials: int


def importances(trials: Sequence[FrozenTrial], values: Sequence[float]) -> Importances | None:
    """Estimate the importances of genes in the space of the last trial's stage.

    Args:
        trials: Trials of one search; those without a genotype do not count.
        values: Their scores, estimates of raced ones included.

    Returns:
        None if there are fewer than FEWEST trials, or all scores are equal.
    """
    scored = [(t, v) for t, v in zip(trials, values, strict=True) if t.params and np.isfinite(v)]
    scored = [(t, v) for t, v in scored if t.distributions == scored[-1][0].distributions]
    if len(scored) < FEWEST or len({v for _, v in scored}) < 2:
        return None
    forests = [_forest(scored, repeat) for repeat in range(REPEATS)]
    groups = curves(scored[0][0].params)
    chance = max(max(_summed(forest, groups, SHADOW).values()) for forest in forests)
    sums = [_summed(forest, groups) for forest in forests]
    genes = {}
    for group in groups:
        shares = [shares_of[group] for shares_of in sums]
        low, high = min(shares), max(shares)
        genes[group] = Importance(float(np.median(shares)), low, high, is_shown=low > chance)
    order = sorted(genes, key=lambda group: (-genes[group].share, group))
    return Importances({group: genes[group] for group in order}, chance, len(scored))


def _forest(scored: Sequence[tuple[FrozenTrial, float]], repeat: int) -> dict[str, float]:
    """Share of each gene and of its shadow in one forest."""
    from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances

    random = np.random.default_rng(repeat)
    drawn = [scored[i] for i in random.integers(len(scored), size=min(len(scored), MOST))]
    names = list(drawn[0][0].params)
    orders = {name: random.permutation(len(drawn)) for name in names}
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(),
        study_name="importance",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for place, (trial, value) in enumerate(drawn):
        shadows = {SHADOW + n: drawn[orders[n][place]][0].params[n] for n in names}
        study.add_trial(
            create_trial(
                params={**trial.params, **shadows},
                distributions=_doubled(trial.distributions),
                value=value,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        forest = MeanDecreaseImpurityImportanceEvaluator(seed=repeat)
        return get_param_importances(study, evaluator=forest)


def _doubled(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    return {**distributions, **{SHADOW + name: d for name, d in distributions.items()}}


def _summed(
    shares: Mapping[str, float], groups: Mapping[str, Sequence[str]], prefix: str = ""
) -> dict[str, float]:
    """Share of each group of genes."""
    return {g: float(sum(shares[prefix + name] for name in genes)) for g, genes in groups.items()}
