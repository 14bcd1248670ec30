"""Size and power of paired tests on continuous scores, and the speed of the batched test.

``python benchmarks/comparing.py`` (about a minute) applies every test to the same simulated
differences. Size is the share of p < 0.05 where the mean difference is 0, power where it is 2.5
standard errors. The tables are in docs/experiments.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from heterosis.evals.scores.scores import ItemScores, item_scores
from heterosis.evals.stats import comparison
from heterosis.evals.stats.comparison import paired_difference, paired_differences
from heterosis.evals.stats.significance import Floats, percentile, resampled, wilcoxon_p
from heterosis.search.evaluate.objective import Objective
from scipy import stats

ALPHA = 0.05
SHIFT = 2.5  # standard errors
DRAWS = 2000
SIZES = (8, 12, 20, 30, 50, 100, 400)

Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

DIFFERENCES: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 1.0),
    "two lognormals, symmetric": (
        lambda rng, shape: rng.lognormal(size=shape) - rng.lognormal(size=shape),
        float(np.sqrt(2 * (np.e - 1) * np.e)),
    ),
    "exponential, skewed": (lambda rng, shape: rng.exponential(size=shape) - 1.0, 1.0),
    "lognormal, skewed": (
        lambda rng, shape: rng.lognormal(size=shape) - float(np.exp(0.5)),
        float(np.sqrt((np.e - 1) * np.e)),
    ),
}
"""Distributions of paired differences (mean 0), with their standard deviations."""


def bootstrap_means(d: Floats) -> Floats:
    """Return bootstrap means of each row of differences (C, B)."""
    return np.vstack([block @ d.T for block in resampled(d.shape[1], DRAWS, 0, 0)]).T / d.shape[1]


def percentile_p(means: Floats) -> Floats:
    """Return two-sided p of the percentile bootstrap."""
    below = (means < 0).mean(axis=1)
    return 2 * np.minimum(below, 1 - below)


def bca_p(means: Floats, d: Floats) -> Floats:
    """Return two-sided p of the BCa bootstrap (Efron 1987, eqs. 2.3 and 6.6)."""

    def quantile_of(at: Floats) -> Floats:
        below = np.clip((means < at[:, None]).sum(axis=1), 0.5, DRAWS - 0.5)
        return stats.norm.ppf(below / DRAWS)

    value = d.mean(axis=1)
    moves = d - value[:, None]
    skew = (moves**3).sum(axis=1) / (6 * (moves**2).sum(axis=1) ** 1.5)
    bias = quantile_of(value)
    w = quantile_of(np.zeros_like(value)) - bias
    return 2 * stats.norm.sf(np.abs(w / np.maximum(1 + skew * w, 1e-6) - bias))


def p_values(d: Floats) -> dict[str, Floats]:
    """Return two-sided p of each test for rows of differences (C, n)."""
    n, value, means = d.shape[1], d.mean(axis=1), bootstrap_means(d)
    z = value / (d.std(axis=1, ddof=1) / np.sqrt(n))
    return {
        "normal": 2 * stats.norm.sf(np.abs(z)),
        "t": 2 * stats.t.sf(np.abs(z), n - 1),
        "wilcoxon": wilcoxon_p(d),
        "percentile": percentile_p(means),
        "BCa": bca_p(means, d),
        "expanded": percentile(means, value, np.full(len(d), n - 1))[0],
    }


def table(runs: int) -> None:
    """Print size and power of each test."""
    print("| differences | n | " + " | ".join(p_values(np.eye(2))) + " |")
    for name, (draw, sd) in DIFFERENCES.items():
        for n in SIZES:
            d = draw(np.random.default_rng([1, n]), (runs, n))
            null, shifted = p_values(d), p_values(d + SHIFT * sd / np.sqrt(n))
            cells = [
                f"{np.mean(null[t] < ALPHA):.3f} / {np.mean(shifted[t] < ALPHA):.2f}" for t in null
            ]
            print(f"| {name} | {n} | " + " | ".join(cells) + " |", flush=True)


def models(c: int, n: int, tasks: Sequence[str]) -> list[ItemScores]:
    """Return random continuous scores of c models on n items."""
    rng = np.random.default_rng(0)
    header = {
        "tasks": tasks,
        "metrics": ["acc,none"] * len(tasks),
        "aggregations": ["mean"] * len(tasks),
        "higher_is_better": [True] * len(tasks),
    }
    at = np.repeat(np.arange(len(tasks)), n // len(tasks))
    fixed = {"task_index": at, "doc_id": np.arange(at.size), "weight": np.ones(at.size)}
    values = [rng.normal(size=at.size) for _ in range(c)]
    return [item_scores(header, fixed | {"value": v, "margin": v}) for v in values]


def speed(c: int, n: int) -> None:
    """Print the time of comparing c candidates with one incumbent, batched and in a loop."""
    tasks = ("a", "b")
    objective = Objective("mean", dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 1))
    *many, incumbent = models(c + 1, n, tasks)
    paired_differences(many[:2], incumbent, objective)  # warm up: imports and cached draws
    start = time.process_time()
    batched = paired_differences(many, incumbent, objective)
    middle = time.process_time()
    loop = [paired_difference(a, incumbent, objective) for a in many]
    end = time.process_time()
    largest = max(abs(one.p - p) for one, p in zip(loop, batched.p, strict=True))
    print(
        f"C={c}, n={n}, {comparison.DRAWS} draws: batched {middle - start:.2f} s, loop "
        f"{end - middle:.2f} s, ratio {(end - middle) / (middle - start):.1f}, "
        f"p differs by at most {largest:.1e} (CPU clock)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and power of the paired tests.")
    parser.add_argument("--runs", type=int, default=2000, help="simulated comparisons per row")
    options = parser.parse_args()
    table(options.runs)
    speed(1000, 400)


if __name__ == "__main__":
    main()
