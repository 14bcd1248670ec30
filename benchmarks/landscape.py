"""A recorded merge landscape: item scores of real candidates, and a surrogate fitted to them.

    python benchmarks/landscape.py CONFIG OUT --points 300 [--study FOLDER ...]

Records every item's value and margin at points of a configuration's space, scored by the product's
engine and scorer, and of candidates of finished studies of the same configuration. Legend: N
points, g features (weights of the layer groups), n items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heterosis.evals.scores.scores import PER_TASK, ItemScores, item_scores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import Config
from heterosis.search.config.load import find_config, load_config
from heterosis.search.config.search import BaselinesSection
from heterosis.search.evaluate.objective import Objective
from heterosis.search.propose.baselines import LINEAR, Baseline, null_baselines
from heterosis.search.propose.space import Space, build_space
from heterosis.search.storage.candidate import candidate_of
from heterosis.search.storage.journal import Journal
from heterosis.search.study.build import build_engine, make_scorer
from heterosis.search.study.parts import Parts, open_parts
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.stats import qmc, spearmanr

Floats = NDArray[np.float64]

FEATURES = ("attn", "mlp")
"""Kinds of layer groups whose weights are a point's features; the others depend on them."""

MARGINS = (-30.0, 30.0)
"""Margins are clipped to this range in nats: beyond it differences carry no information."""

FLAT = 1e-4
"""Share of the largest singular value below which a direction counts as constant (float32)."""

SAVE_EVERY = 16
"""Points between two writes of the file, so that a kill does not lose hours of scoring."""


def features(recipe: Recipe) -> list[float]:
    """Return the layer groups' weights times lambda (g,), in the recipe's order."""
    groups = (c for name, c in recipe.coefficients.items() if name.rpartition(".")[2] in FEATURES)
    return [weight * recipe.lambda_ for c in groups for weight in c.weights]


def is_linear(recipe: Recipe) -> bool:
    """Return whether the weights alone determine the recipe."""
    return all(method.name in LINEAR for method in recipe.methods)


def points_of(study: Path) -> Iterator[tuple[list[float], ItemScores]]:
    """Yield a study's searched candidates that were scored on all items."""
    store = ItemStore(study / "items")
    for candidate in map(candidate_of, Journal(study).trials):
        is_complete = candidate.is_searched and candidate.value is not None and not candidate.raced
        scores = store.read(candidate.number, SEARCH) if is_complete else None
        if scores is not None:
            yield features(candidate.recipe), scores


def record(parts: Parts, count: int) -> Iterator[tuple[list[float], ItemScores]]:
    """Score points of a space: half of them anywhere in it, half near the uniform merge."""
    torch.set_num_threads(1)
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    scorer.path = scorer.self_check().path
    for baseline in parts.baselines:
        if is_linear(baseline.recipe):
            engine.load(baseline.recipe)
            yield features(baseline.recipe), scorer.score(SEARCH)
    genes = parts.space.genes
    low, high = np.array(list(genes.values())).T
    unit = qmc.Sobol(len(genes), rng=0).random(count)
    unit[1::2] = 0.5 + (unit[1::2] - 0.5) / 2
    for row in low + unit * (high - low):
        recipe = parts.space.decode(dict(zip(genes, row.tolist(), strict=True)))
        engine.load(recipe)
        yield features(recipe), scorer.score(SEARCH)


def save(out: Path, points: Sequence[tuple[list[float], ItemScores]], parts: Parts) -> None:
    """Write points (N), layer groups and objective to one file of a few megabytes."""
    first = points[0][1]
    header = {name: list(getattr(first, name)) for name in PER_TASK}
    np.savez_compressed(
        out,
        header=np.array(json.dumps(header)),
        model=np.array(
            json.dumps({"groups": parts.space.groups, "objective": parts.objective.to_dict()})
        ),
        task_index=first.task_index.astype(np.int16),
        doc_id=first.doc_id.astype(np.int32),
        features=np.array([f for f, _ in points], dtype=np.float32),
        value=np.array([scores.value for _, scores in points]).astype(np.float16),
        margin=np.clip([scores.margin for _, scores in points], *MARGINS).astype(np.float16),
    )


@dataclass(frozen=True)
class Setup:
    """What a replay uses of a configuration; needs neither parents nor tasks.

    Attributes:
        space: Search space.
        section: Baselines scored before the search.
        objective: Objective of the search.
    """

    space: Space
    section: BaselinesSection
    objective: Objective

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """The baselines, trials 0..k."""
        return self.baselines_in(self.space)

    def baselines_in(self, space: Space) -> tuple[Baseline, ...]:
        """Return the baselines with their genotypes in another space."""
        return null_baselines(space, self.section)


@dataclass(frozen=True)
class Landscape:
    """Recorded points and the surrogate fitted to them.

    Attributes:
        items: Scores of any point, which define the items (n).
        x: Features (N, g).
        value: Right or wrong (N, n).
        margin: Margins in nats (N, n).
        groups: Layer groups of the model.
        objective: Objective of the recorded configuration, as in a study's manifest.
    """

    items: ItemScores
    x: Floats
    value: Floats
    margin: Floats
    groups: tuple[str, ...]
    objective: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Landscape:
        """Read what `save` wrote."""
        data: Any = np.load(path)
        value, margin = data["value"].astype(float), data["margin"].astype(float)
        columns = {
            "task_index": data["task_index"],
            "doc_id": data["doc_id"],
            "value": value[0],
            "weight": np.ones(value.shape[1]),
            "margin": margin[0],
        }
        header, model = (json.loads(str(data[name])) for name in ("header", "model"))
        features = data["features"].astype(float)
        groups = tuple(model["groups"])
        return cls(
            item_scores(header, columns), features, value, margin, groups, model["objective"]
        )

    def setup(self, config: Config) -> Setup:
        """Return a configuration's replay setup, with the recorded tasks and task weights."""
        space = build_space(config, self.groups)
        recorded = Objective(**self.objective)
        return Setup(
            space,
            config.baselines,
            replace(
                recorded,
                rule=config.search.objective or recorded.rule,
                normalize=config.search.normalize,
            ),
        )

    @cached_property
    def _axes(self) -> Floats:
        # Directions in which the points vary (a, g): layers that share a gene are one direction; a
        # fit in all g features would fit rounding errors.
        _, sizes, axes = np.linalg.svd(self.x - self.x.mean(axis=0), full_matrices=False)
        return axes[sizes > FLAT * sizes[0]]

    @property
    def is_full(self) -> bool:
        """Whether all features vary independently, so that other depth shapes can be predicted."""
        return len(self._axes) == self.x.shape[1]

    @cached_property
    def _surface(self) -> RBFInterpolator:
        # Smoothed, so that noise is not interpolated.
        both = np.hstack([self.value, self.margin])
        x = self.x @ self._axes.T
        return RBFInterpolator(x, both, kernel="linear", smoothing=0.02, degree=1)

    @cached_property
    def _reach(self) -> tuple[Floats, Floats]:
        return self.margin.min(axis=0), self.margin.max(axis=0)

    def predict(self, x: Floats) -> ItemScores:
        """Return the predicted item scores at features (g,): right where more likely than not.

        Margins are clipped to the range recorded for their item.
        """
        value, margin = np.split(self._surface(x[None] @ self._axes.T)[0], 2)
        margin = np.clip(margin, *self._reach)
        return replace(self.items, value=(value > 0.5).astype(float), margin=margin)

    def held_out(self, folds: int = 5) -> dict[str, float]:
        """Return the surrogate's accuracy on held-out points: for answers and for the objective."""
        objective = Objective(**self.objective)
        order = np.random.default_rng(0).permutation(len(self.x))
        predicted, actual, right = [], [], []
        for fold in range(folds):
            held_out = order[fold::folds]
            rest = np.setdiff1d(order, held_out)
            landscape = replace(
                self, x=self.x[rest], value=self.value[rest], margin=self.margin[rest]
            )
            for index in held_out:
                a = landscape.predict(self.x[index])
                b = replace(self.items, value=self.value[index])
                predicted.append(objective.combined(a).value)
                actual.append(objective.combined(b).value)
                right.append((a.value == b.value).mean())
        t, y = np.array(predicted), np.array(actual)
        return {
            "points": len(self.x),
            "items": self.items.n,
            "answers": float(np.mean(right)),
            "r2": float(1 - ((t - y) ** 2).mean() / y.var()),
            "rank": float(np.asarray(spearmanr(t, y))[0]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a merge landscape.")
    parser.add_argument("config", help="configuration file, or name of a shipped one")
    parser.add_argument("out", type=Path, help="file to write, .npz")
    parser.add_argument("--points", type=int, default=256, help="points of the space to score")
    parser.add_argument("--study", type=Path, action="append", default=[], help="finished studies")
    options = parser.parse_args()
    parts = open_parts(load_config(find_config(options.config)))
    points = [point for study in options.study for point in points_of(study)]
    for point in record(parts, options.points):
        points.append(point)
        print(f"{len(points)} points", end="\r", flush=True)
        if len(points) % SAVE_EVERY == 0:
            save(options.out, points, parts)
    save(options.out, points, parts)
    print(json.dumps(Landscape.read(options.out).held_out()))


if __name__ == "__main__":
    main()
