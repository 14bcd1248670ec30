"""Stages and warm starts compared by items spent.

    python benchmarks/starts.py LANDSCAPE.npz --out results/reference/search

Searches are replayed on a recorded landscape. Stages, trial queue, proposers and race are the
product's; a surrogate replaces the models. Legend: s seeds, t steps of a search.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from heterosis.evals.scores.scores import ItemScores
from heterosis.evals.stats.racing import item_order, rung_ends
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import Config
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import SearchSection
from heterosis.search.config.space import StageSection
from heterosis.search.propose.ask_tell import TrialQueue
from heterosis.search.propose.space import Space
from heterosis.search.propose.stages import plan_stages, with_warm_start
from heterosis.search.storage.candidate import Candidate
from heterosis.search.study.budget import Budget, Limits
from heterosis.search.study.warm_start import TAKEN
from landscape import Landscape, features, is_linear
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from samplers import (
    MOST,
    Floats,
    Replay,
    best_at,
    interval,
    items_to,
    mean_cell,
    median_cell,
    write_results,
)

TRIALS = 30
"""The budget, in candidates on every item: a fifth of the budget of samplers.py."""

EARLIER_TRIALS = 60
"""Budget of a warm start's earlier study, in candidates on every item of that study."""

SHARES = (0.1, 0.2)
"""Shares of the budget at which the best score is reported."""


@dataclass(frozen=True)
class Start:
    """One row of the table.

    Attributes:
        name: Name of the row.
        stages: Stages as in a configuration.
        warm: Recipes tried first: empty for none, `half` for those of a search on half of the
            items, `random` for random ones.
        sampler: Optuna sampler.
    """

    name: str
    stages: tuple[dict[str, Any], ...] = ()
    warm: str = ""
    sampler: str = "CmaEsSampler"


CONSTANT: dict[str, Any] = {"depth": "constant"}
TWO: dict[str, Any] = {"depth": {"control_points": 2}}
TENTH = {**CONSTANT, "share": 0.1}
NEAR = {"width": 0.4}
STARTS = (
    Start("one stage"),
    Start("constant for 0.1, then within 0.4", (TENTH, NEAR)),
    Start("constant for 0.3, then within 0.4", ({**CONSTANT, "share": 0.3}, NEAR)),
    Start("constant for 0.1, then all of it", (TENTH, {})),
    Start(
        "constant for 0.1, 2 points for 0.2 within 0.5, then within 0.3",
        (TENTH, {**TWO, "share": 0.2, "width": 0.5}, {"width": 0.3}),
    ),
    Start("warm start from half of the items", warm="half"),
    Start("warm start from recipes at random", warm="random"),
    Start("warm start from half, a tenth, then within 0.4", ({"share": 0.1}, NEAR), "half"),
    Start("TPE, one stage", sampler="TPESampler"),
    Start("TPE, constant for 0.1, then within 0.4", (TENTH, NEAR), sampler="TPESampler"),
    Start("TPE, warm start from half", warm="half", sampler="TPESampler"),
)


@dataclass
class Record:
    """In-memory replacement of a study's journal."""

    candidates: list[Candidate] = field(default_factory=list)
    trials: list[FrozenTrial] = field(default_factory=list)

    def add(self, candidate: Candidate, trial: FrozenTrial) -> None:
        """Add a finished candidate."""
        self.candidates.append(candidate)
        self.trials.append(trial)


class Searcher:
    """One search on a landscape, with the product's stages.

    Args:
        replay: Landscape, space and objective.
        config: Configuration of the landscape.
        start: Stages and warm start.
        seed: Its run_seed.
        part: Items on which it is scored; None for all.
    """

    def __init__(
        self,
        replay: Replay,
        config: Config,
        start: Start,
        seed: int,
        part: NDArray[np.int64] | None = None,
    ) -> None:
        self._replay, self._config, self._seed, self._part = replay, config, seed, part
        stages = tuple(map(StageSection.model_validate, start.stages))
        plan = plan_stages(config.model_copy(update={"stages": stages}), replay.landscape.groups)
        opening = plan[0].space
        if start.warm:
            plan, opening = with_warm_start(plan, self._given(start.warm)), plan[-1].space
        section = SearchSection(sampler=start.sampler, run_seed=seed, items=1)
        self._queue, self._record = TrialQueue(plan, section), Record()
        self._begin(opening)

    def _given(self, warm: str) -> list[tuple[str, Recipe]]:
        """Return the recipes of a warm start."""
        space = self._replay.parts.space
        if warm == "random":
            chance = np.random.default_rng(self._seed)
            drawn = ({g: chance.uniform(*b) for g, b in space.genes.items()} for _ in range(TAKEN))
            return [("random", space.decode(genotype)) for genotype in drawn]
        size = self._replay.landscape.items.n
        half = np.sort(np.random.default_rng(self._seed).permutation(size)[: size // 2])
        earlier = Searcher(self._replay, self._config, Start("earlier"), self._seed + 1000, half)
        earlier.run(EARLIER_TRIALS * half.size)
        complete = [c for c in earlier.candidates if c.is_searched and not c.raced]
        best = sorted(complete, key=lambda c: (-(c.value or 0.0), c.number))[:TAKEN]
        return [(c.name, c.recipe) for c in best]

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Finished candidates."""
        return self._record.candidates

    def _begin(self, opening: Space) -> None:
        """Add the baselines and open the race."""
        baselines = []
        for baseline in self._replay.parts.baselines_in(opening):
            if is_linear(baseline.recipe):
                scores, number = self._predict(baseline.recipe), len(baselines)
                value, recipe = self._replay.value(scores), baseline.recipe
                candidate = Candidate(
                    number, baseline.name, baseline.kind, recipe, value, items=scores.n
                )
                self._record.add(candidate, self._queue.add(baseline.params, candidate))
                baselines.append(scores)
        self._best = max(baselines, key=self._replay.value)
        self._race = self._replay.race(baselines)
        self._order = np.array(item_order(self._race.references, self._seed))

    def _predict(self, recipe: Recipe) -> ItemScores:
        scores = self._replay.landscape.predict(np.array(features(recipe)))
        return scores if self._part is None else scores.subset(self._part)

    def run(self, items: int) -> Floats:
        """Run the search; return items spent and the best score after each candidate (t, 2)."""
        budget, queue, record = Budget(Limits(items=items), 0), self._queue, self._record
        ends, spent = rung_ends(self._order.size), 0
        steps = [(0, self._replay.value(self._best))]
        while budget.spent(self.candidates) is None:
            if queue.is_between_stages:
                queue.begin_stage(record.trials, record.candidates)
            if queue.end_stage(budget.used(self.candidates)):
                continue
            pending = queue.ask(len(record.candidates))
            scores = self._predict(pending.candidate.recipe)
            end, value = self._replay.raced(self._race, scores, self._best, self._order, ends)
            is_raced = end < self._order.size
            done = replace(pending.candidate, value=value, items=end, raced=is_raced)
            record.add(done, queue.finish(pending, done))
            queue.tell()
            spent += end
            if not is_raced and value > self._replay.value(self._best):
                self._best = scores
            steps.append((spent, self._replay.value(self._best)))
        return np.array(steps, dtype=float)


def rows(replay: Replay, config: Config, seeds: int, full: int) -> Iterator[dict[str, Any]]:
    """Yield one row per start; the gain is the first row's at the end of its budget."""
    target = near_target = 0.0
    for start in STARTS:
        traces = [Searcher(replay, config, start, seed).run(full) for seed in range(seeds)]
        if start is STARTS[0]:
            target = float(np.median([best_at(steps, full) for steps in traces]))
            before = best_at(traces[0], 0)
            near_target = before + MOST * (target - before)
        row: dict[str, Any] = {"name": start.name, "seeds": seeds, "target": target}
        for name, goal in (("soon", near_target), ("all", target)):
            needed = [items_to(steps, goal) for steps in traces]
            row[name] = float(np.median(needed))
            row[f"{name}_quartiles"] = np.quantile(needed, (0.25, 0.75), method="nearest").tolist()
            row[f"{name}_reached"] = int(sum(map(np.isfinite, needed)))
        for share in (*SHARES, 1.0):
            values = [best_at(steps, share * full) for steps in traces]
            row[f"at {share:g}"] = [float(np.mean(values)), *interval(values)]
        yield row


def table(results: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    shares = [key for key in results[0] if key.startswith("at ")]
    titles = ["start", f"items to {MOST:.0%} of the gain (quartiles)", "items to the full gain"]
    titles += ["reached", *(f"best {key} of the budget (95 %)" for key in shares)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in results:
        cells = [row["name"]]
        cells += [median_cell(row[k], row[f"{k}_quartiles"]) for k in ("soon", "all")]
        cells.append(f"{row['all_reached']}/{row['seeds']}")
        cells += [mean_cell(mean, ends) for mean, *ends in map(row.__getitem__, shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stages and warm starts compared by items spent.")
    parser.add_argument("landscape", type=Path, help="file written by landscape.py")
    parser.add_argument("--config", default="quickstart", help="configuration of the landscape")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--trials", type=int, default=TRIALS, help="budget, in candidates on every item"
    )
    parser.add_argument("--out", type=Path, help="folder for starts.md and starts.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = Landscape.read(options.landscape)
    config = load_config(find_config(options.config))
    replay = Replay(landscape, landscape.setup(config))
    results, full = [], options.trials * landscape.items.n
    for row in rows(replay, config, options.seeds, full):
        results.append(row)
        print(table(results[-1:]).splitlines()[-1], flush=True)
    if options.out is None:
        return
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = {"date": day, "landscape": options.config, "items": full, "rows": results}
    page = (
        f"# Stages and warm starts by items spent, on the recorded landscape of `{options.config}`"
        f"\n\n{day}; a budget of {full} items ({options.trials} candidates on every item), raced; "
        "items of a warm start's earlier study are not counted. The share after a stage is its "
        f"part of the budget; the gain is the first row's at its end.\n\n{table(results)}\n"
    )
    write_results(options.out, "starts", facts, page)


if __name__ == "__main__":
    main()
