"""Objectives compared: searches by each, evaluated on items that they have not seen.

    make bench-search
    python benchmarks/objectives.py results/reference/search/quickstart.npz --config quickstart

A search sees half of a recorded landscape's items, drawn anew for every seed. Its best candidate is
scored on the other half by the same metrics, whatever the objective. Legend: s seeds, n items.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.scores.term_columns import TermColumn
from heterosis.search.config.load import find_config, load_config
from heterosis.search.evaluate.objective import Objective
from heterosis.search.propose.space import Params, Space
from heterosis.search.study.resume import versions
from landscape import Landscape, Setup, features, is_linear
from numpy.typing import NDArray
from samplers import Replay, Setting, mean_cell, write_results
from verdicts import over_seeds

Floats = NDArray[np.float64]

RULES: Mapping[str, tuple[str, TermColumn]] = {
    "mean": ("mean", "metric"),
    "min": ("min", "metric"),
    "harmonic": ("harmonic", "metric"),
    "mean log-likelihood": ("mean", "margin"),
    "min log-likelihood": ("min", "margin"),
}
"""Objective -> rule and term. All tasks here have one reference answer, so the recorded margin is
its log-likelihood."""

METRICS: Mapping[str, str] = {"mean": "mean", "min": "min", "harmonic": "harmonic"}

ONE_SIDED = 0.5
"""A candidate is one-sided if its worse task scores less than this share of its better one, as both
parents do."""


def objective_of(tasks: Sequence[str], rule: str, column: TermColumn = "metric") -> Objective:
    """Return an objective of one rule over tasks, each by the same term."""
    return Objective(
        rule,
        weights=dict.fromkeys(tasks, 1.0),
        signs=dict.fromkeys(tasks, 1),
        columns={} if column == "metric" else {task: (task, column) for task in tasks},
    )


def halves(landscape: Landscape, seed: int) -> tuple[Landscape, Landscape]:
    """Split each task's items in halves; return the landscape of each half."""
    chance, seen = np.random.default_rng(seed), []
    for task in landscape.items.tasks:
        rows = landscape.items.rows(task)
        seen.append(chance.permutation(rows)[: rows.size // 2])
    first = np.sort(np.concatenate(seen))
    return with_items(landscape, first), with_items(
        landscape, np.setdiff1d(np.arange(landscape.items.n), first)
    )


def with_items(landscape: Landscape, rows: NDArray[np.int64]) -> Landscape:
    """Return the landscape of some items."""
    return replace(
        landscape,
        items=landscape.items.subset(rows),
        value=landscape.value[:, rows],
        margin=landscape.margin[:, rows],
    )


@dataclass(frozen=True)
class RecordingReplay(Replay):
    """A replay that records its candidates' features."""

    points: list[Floats] = field(default_factory=list)

    def predict(self, space: Space, params: Params) -> ItemScores:
        """Return the predicted item scores of a genotype, and record its features."""
        self.points.append(np.array(features(space.decode(params))))
        return self.landscape.predict(self.points[-1])

    def best(self, setting: Setting, seed: int) -> Floats:
        """Return the features of the best candidate that was scored on every item (g,)."""
        steps = self.search(setting, seed, items=np.iinfo(np.int64).max)
        is_complete = np.diff(steps[:, 0]) == self.landscape.items.n
        values = [
            self.value(self.landscape.predict(x)) if complete else -np.inf
            for x, complete in zip(self.points, is_complete, strict=True)
        ]
        return self.points[int(np.argmax(values))]


def metrics_of(landscape: Landscape, x: Floats) -> dict[str, float]:
    """Return the metrics of a merge on a landscape's items."""
    scores = landscape.predict(x)
    tasks = {task: scores.task_score(task).value for task in scores.tasks}
    metrics = {
        name: objective_of(scores.tasks, rule).value(tasks) for name, rule in METRICS.items()
    }
    is_one_sided = min(tasks.values()) < ONE_SIDED * max(tasks.values())
    return metrics | {
        "log-likelihood": float(scores.margin.mean()),
        "one-sided": float(is_one_sided),
    }


def rows(landscape: Landscape, setup: Setup, seeds: int, trials: int) -> Iterator[dict[str, Any]]:
    """Yield one row per objective, then one per baseline."""
    split = [halves(landscape, seed) for seed in range(seeds)]
    tasks = landscape.items.tasks
    for name, (rule, column) in RULES.items():
        changed = replace(setup, objective=objective_of(tasks, rule, column))
        metrics = []
        for seed, (seen, unseen) in enumerate(split):
            setting = Setting(name, trials=trials)
            metrics.append(metrics_of(unseen, RecordingReplay(seen, changed).best(setting, seed)))
        yield {"name": name, **summary(metrics)}
    for baseline in setup.baselines:
        if is_linear(baseline.recipe) and baseline.kind in ("parent", "uniform"):
            x = np.array(features(baseline.recipe))
            yield {"name": baseline.name, **summary([metrics_of(unseen, x) for _, unseen in split])}


def summary(metrics: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return means over seeds, with intervals."""
    columns = {name: [of_seed[name] for of_seed in metrics] for name in metrics[0]}
    return {
        name: {"mean": float(np.mean(values)), "interval": over_seeds(values), "seeds": values}
        for name, values in columns.items()
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    names = [name for name in results[0] if name not in ("name", "one-sided")]
    differences = [f"{name}, difference from `{results[0]['name']}`" for name in ("mean", "min")]
    heads = ["objective on the seen half", *names, "one-sided", *differences]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in results:
        cells = [
            row["name"],
            *(mean_cell(row[name]["mean"], row[name]["interval"]) for name in names),
        ]
        sides = row["one-sided"]["seeds"]
        cells.append(f"{sum(sides):.0f} of {len(sides)}")
        cells += (
            "" if row is results[0] else _difference(row, results[0], n) for n in ("mean", "min")
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(row: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """Return the paired difference of two rows over seeds."""
    pairs = zip(row[name]["seeds"], other[name]["seeds"], strict=True)
    d = [a - b for a, b in pairs]
    return mean_cell(float(np.mean(d)), over_seeds(d), "+")


def page(facts: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page."""
    text = [
        "# Objectives compared by their best candidates",
        f"{facts['date']}; {facts['seeds']} seeds, {facts['trials']} raced candidates each, "
        "replayed on recorded landscapes. A search sees half of the items, drawn anew for every "
        "seed; columns are its best candidate's scores on the other half (mean over seeds, 95 % "
        "interval by Student's t), log-likelihood in nats per answer. *One-sided*: the worse task "
        f"scores less than {ONE_SIDED:g} of the better one, as both parents do. The last columns "
        "are paired differences over seeds.",
    ]
    for name, results in facts["landscapes"].items():
        text += [f"## {name}", table(results)]
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Objectives compared on unseen items.")
    parser.add_argument("landscape", type=Path, nargs="+", help="file written by landscape.py")
    parser.add_argument(
        "--config", nargs="+", default=["quickstart"], help="configuration of each landscape"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=150, help="candidates per search")
    parser.add_argument("--out", type=Path, help="folder for objectives.md and objectives.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscapes = {}
    for path, config in zip(options.landscape, options.config, strict=True):
        landscape, loaded = Landscape.read(path), load_config(find_config(config))
        results = list(rows(landscape, landscape.setup(loaded), options.seeds, options.trials))
        landscapes[loaded.name] = results
        print(f"{loaded.name}\n{table(results)}", flush=True)
    if options.out is None:
        return
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "seeds": options.seeds,
        "trials": options.trials,
        "landscapes": landscapes,
    }
    write_results(options.out, "objectives", facts, page(facts))


if __name__ == "__main__":
    main()
