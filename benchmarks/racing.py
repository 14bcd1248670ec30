"""What racing rules stop: better candidates lost, items spent on worse ones, errors of estimates.

``python benchmarks/racing.py [STUDY ...]``: rules on simulated margins; of studies that were not
raced also the race that these would have had, by what is compared. Its tables are in
docs/experiments.md.
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
BETTER, WORSE = 0.1, -0.3  # of a standard deviation of the margins' differences
SKEW = 2.0  # shape of the gamma that skews them
SEEDS = range(6)


def student(d: Floats) -> float:
    t = d.mean() / (d.std(ddof=1) / np.sqrt(d.size)) if np.ptp(d) else 0.0
    return float(stats.t.cdf(t, d.size - 1))


def ranks(d: Floats) -> float:
    return float(wilcoxon_p(d[None], "less")[0])


RULES = {
    "WilcoxonPruner's defaults, every 4 items, p .1": (range(4, N, 4), 0.1, ranks),
    "blocks of 50, p .01, ranks": (range(50, N, 50), 0.01, ranks),
    "blocks of 50, p .01, Student": (range(50, N, 50), 0.01, student),
    "doubling from 50, p .01, ranks": (rung_ends(N)[:-1], 0.01, ranks),
    "doubling from 50, p .01, Student": (rung_ends(N)[:-1], 0.01, student),
}


def stopped_at(d: Floats, ends: Sequence[int], alpha: float, test: Callable) -> int:
    return next((end for end in ends if d[:end].any() and test(d[:end]) < alpha), d.size)


def differences(rng: np.random.Generator, kind: str, mean: float) -> Floats:
    """Paired differences of margins."""
    gamma = (rng.gamma(SKEW, size=N) - SKEW) / SKEW**0.5
    noise = {
        "normal": rng.normal(size=N),
        "long tail of losses": -gamma,
        "long tail of gains": gamma,
    }
    return mean + noise[kind]


def simulated(runs: int) -> None:
    print("| differences | rule | better lost | equal stopped | items on worse |")
    for kind in ("normal", "long tail of losses", "long tail of gains"):
        for name, (ends, alpha, test) in RULES.items():
            rng = np.random.default_rng(0)
            at = {
                mean: [
                    stopped_at(differences(rng, kind, mean), ends, alpha, test) for _ in range(runs)
                ]
                for mean in (BETTER, 0.0, WORSE)
            }
            lost = [np.mean(np.array(at[mean]) < N) for mean in (BETTER, 0.0)]
            cells = f"{lost[0]:.1%} | {lost[1]:.1%} | {np.mean(at[WORSE]) / N:.0%}"
            print(f"| {kind} | {name} | {cells} |", flush=True)


def right_or_wrong(scores: ItemScores) -> ItemScores:
    """Without margins, so that values are compared."""
    return replace(scores, margin=np.full(scores.n, np.nan))


COMPARED = {"probability of the right answer": lambda s: s, "right or wrong": right_or_wrong}


class Replay:
    """A study that was not raced, and the races it would have had."""

    def __init__(self, folder: Path, compared: Callable[[ItemScores], ItemScores]) -> None:
        journal, store = Journal(folder), ItemStore(folder / "items")
        self.objective = Objective(**journal.begun["identity"]["objective"])
        known = [c for c in map(candidate_of, journal.trials) if c.value is not None]
        read = {c.number: store.read(c.number, SEARCH) for c in known}
        self.items = {number: s for number, s in read.items() if s is not None}
        self.compared = {number: compared(s) for number, s in self.items.items()}
        self.value = {c.number: c.value or 0.0 for c in known}
        self.searched = [c.number for c in known if c.is_searched]
        self.baselines = [c.number for c in known if c.is_baseline]
        self.parents = tuple(self.items[c.number] for c in known if c.kind == "parent")
        self.clear: dict[tuple[int, int], bool] = {}

    def is_clearly_better(self, a: int, b: int) -> bool:
        """By more than a standard error on all items."""
        if (a, b) not in self.clear:
            found = paired_difference(self.items[a], self.items[b], self.objective)
            self.clear[a, b] = found.value > found.se
        return self.clear[a, b]

    def run(self, seed: int, alpha: float) -> Iterator[tuple[str, float]]:
        """Counts and errors of one race."""
        race = Race(self.parents, self.objective.criteria, alpha, self.objective.terms)
        order = np.array(item_order(self.parents, seed))
        ends = rung_ends(order.size)
        best, told = max(self.baselines, key=self.value.__getitem__), {}
        for number in self.searched:
            told[number] = self.value[number]
            is_better = self.value[number] > self.value[best]
            is_clear = is_better and self.is_clearly_better(number, best)
            for end in ends:
                seen = self.compared[number].subset(np.sort(order[:end]))
                if end < order.size and race.is_lost(seen, self.compared[best]):
                    found = race.estimates(seen, self.compared[best], self.objective.terms)
                    told[number] = self.objective.value({t: s.value for t, s in found.items()})
                    yield "error", told[number] - self.value[number]
                    break
            yield "spent", end / order.size
            if is_better:
                yield "lost", float(end < order.size)
            if is_clear:
                yield "clear", float(end < order.size)
            if is_better and end == order.size:
                best = number
        yield "best", self.value[best]
        ranks = [stats.rankdata([of[n] for n in self.searched]) for of in (told, self.value)]
        yield "rank", float(np.corrcoef(*ranks)[0, 1])


def replayed(folder: Path) -> None:
    print(f"{folder.name}: compared | level | items | better lost | clearly | best | error | rank")
    for name, compared in COMPARED.items():
        replay = Replay(folder, compared)
        for alpha in (0.01, 0.05, 0.1):
            runs = [list(replay.run(seed, alpha)) for seed in SEEDS]
            found: dict[str, list[float]] = {}
            for key, value in (pair for run in runs for pair in run):
                found.setdefault(key, []).append(value)
            lost, clear = (found.get(key, []) for key in ("lost", "clear"))
            cells = [
                f"{np.mean(found['spent']):.0%}",
                f"{sum(lost) / len(SEEDS):.1f} of {len(lost) / len(SEEDS):.1f}",
                f"{sum(clear) / len(SEEDS):.1f} of {len(clear) / len(SEEDS):.1f}",
                f"{np.mean(found['best']):.4f} of {max(replay.value.values()):.4f}",
                f"{np.mean(found['error']):+.3f} +- {np.std(found['error']):.3f}",
                f"{np.mean(found['rank']):.3f}",
            ]
            print(f"| {name} | {alpha} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What racing rules stop.")
    parser.add_argument("studies", nargs="*", type=Path, help="folders of studies without a race")
    parser.add_argument("--runs", type=int, default=300, help="simulated candidates per cell")
    options = parser.parse_args()
    for folder in options.studies:
        replayed(folder)
    if options.runs:
        simulated(options.runs)


if __name__ == "__main__":
    main()
