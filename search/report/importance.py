"""Which genes matter, estimated from all trials of a search. Knows trials; nothing of models.

A forest is asked how much each gene explains of the scores (Optuna's mean decrease of impurity),
several times over, on trials drawn again with replacement. Beside every gene it sees a shadow: the
same values in another order. A gene that does not beat every shadow is not told apart from chance.

A search does not try genes independently: one that drifts along with a better one looks like it.
The winner's dissection (dissection.py) tests genes; this is a hint before there is one.
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
"""Trials below which nothing is estimated (docs/experiments.md, "Genes from all trials")."""
MOST = 200
"""Trials that a forest sees, drawn at random: what more of them add is not worth their seconds."""
REPEATS = 8
"""Forests, each on trials drawn again."""
SHADOW = "shadow of "


@dataclass(frozen=True)
class Importance:
    """What the forests say of a gene, or of a curve where genes are many.

    Attributes:
        share: Of what they explain, the median.
        low: The least of them.
        high: The most of them.
        is_shown: Whether it explained more, every time, than any shadow ever did.
    """

    share: float
    low: float
    high: float
    is_shown: bool


@dataclass(frozen=True)
class Importances:
    """What the forests say.

    Attributes:
        genes: Gene or curve -> its importance, the greatest first.
        chance: The most that a shadow explained in any forest.
        trials: How many trials there are.
    """

    genes: Mapping[str, Importance]
    chance: float
    trials: int


def importances(trials: Sequence[FrozenTrial], values: Sequence[float]) -> Importances | None:
    """Estimate which genes matter, in the space of the last trial: a stage before has others.

    Args:
        trials: Of one search; those without a genotype do not count.
        values: What each of them scored, estimates of raced ones included.

    Returns:
        None where there are fewer than FEWEST trials, or none differs from another.
    """
    known = [(t, v) for t, v in zip(trials, values, strict=True) if t.params and np.isfinite(v)]
    known = [(t, v) for t, v in known if t.distributions == known[-1][0].distributions]
    if len(known) < FEWEST or len({v for _, v in known}) < 2:
        return None
    rows = [_forest(known, repeat) for repeat in range(REPEATS)]
    groups = curves(known[0][0].params)
    chance = max(max(_summed(row, groups, SHADOW).values()) for row in rows)
    found = {}
    for group, shares in _by_group([_summed(row, groups) for row in rows]).items():
        low, high = min(shares), max(shares)
        found[group] = Importance(float(np.median(shares)), low, high, is_shown=low > chance)
    order = sorted(found, key=lambda group: (-found[group].share, group))
    return Importances({g: found[g] for g in order}, chance, len(known))


def _forest(known: Sequence[tuple[FrozenTrial, float]], repeat: int) -> dict[str, float]:
    """Gene, and shadow of it -> its share, from one forest."""
    from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances

    random = np.random.default_rng(repeat)
    drawn = [known[i] for i in random.integers(len(known), size=min(len(known), MOST))]
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
    row: Mapping[str, float], groups: Mapping[str, Sequence[str]], before: str = ""
) -> dict[str, float]:
    return {g: float(sum(row[before + name] for name in own)) for g, own in groups.items()}


def _by_group(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {group: [row[group] for row in rows] for group in rows[0]}
