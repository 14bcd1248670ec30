"""Trials for tests: random genotypes, and values in which two genes count."""

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

NAMES = ("strong", "weak", "idle.0", "idle.1")
METHODS = ("ties", "linear")


def trials_of(count, seed=0, genes=NAMES):
    random = np.random.default_rng(seed)
    distributions: dict[str, BaseDistribution] = dict.fromkeys(genes, FloatDistribution(0.0, 1.0))
    distributions["method"] = CategoricalDistribution(METHODS)
    return [
        create_trial(
            params={
                **{name: float(random.random()) for name in genes},
                "method": str(random.choice(METHODS)),
            },
            distributions=distributions,
            value=0.0,
        )
        for _ in range(count)
    ]


def values_of(trials, seed=1):
    noise = np.random.default_rng(seed).normal(scale=0.1, size=len(trials))
    own = [t.params for t in trials]
    return [p["strong"] + (p["method"] == "ties") + e for p, e in zip(own, noise, strict=True)]
