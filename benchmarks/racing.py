"""Racing rules compared: better candidates stopped, items spent on worse ones, estimate errors.

``python benchmarks/racing.py [STUDY ...]`` applies the rules to simulated margins, and replays
studies that were not raced as races, by compared quantity. The tables are in docs/experiments.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.stats.comparison import paired_difference
from heterosis.evals.stats.racing import Race, item_order, rung_ends
from heterosis.evals.stats.significance import Floats, wilcoxon_p
from heterosis.evals.tasks.splits import SEARCH
from heterosis.search.evaluate.objective import Objective
from heterosis.search.storage.candidate import candidate_of
from heterosis.search.storage.journal import Journal
from scipy import stats

N = 400
BETTER, WORSE = 0.1, -0.3  # mean difference, in standard deviations of the margins' differences
SKEW = 2.0  # shape of the gamma distribution of skewed differences
SEEDS = range(6)


def student(d: Floats) -> float:
    """Return one-sided p of the t-test."""
    t = d.mean() / (d.std(ddof=1) / np.sqrt(d.size)) if np.ptp(d) else 0.0
    return float(stats.t.cdf(t, d.size - 1))


def ranks(d: Floats) -> float:
    """Return one-sided p of the Wilcoxon test."""
    return float(wilcoxon_p(d[None], "less")[0])


RULES = {
    "WilcoxonPruner's defaults, every 4 items, p .1": (range(4, N, 4), 0.1, ranks),
    "blocks of 50, p .01, ranks": (range(50, N, 50), 0.01, ranks),
    "blocks of 50, p .01, Student": (range(50, N, 50), 0.01, student),
    "doubling from 50, p .01, ranks": (rung_ends(N)[:-1], 0.01, ranks),
    "doubling from 50, p .01, Student": (rung_ends(N)[:-1], 0.01, student),
}


def stopped_at(d: Floats, ends: Sequence[int], alpha: float, test: Callable) -> int:
    """Return the items scored when a rule stops a candidate, or all of them."""
    return next((end for end in ends if d[:end].any() and test(d[:end]) < alpha), d.size)


def differences(rng: np.random.Generator, kind: str, mean: float) -> Floats:
    """Draw paired differences of margins."""
    gamma = (rng.gamma(SKEW, size=N) - SKEW) / SKEW**0.5
    noise = {
        "normal": rng.normal(size=N),
        "long tail of losses": -gamma,
        "long tail of gains": gamma,
    }
    return mean + noise[kind]


def simulated(runs: int) -> None:
    """Print the rules' errors and savings on simulated margins."""
    print("| differences | rule | better stopped | equal stopped | items on worse |")
    for kind in ("normal", "long tail of losses", "long tail of gains"):
        for name, (ends, alpha, test) in RULES.items():
            rng = np.random.default_rng(0)
            at = {
                mean: [
                    stopped_at(differences(rng, kind, mean), ends, alpha, test) for _ in range(runs)
                ]
                for mean in (BETTER, 0.0, WORSE)
            }
            stopped = [np.mean(np.array(at[mean]) < N) for mean in (BETTER, 0.0)]
            cells = f"{stopped[0]:.1%} | {stopped[1]:.1%} | {np.mean(at[WORSE]) / N:.0%}"
            print(f"| {kind} | {name} | {cells} |", flush=True)


def right_or_wrong(scores: ItemScores) -> ItemScores:
    """Return scores without margins, so that values are compared."""
    return replace(scores, margin=np.full(scores.n, np.nan))


COMPARED = {"probability of the right answer": lambda s: s, "right or wrong": right_or_wrong}


class Replay:
    """A study that was not raced, replayed as races."""

    def __init__(self, folder: Path, compared: Callable[[ItemScores], ItemScores]) -> None:
        journal, store = Journal(folder), ItemStore(folder / "items")
        self.objective = Objective(**journal.begun["identity"]["objective"])
        scored = [c for c in map(candidate_of, journal.trials) if c.value is not None]
        read = {c.number: store.read(c.number, SEARCH) for c in scored}
        self.items = {number: s for number, s in read.items() if s is not None}
        self.compared = {number: compared(s) for number, s in self.items.items()}
        self.value = {c.number: c.value or 0.0 for c in scored}
        self.searched = [c.number for c in scored if c.is_searched]
        self.baselines = [c.number for c in scored if c.is_baseline]
        self.parents = tuple(self.items[c.number] for c in scored if c.kind == "parent")
        self.clear: dict[tuple[int, int], bool] = {}

    def is_clearly_better(self, a: int, b: int) -> bool:
        """Return whether a beats b by more than a standard error on all items."""
        if (a, b) not in self.clear:
            d = paired_difference(self.items[a], self.items[b], self.objective)
            self.clear[a, b] = d.value > d.se
        return self.clear[a, b]

    def run(self, seed: int, alpha: float) -> Iterator[tuple[str, float]]:
        """Yield counts and errors of one race."""
        race = Race(self.parents, self.objective.criteria, alpha, self.objective.terms)
        order = np.array(item_order(self.parents, seed))
        ends = rung_ends(order.size)
        best, values = max(self.baselines, key=self.value.__getitem__), {}
        for number in self.searched:
            values[number] = self.value[number]
            is_better = self.value[number] > self.value[best]
            is_clear = is_better and self.is_clearly_better(number, best)
            for end in ends:
                seen = self.compared[number].subset(np.sort(order[:end]))
                if end < order.size and race.is_lost(seen, self.compared[best]):
                    estimates = race.estimates(seen, self.compared[best], self.objective.terms)
                    values[number] = self.objective.value(
                        {t: s.value for t, s in estimates.items()}
                    )
                    yield "error", values[number] - self.value[number]
                    break
            yield "spent", end / order.size
            if is_better:
                yield "better", float(end < order.size)
            if is_clear:
                yield "clear", float(end < order.size)
            if is_better and end == order.size:
                best = number
        yield "best", self.value[best]
        ranks = [stats.rankdata([of[n] for n in self.searched]) for of in (values, self.value)]
        yield "rank", float(np.corrcoef(*ranks)[0, 1])


def replayed(folder: Path) -> None:
    """Print the races of a study that was not raced."""
    print(
        f"{folder.name}: compared | alpha | items | better stopped | clearly better stopped | best "
        "| error | rank"
    )
    for name, compared in COMPARED.items():
        replay = Replay(folder, compared)
        for alpha in (0.01, 0.05, 0.1):
            runs = [list(replay.run(seed, alpha)) for seed in SEEDS]
            figures: dict[str, list[float]] = {}
            for key, value in (pair for run in runs for pair in run):
                figures.setdefault(key, []).append(value)
            better, clear = (figures.get(key, []) for key in ("better", "clear"))
            cells = [
                f"{np.mean(figures['spent']):.0%}",
                f"{sum(better) / len(SEEDS):.1f} of {len(better) / len(SEEDS):.1f}",
                f"{sum(clear) / len(SEEDS):.1f} of {len(clear) / len(SEEDS):.1f}",
                f"{np.mean(figures['best']):.4f} of {max(replay.value.values()):.4f}",
                f"{np.mean(figures['error']):+.3f} +- {np.std(figures['error']):.3f}",
                f"{np.mean(figures['rank']):.3f}",
            ]
            print(f"| {name} | {alpha} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Racing rules compared.")
    parser.add_argument("studies", nargs="*", type=Path, help="folders of studies without a race")
    parser.add_argument("--runs", type=int, default=300, help="simulated candidates per cell")
    options = parser.parse_args()
    for folder in options.studies:
        replayed(folder)
    if options.runs:
        simulated(options.runs)


if __name__ == "__main__":
    main()
