"""Which objective hands back what: searches by each, judged on items that they have not seen.

    make bench-search
    python benchmarks/objectives.py results/reference/search/quickstart.npz --config quickstart

Half of a recorded landscape's items, drawn anew for every seed, is what the search is told of; the
other half judges its best candidate, by the same yardsticks whatever was optimised. Legend: s
seeds, n items.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.scores.term_columns import TermColumn
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import Rule
from heterosis.search.evaluate.objective import Objective
from heterosis.search.propose.space import Params, Space
from heterosis.search.study.resume import versions
from landscape import Landscape, Setup, features, is_linear
from numpy.typing import NDArray
from samplers import Replay, Setting
from verdicts import over_seeds

Floats = NDArray[np.float64]

RULES: Mapping[str, tuple[Rule, TermColumn]] = {
    "mean": ("mean", "metric"),
    "min": ("min", "metric"),
    "harmonic": ("harmonic", "metric"),
    "mean log-likelihood": ("mean", "margin"),
    "min log-likelihood": ("min", "margin"),
}
"""What is optimised. Of tasks that ask for one answer, as all of these do, the recorded margin is
the log-likelihood of that answer."""

YARDSTICKS: Mapping[str, Rule] = {"mean": "mean", "min": "min", "harmonic": "harmonic"}

ONE_SIDED = 0.5
"""Share of its better task's score below which a candidate's worse task makes it one-sided, as both
parents are."""


def objective_of(tasks: Sequence[str], rule: Rule, column: TermColumn = "metric") -> Objective:
    """A rule over tasks, each by the same column."""
    return Objective(
        rule,
        weights=dict.fromkeys(tasks, 1.0),
        signs=dict.fromkeys(tasks, 1),
        columns={} if column == "metric" else {task: (task, column) for task in tasks},
    )


def halves(land: Landscape, seed: int) -> tuple[Landscape, Landscape]:
    """The same points with one half of each task's items, and with the other."""
    chance, seen = np.random.default_rng(seed), []
    for task in land.items.tasks:
        rows = land.items.rows(task)
        seen.append(chance.permutation(rows)[: rows.size // 2])
    first = np.sort(np.concatenate(seen))
    return with_items(land, first), with_items(land, np.setdiff1d(np.arange(land.items.n), first))


def with_items(land: Landscape, rows: NDArray[np.int64]) -> Landscape:
    """The landscape of some items."""
    return replace(
        land,
        items=land.items.subset(rows),
        value=land.value[:, rows],
        margin=land.margin[:, rows],
    )


@dataclass(frozen=True)
class Remembered(Replay):
    """A replay that remembers where its candidates were."""

    places: list[Floats] = field(default_factory=list)

    def answers(self, space: Space, params: Params) -> ItemScores:
        """As of any replay."""
        self.places.append(np.array(features(space.decode(params))))
        return self.land.at(self.places[-1])

    def best(self, setting: Setting, seed: int) -> Floats:
        """Features of the best candidate that met every item (g,)."""
        steps = self.search(setting, seed, items=np.iinfo(np.int64).max)
        whole = np.diff(steps[:, 0]) == self.land.items.n
        values = [
            self.value(self.land.at(x)) if is_whole else -np.inf
            for x, is_whole in zip(self.places, whole, strict=True)
        ]
        return self.places[int(np.argmax(values))]


def judged(land: Landscape, x: Floats) -> dict[str, float]:
    """Yardsticks of a merge on a landscape's items."""
    scores = land.at(x)
    tasks = {task: scores.task_score(task).value for task in scores.tasks}
    found = {
        name: objective_of(scores.tasks, rule).value(tasks) for name, rule in YARDSTICKS.items()
    }
    is_one_sided = min(tasks.values()) < ONE_SIDED * max(tasks.values())
    return found | {"log-likelihood": float(scores.margin.mean()), "one-sided": float(is_one_sided)}


def rows(land: Landscape, setup: Setup, seeds: int, trials: int) -> Iterator[dict[str, Any]]:
    """One row per objective, then the merges that need no search."""
    split = [halves(land, seed) for seed in range(seeds)]
    tasks = land.items.tasks
    for name, (rule, column) in RULES.items():
        own = replace(setup, objective=objective_of(tasks, rule, column))
        found = []
        for seed, (seen, unseen) in enumerate(split):
            setting = Setting(name, trials=trials)
            found.append(judged(unseen, Remembered(seen, own).best(setting, seed)))
        yield {"name": name, **summary(found)}
    for baseline in setup.baselines:
        if is_linear(baseline.recipe) and baseline.kind in ("parent", "uniform"):
            x = np.array(features(baseline.recipe))
            yield {"name": baseline.name, **summary([judged(unseen, x) for _, unseen in split])}


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over seeds, and their intervals."""
    columns = {name: [one[name] for one in found] for name in found[0]}
    return {
        name: {"mean": float(np.mean(values)), "interval": over_seeds(values), "seeds": values}
        for name, values in columns.items()
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    names = [name for name in found[0] if name not in ("name", "one-sided")]
    ahead = [f"{name} against `{found[0]['name']}`'s" for name in ("mean", "min")]
    heads = ["optimised on the seen half", *names, "one-sided", *ahead]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in found:
        cells = [row["name"], *(_cell(row[name]["mean"], row[name]["interval"]) for name in names)]
        sides = row["one-sided"]["seeds"]
        cells.append(f"{sum(sides):.0f} of {len(sides)}")
        cells += ("" if row is found[0] else _ahead(row, found[0], n) for n in ("mean", "min"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ahead(row: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """By how much a row is ahead of another, seed by seed."""
    pairs = zip(row[name]["seeds"], other[name]["seeds"], strict=True)
    d = [a - b for a, b in pairs]
    return _cell(float(np.mean(d)), over_seeds(d), "+")


def _cell(value: float, ends: Sequence[float] | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + (f" ({ends[0]:{sign}.4f}, {ends[1]:{sign}.4f})" if ends else "")


def page(facts: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    text = [
        "# What each objective hands back",
        f"{facts['date']}; {facts['seeds']} seeds, {facts['trials']} raced candidates each, "
        "replayed on recorded landscapes. A search sees half of the items, drawn anew for every "
        "seed; columns are its best candidate's scores on the other half (mean over seeds, 95 % "
        "interval by Student's t), log-likelihood in nats per answer. *One-sided*: the worse task "
        f"scores less than {ONE_SIDED:g} of the better one, as both parents do. The last columns "
        "are differences seed by seed.",
    ]
    for name, found in facts["landscapes"].items():
        text += [f"## {name}", table(found)]
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Objectives by what they hand back.")
    parser.add_argument("landscape", type=Path, nargs="+", help="from landscape.py")
    parser.add_argument("--config", nargs="+", default=["quickstart"], help="of each landscape")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=150, help="candidates of a search")
    parser.add_argument("--out", type=Path, help="folder for objectives.md and objectives.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscapes = {}
    for path, config in zip(options.landscape, options.config, strict=True):
        land, wanted = Landscape.read(path), load_config(find_config(config))
        found = list(rows(land, land.setup(wanted), options.seeds, options.trials))
        landscapes[wanted.name] = found
        print(f"{wanted.name}\n{table(found)}", flush=True)
    if options.out is None:
        return
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "seeds": options.seeds,
        "trials": options.trials,
        "landscapes": landscapes,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "objectives.json").write_text(json.dumps(facts, indent=1))
    (options.out / "objectives.md").write_text(page(facts))


if __name__ == "__main__":
    main()
