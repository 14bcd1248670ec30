"""Samplers by the items that they spend: searches replayed on recorded landscapes.

    make bench-search

The search is the product's own: proposer, race, objective and spaces; a surrogate answers in place
of models. All start from the same baselines. Legend: s seeds, t steps of a search.
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
"""Candidates of the search without a race that all others are held against."""

SHARE = 5
"""Of its items: the others' aim is a fifth."""

MOST = 0.9
"""Of what it gains over the best baseline: the last tenth is a few items, and luck."""

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
        """The search section of this row."""
        return SearchSection(
            sampler=self.sampler,
            sampler_args=dict(self.arguments or {}),
            run_seed=seed,
            trials=self.trials,
            items=None if self.trials else 1,
            racing=RacingSection() if self.racing else False,
        )

    def space(self, space: Space) -> Space:
        """The configured space, or another depth shape in its bounds."""
        shape, _, count = self.depth.partition(" ")
        if self.depth == AS_CONFIGURED:
            return space
        return replace(space, depth=Depth.model_validate({shape: int(count)} if count else shape))


FROM_MIDDLE: Mapping[str, Any] = {"x0": None}
"""Where Optuna's CMA-ES starts by itself, instead of at the best baseline."""

REFERENCE = Setting(
    "CMA-ES as it is: every item, from the middle",
    arguments=FROM_MIDDLE,
    racing=False,
    trials=FULL_TRIALS,
)
"""The first row: the others are held against it."""

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
    """Where a replayed search stands.

    Attributes:
        spent: Items.
        best: Score of the best so far.
        told: The last candidate's trial; None before the first.
    """

    spent: int
    best: float
    told: FrozenTrial | None = None


@dataclass(frozen=True)
class Replay:
    """Searches on one landscape.

    Attributes:
        land: Answers.
        parts: Of the configuration that was recorded.
    """

    land: Landscape
    parts: Setup

    @property
    def objective(self) -> Objective:
        """The configuration's."""
        return self.parts.objective

    def answers(self, space: Space, params: Params) -> ItemScores:
        """What the surrogate says of a genotype."""
        return self.land.at(np.array(features(space.decode(params))))

    def value(self, scores: ItemScores) -> float:
        """The objective."""
        return self.objective.combined(scores).value

    def baselines(self, space: Space) -> Iterator[tuple[Params | None, ItemScores]]:
        """Baselines that are linear in the weights, with their genes where a space holds them."""
        for baseline in self.parts.baselines_in(space):
            if is_linear(baseline.recipe):
                yield baseline.params, self.land.at(np.array(features(baseline.recipe)))

    def search(self, setting: Setting, seed: int, items: int) -> Floats:
        """Items spent and the best score so far, after each candidate (t, 2)."""
        steps: list[tuple[int, float]] = []
        for step in self.steps(setting.space(self.parts.space), setting.section(seed)):
            steps.append((step.spent, step.best))
            if step.spent >= items or len(steps) - 1 == setting.trials:
                break
        return np.array(steps, dtype=float)

    def steps(self, space: Space, section: SearchSection) -> Iterator[Step]:
        """A search without an end: first the best baseline, then candidate by candidate."""
        proposer, known = Proposer(space, section), list(self.baselines(space))
        for params, scores in known:
            proposer.add(params, (self.value(scores),), {})
        best = max((scores for _, scores in known), key=self.value)
        yield Step(0, self.value(best))
        race = self.race([scores for _, scores in known])
        order = np.array(item_order(race.references, section.run_seed))
        ends = rung_ends(order.size) if section.racing else (order.size,)
        spent = 0
        for number in itertools.count(len(known)):
            trial, params = proposer.propose(number)
            scores = self.answers(space, params)
            end, value = self.raced(race, scores, best, order, ends)
            told = proposer.tell(trial, (value,))
            spent += end
            if end == order.size and value > self.value(best):
                best = scores
            yield Step(spent, self.value(best), told)

    def race(self, known: list[ItemScores]) -> Race:
        """As a study opens it: by the better half of the baselines."""
        better = tuple(known[place] for place in better_half([self.value(s) for s in known]))
        alpha = RacingSection().alpha
        return Race(better, self.objective.criteria, alpha, self.objective.terms)

    def raced(
        self, race: Race, scores: ItemScores, best: ItemScores, order: Any, ends: tuple[int, ...]
    ) -> tuple[int, float]:
        """Items that a candidate meets, and what the sampler is told."""
        for end in ends[:-1]:
            seen = scores.subset(np.sort(order[:end]))
            if race.is_lost(seen, best):
                found = race.estimates(seen, best, self.objective.terms)
                return end, self.objective.combined(found).value
        return ends[-1], self.value(scores)


def items_to(steps: Floats, score: float) -> float:
    """Items spent until the best reaches a score; infinite if it never does."""
    reached = steps[:, 1] >= score - 1e-12
    return float(steps[np.argmax(reached), 0]) if reached.any() else np.inf


def best_at(steps: Floats, items: float) -> float:
    """Best score when so many items are spent."""
    return float(steps[steps[:, 0] <= items, 1].max())


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds (s,)."""
    if len(set(values)) == 1:
        return values[0], values[0]
    found = bootstrap((values,), np.mean, n_resamples=2000, rng=0).confidence_interval
    return float(found.low), float(found.high)


def rows(replay: Replay, seeds: int) -> Iterator[dict[str, Any]]:
    """One row per setting, held against the reference before it."""
    full = FULL_TRIALS * replay.land.items.n
    target = nearly = 0.0
    for setting in SETTINGS:
        if setting.depth != AS_CONFIGURED and not replay.land.is_full:
            continue  # the points do not tell what another depth shape would give
        own = seeds if setting.sampler != "GPSampler" else min(seeds, 3)
        traces = [replay.search(setting, seed, full) for seed in range(own)]
        if setting is REFERENCE:
            # A score that searches have: half of them reach it.
            reached = [best_at(steps, full) for steps in traces]
            target = float(np.quantile(reached, 0.5, method="lower"))
            start = best_at(traces[0], 0)
            nearly = start + MOST * (target - start)
        needed = [items_to(steps, target) for steps in traces]
        soon = [items_to(steps, nearly) for steps in traces]
        fifth = [best_at(steps, full / SHARE) for steps in traces]
        last = [best_at(steps, full) for steps in traces]
        yield {
            "name": setting.name,
            "seeds": own,
            "target": target,
            "nearly": nearly,
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


def table(found: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        f"| search | aim | items to {MOST:.0%} of the gain, median (quartiles) | of the budget "
        f"| items to all of it | reached | best at 1/{SHARE} of the budget (95 %) "
        "| best at its end (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
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
    """A median of items with its quartiles; some of them may never have come."""
    low, high = (f"{q:.0f}" if np.isfinite(q) else "never" for q in quartiles)
    return f"{value:.0f} ({low}, {high})" if np.isfinite(value) else f"never ({low}, {high})"


def mean_cell(value: float, ends: Sequence[float]) -> str:
    """A mean with its interval."""
    return f"{value:.4f} ({ends[0]:.4f}, {ends[1]:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Samplers by items spent.")
    parser.add_argument("landscape", type=Path, help="from landscape.py")
    parser.add_argument("--config", default="quickstart", help="what was recorded")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for samplers.md and samplers.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    land = Landscape.read(options.landscape)
    replay = Replay(land, land.setup(load_config(find_config(options.config))))
    fit, found = land.held_out(), []
    for row in rows(replay, options.seeds):
        found.append(row)
        print(table(found[-1:]).splitlines()[-1], flush=True)
    if options.out is None:
        return
    packages = {name: importlib.metadata.version(name) for name in ("optuna", "cmaes", "numpy")}
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    space = f"{len(replay.parts.space.genes)} genes ({replay.parts.space.phrase})"
    facts: dict[str, Any] = {"date": day, "landscape": options.config, "space": space}
    facts |= {"surrogate": fit, "versions": packages}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "samplers.json").write_text(json.dumps(facts | {"rows": found}, indent=1))
    told = ", ".join(f"{name} {value:.4g}" for name, value in fit.items())
    (options.out / "samplers.md").write_text(
        f"# Samplers by items spent, on the recorded landscape of `{options.config}`\n\n"
        f"{day}; {space}; surrogate held out: {told}. The budget is that of {FULL_TRIALS} "
        f"candidates on every item, {FULL_TRIALS * land.items.n} items. The aim is what half of "
        "the searches of the first row reach, the gain is from the best baseline to that.\n\n"
        f"{table(found)}\n"
    )


if __name__ == "__main__":
    main()
