"""What racing rules stop: better candidates killed, items spent on worse ones, bias of estimates.

``python benchmarks/racing.py [ITEMS.parquet ...]``: on simulated margins, and with stores of whole
studies also on the order, races and estimates that these would have had. Its tables are in
docs/experiments.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from heterosis.evals.racing import item_order, rung_ends, should_stop, shrunken_estimate
from heterosis.evals.scores import COLUMNS, ItemScores
from heterosis.evals.significance import Floats, wilcoxon_p
from heterosis.evals.store import ItemStore
from heterosis.search.objective import Objective
from scipy import stats

N = 400
BETTER, WORSE = 0.1, -0.3  # of a standard deviation of the margins' differences
SKEW = 2.0  # shape of the gamma that skews them


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


def stopped_at(d: Floats, ends: Sequence[int], alpha: float, test) -> int:
    return next((end for end in ends if d[:end].any() and test(d[:end]) < alpha), d.size)


def differences(rng: np.random.Generator, kind: str, mean: float) -> Floats:
    """Paired differences of margins, or of 0/1 answers of which a quarter differ."""
    noise = {
        "normal": lambda: rng.normal(size=N),
        "skewed": lambda: (SKEW - rng.gamma(SKEW, size=N)) / SKEW**0.5,  # long tail of losses
        "skewed the other way": lambda: (rng.gamma(SKEW, size=N) - SKEW) / SKEW**0.5,
    }
    if kind in noise:
        return mean + noise[kind]()
    shift = mean / 4  # the same candidates: accuracies move by a quarter of a margin's spread
    return rng.choice([-1.0, 0.0, 1.0], size=N, p=[(0.25 - shift) / 2, 0.75, (0.25 + shift) / 2])


def simulated(runs: int) -> None:
    print("| differences | rule | better killed | equal killed | items on worse |")
    for kind in ("normal", "skewed", "skewed the other way", "0/1"):
        for name, (ends, alpha, test) in RULES.items():
            rng = np.random.default_rng(0)
            at = {
                mean: [
                    stopped_at(differences(rng, kind, mean), ends, alpha, test) for _ in range(runs)
                ]
                for mean in (BETTER, 0.0, WORSE)
            }
            killed = [np.mean(np.array(at[mean]) < N) for mean in (BETTER, 0.0)]
            cells = f"{killed[0]:.1%} | {killed[1]:.1%} | {np.mean(at[WORSE]) / N:.0%}"
            print(f"| {kind} | {name} | {cells} |", flush=True)


def part(scores: ItemScores, rows: np.ndarray) -> ItemScores:
    rows = np.sort(rows)
    return replace(scores, **{name: getattr(scores, name)[rows] for name in COLUMNS})


def trials(path: Path) -> Iterator[ItemScores]:
    """Search scores of a study's trials, in order."""
    store = ItemStore(path.parent)
    for trial in sorted({trial for trial, split in store if split == "search"}):
        scores = store.read(trial, "search")
        if scores is not None:
            yield scores


def mean_of(scores: ItemScores, combination: Objective) -> float:
    return combination.value({task: scores.task_score(task).value for task in scores.tasks})


def replayed(path: Path, every: int, rest: float) -> Mapping[str, float]:
    """Races against the best so far by the full pool, and estimates at the first two rungs."""
    known = list(trials(path))
    tasks = known[0].tasks
    combination = Objective("mean", dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 1))
    full = np.array([mean_of(scores, combination) for scores in known])
    parents, ends = known[1:3], rung_ends(known[0].n)
    order = item_order(parents, 0, rest)
    out: dict[str, list[float]] = {name: [] for name in ("killed", "spent", "naive", "bias", "se")}
    for i in range(14, len(known), every):
        best = int(np.argmax(full[:i]))
        rungs = [part(known[i], order[:end]) for end in ends]
        stop = (r.n for r in rungs[:-1] if should_stop(r, known[best], combination))
        spent = next(stop, ends[-1])
        if full[i] > full[best]:
            out["killed"].append(spent < ends[-1])
        elif full[i] < full[best] - 0.02:
            out["spent"].append(spent / ends[-1])
        found = shrunken_estimate(rungs[1], parents, combination)
        out["naive"].append(mean_of(rungs[1], combination) - full[i])
        out["bias"].append(found.value - full[i])
        out["se"].append(found.se)
    rms = float(np.sqrt(np.mean(np.square(out["bias"]))))
    counts = {"better": len(out["killed"]), "worse": len(out["spent"]), "rms": rms}
    return counts | {name: float(np.mean(v)) if v else 0.0 for name, v in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What racing rules stop.")
    parser.add_argument("items", nargs="*", type=Path, help="items.parquet of whole studies")
    parser.add_argument("--runs", type=int, default=300, help="simulated candidates per cell")
    parser.add_argument("--every", type=int, default=1, help="replay one candidate in this many")
    options = parser.parse_args()
    for path in options.items:
        for rest in (0.0, 0.25):
            found = replayed(path, options.every, rest)
            print(path, f"rest={rest}", {k: round(v, 4) for k, v in found.items()}, flush=True)
    if options.runs:
        simulated(options.runs)


if __name__ == "__main__":
    main()
