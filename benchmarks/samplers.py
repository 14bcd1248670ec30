"""Samplers compared by items spent: searches replayed on recorded landscapes.

    make bench-search

Proposer, race, objective and spaces are the product's; a surrogate replaces the models. All
searches start from the same baselines. Legend: s seeds, t steps of a search.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.stats.racing import Race, item_order, rung_ends
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import RacingSection, SearchSection
from heterosis.search.config.space import Depth
from heterosis.search.evaluate.objective import Objective
from heterosis.search.evaluate.racing import better_half
from heterosis.search.propose.proposer import Proposer
from heterosis.search.propose.space import Params, Space
from landscape import Landscape, Setup, features, is_linear
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from scipy.stats import bootstrap

FULL_TRIALS = 150
"""Candidates of the reference search, which is not raced."""

SHARE = 5
"""Scores are also compared at 1/SHARE of the budget."""

MOST = 0.9
"""Share of the gain over the best baseline; the last tenth is a few items, mostly noise."""

AS_CONFIGURED = "as configured"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    sampler: str = "CmaEsSampler"
    arguments: Mapping[str, Any] | None = None
    racing: bool = True
    depth: str = AS_CONFIGURED
    trials: int | None = None

    def section(self, seed: int) -> SearchSection:
        """Return the search section of this row."""
        return SearchSection(
            sampler=self.sampler,
            sampler_args=dict(self.arguments or {}),
            run_seed=seed,
            trials=self.trials,
            items=None if self.trials else 1,
            racing=RacingSection() if self.racing else False,
        )

    def space(self, space: Space) -> Space:
        """Return the configured space, or another depth shape with its bounds."""
        shape, _, count = self.depth.partition(" ")
        if self.depth == AS_CONFIGURED:
            return space
        return replace(space, depth=Depth.model_validate({shape: int(count)} if count else shape))


FROM_MIDDLE: Mapping[str, Any] = {"x0": None}
"""Start at the middle of the space, Optuna's default, instead of the best baseline."""

REFERENCE = Setting(
    "CMA-ES as it is: every item, from the middle",
    arguments=FROM_MIDDLE,
    racing=False,
    trials=FULL_TRIALS,
)
"""The first row, which defines budget and target."""

SETTINGS = (
    REFERENCE,
    Setting("CMA-ES, every item", racing=False, trials=FULL_TRIALS),
    Setting("random, every item", "RandomSampler", racing=False, trials=FULL_TRIALS),
    Setting("CMA-ES"),
    Setting("CMA-ES, from the middle", arguments=FROM_MIDDLE),
    Setting("CMA-ES, separable", arguments={"use_separable_cma": True}),
    Setting("CMA-ES, lr_adapt", arguments={"lr_adapt": True}),
    Setting("CMA-ES, population 6", arguments={"popsize": 6}),
    Setting("CMA-ES, constant depth", depth="constant"),
    Setting("CMA-ES, 2 control points", depth="control_points 2"),
    Setting("random", "RandomSampler"),
    Setting("QMC", "QMCSampler"),
    Setting("TPE", "TPESampler"),
    Setting("NSGA-II", "NSGAIISampler"),
    Setting("GP, 60 candidates", "GPSampler", trials=60),
)


@dataclass(frozen=True)
class Step:
    """State of a replayed search after a candidate.

    Attributes:
        spent: Items spent.
        best: Best score so far.
        trial: The candidate's trial; None before the first.
    """

    spent: int
    best: float
    trial: FrozenTrial | None = None


@dataclass(frozen=True)
class Replay:
    """Searches on one landscape.

    Attributes:
        landscape: Recorded points and surrogate.
        parts: Space, baselines and objective of the recorded configuration.
    """

    landscape: Landscape
    parts: Setup

    @property
    def objective(self) -> Objective:
        """Objective of the configuration."""
        return self.parts.objective

    def predict(self, space: Space, params: Params) -> ItemScores:
        """Return the predicted item scores of a genotype."""
        return self.landscape.predict(np.array(features(space.decode(params))))

    def value(self, scores: ItemScores) -> float:
        """Return the objective's value."""
        return self.objective.combined(scores).value

    def baselines(self, space: Space) -> Iterator[tuple[Params | None, ItemScores]]:
        """Yield genotype (None outside the space) and scores of baselines linear in the weights."""
        for baseline in self.parts.baselines_in(space):
            if is_linear(baseline.recipe):
                yield baseline.params, self.landscape.predict(np.array(features(baseline.recipe)))

    def search(self, setting: Setting, seed: int, items: int) -> Floats:
        """Return items spent and the best score so far, after each candidate (t, 2)."""
        steps: list[tuple[int, float]] = []
        for step in self.steps(setting.space(self.parts.space), setting.section(seed)):
            steps.append((step.spent, step.best))
            if step.spent >= items or len(steps) - 1 == setting.trials:
                break
        return np.array(steps, dtype=float)

    def steps(self, space: Space, section: SearchSection) -> Iterator[Step]:
        """Search without end: yield the best baseline, then candidate by candidate."""
        proposer, baselines = Proposer(space, section), list(self.baselines(space))
        for params, scores in baselines:
            proposer.add(params, (self.value(scores),), {})
        best = max((scores for _, scores in baselines), key=self.value)
        yield Step(0, self.value(best))
        race = self.race([scores for _, scores in baselines])
        order = np.array(item_order(race.references, section.run_seed))
        ends = rung_ends(order.size) if section.racing else (order.size,)
        spent = 0
        for number in itertools.count(len(baselines)):
            trial, params = proposer.propose(number)
            scores = self.predict(space, params)
            end, value = self.raced(race, scores, best, order, ends)
            finished = proposer.tell(trial, (value,))
            spent += end
            if end == order.size and value > self.value(best):
                best = scores
            yield Step(spent, self.value(best), finished)

    def race(self, baselines: list[ItemScores]) -> Race:
        """Open the race as a study does, with the better half of the baselines as references."""
        better = tuple(baselines[i] for i in better_half([self.value(s) for s in baselines]))
        alpha = RacingSection().alpha
        return Race(better, self.objective.criteria, alpha, self.objective.terms)

    def raced(
        self, race: Race, scores: ItemScores, best: ItemScores, order: Any, ends: tuple[int, ...]
    ) -> tuple[int, float]:
        """Return the items on which a candidate is scored, and its value for the sampler."""
        for end in ends[:-1]:
            seen = scores.subset(np.sort(order[:end]))
            if race.is_lost(seen, best):
                estimates = race.estimates(seen, best, self.objective.terms)
                return end, self.objective.combined(estimates).value
        return ends[-1], self.value(scores)


def items_to(steps: Floats, score: float) -> float:
    """Return the items spent until the best reaches a score; infinite if it never does."""
    reached = steps[:, 1] >= score - 1e-12
    return float(steps[np.argmax(reached), 0]) if reached.any() else np.inf


def best_at(steps: Floats, items: float) -> float:
    """Return the best score after spending ``items``."""
    return float(steps[steps[:, 0] <= items, 1].max())


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean over seeds (s,)."""
    if len(set(values)) == 1:
        return values[0], values[0]
    ends = bootstrap((values,), np.mean, n_resamples=2000, rng=0).confidence_interval
    return float(ends.low), float(ends.high)


def rows(replay: Replay, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield one row per setting, the reference first."""
    full = FULL_TRIALS * replay.landscape.items.n
    target = near_target = 0.0
    for setting in SETTINGS:
        if setting.depth != AS_CONFIGURED and not replay.landscape.is_full:
            continue  # the points do not determine other depth shapes
        n_seeds = seeds if setting.sampler != "GPSampler" else min(seeds, 3)
        traces = [replay.search(setting, seed, full) for seed in range(n_seeds)]
        if setting is REFERENCE:
            # A score that half of the searches reach.
            reached = [best_at(steps, full) for steps in traces]
            target = float(np.quantile(reached, 0.5, method="lower"))
            start = best_at(traces[0], 0)
            near_target = start + MOST * (target - start)
        needed = [items_to(steps, target) for steps in traces]
        soon = [items_to(steps, near_target) for steps in traces]
        fifth = [best_at(steps, full / SHARE) for steps in traces]
        last = [best_at(steps, full) for steps in traces]
        yield {
            "name": setting.name,
            "seeds": n_seeds,
            "target": target,
            "nearly": near_target,
            "soon": float(np.median(soon)),
            "soon_quartiles": np.quantile(soon, (0.25, 0.75), method="nearest").tolist(),
            "soon_share": float(np.median(soon)) / full,
            "reached": int(sum(map(np.isfinite, needed))),
            "items": float(np.median(needed)),
            "quartiles": np.quantile(needed, (0.25, 0.75), method="nearest").tolist(),
            "share": float(np.median(needed)) / full,
            "fifth": float(np.mean(fifth)),
            "fifth_interval": interval(fifth),
            "last": float(np.mean(last)),
            "last_interval": interval(last),
        }


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        f"| search | target | items to {MOST:.0%} of the gain, median (quartiles) "
        f"| share of the budget | items to the target | reached "
        f"| best at 1/{SHARE} of the budget (95 %) "
        "| best at the end (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        cells = [
            row["name"],
            f"{row['target']:.4f}",
            median_cell(row["soon"], row["soon_quartiles"]),
            f"{row['soon_share']:.2f}",
            median_cell(row["items"], row["quartiles"]),
            f"{row['reached']}/{row['seeds']}",
            *(mean_cell(row[at], row[f"{at}_interval"]) for at in ("fifth", "last")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median_cell(value: float, quartiles: Sequence[float]) -> str:
    """Format a median of items with its quartiles; infinite ones are shown as `never`."""
    low, high = (f"{q:.0f}" if np.isfinite(q) else "never" for q in quartiles)
    return f"{value:.0f} ({low}, {high})" if np.isfinite(value) else f"never ({low}, {high})"


def mean_cell(value: float, ends: Sequence[float] | None, sign: str = "") -> str:
    """Format a mean with its interval, if it has one."""
    return f"{value:{sign}.4f}{interval_text(ends, sign)}"


def interval_text(ends: Sequence[float] | None, sign: str = "") -> str:
    """Format an interval to follow a figure; empty if there is none."""
    return "" if ends is None else f" ({ends[0]:{sign}.4f}, {ends[1]:{sign}.4f})"


def write_results(out: Path, name: str, facts: Mapping[str, Any], page: str) -> None:
    """Write a benchmark's results as JSON and as a Markdown page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1))
    (out / f"{name}.md").write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description="Samplers compared by items spent.")
    parser.add_argument("landscape", type=Path, help="file written by landscape.py")
    parser.add_argument("--config", default="quickstart", help="configuration of the landscape")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for samplers.md and samplers.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = Landscape.read(options.landscape)
    replay = Replay(landscape, landscape.setup(load_config(find_config(options.config))))
    fit, results = landscape.held_out(), []
    for row in rows(replay, options.seeds):
        results.append(row)
        print(table(results[-1:]).splitlines()[-1], flush=True)
    if options.out is None:
        return
    packages = {name: importlib.metadata.version(name) for name in ("optuna", "cmaes", "numpy")}
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    space = f"{len(replay.parts.space.genes)} genes ({replay.parts.space.phrase})"
    facts: dict[str, Any] = {"date": day, "landscape": options.config, "space": space}
    facts |= {"surrogate": fit, "versions": packages}
    accuracy = ", ".join(f"{name} {value:.4g}" for name, value in fit.items())
    page = (
        f"# Samplers by items spent, on the recorded landscape of `{options.config}`\n\n"
        f"{day}; {space}; surrogate on held-out points: {accuracy}. The budget is {FULL_TRIALS} "
        f"candidates on every item, {FULL_TRIALS * landscape.items.n} items. The target is the "
        "score that half of the searches of the first row reach, the gain is measured from the "
        f"best baseline to the target.\n\n{table(results)}\n"
    )
    write_results(options.out, "samplers", facts | {"rows": results}, page)


if __name__ == "__main__":
    main()
