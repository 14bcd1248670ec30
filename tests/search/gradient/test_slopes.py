"""Slopes of the objective by genes: finite differences, weights of terms, memory."""

from dataclasses import replace

import pytest
import torch
from heterosis.evals.gradient.losses import LossReport, SmoothLosses
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.search.config.load import load_config
from heterosis.search.evaluate.objective import Objective
from heterosis.search.gradient.descent import Descent
from heterosis.search.gradient.minibatches import Minibatches
from heterosis.search.gradient.slopes import (
    GradientMemoryError,
    SlopeEvaluator,
    loss_weights,
    total_loss,
)
from heterosis.search.study.build import build_engine, make_scorer
from heterosis.search.study.parts import open_parts

from ..conftest import SmallSearch


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[SlopeEvaluator, SlopeEvaluator]:
    """Losses of search items and of confirm items, with one engine."""
    path = SmallSearch(tmp_path_factory.mktemp("slopes")).write(
        space={"depth": "layers", "lambda": [0.5, 1.5]}, splits={"search_items": 80}
    )
    parts = open_parts(load_config(path))
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    search, confirm = (
        SmoothLosses(scorer, split, parts.objective.terms) for split in (SEARCH, CONFIRM)
    )
    made = SlopeEvaluator(engine, search, parts.space, parts.objective)
    return made, replace(made, losses=confirm)


@pytest.fixture(scope="module")
def small(both) -> SlopeEvaluator:
    return both[0]


@pytest.fixture(scope="module")
def confirm(both) -> SlopeEvaluator:
    return both[1]


def test_slopes_are_those_of_finite_differences(small):
    items, weights = list(small.losses.items)[::4], loss_weights(small.objective, None)
    at = small.space.middle
    slopes = small.slopes(at, items, weights).genes
    assert set(slopes) == set(small.space.genes)
    for gene in ("weight.python.mlp.0", "weight.java.attn.2", "lambda"):
        ends = [
            total_loss(small.evaluate(at | {gene: at[gene] + by}, items), weights)
            for by in (0.01, -0.01)
        ]
        assert slopes[gene] == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.02, abs=1e-3)


def test_the_iterate_that_held_items_choose_is_better_on_items_never_seen(small, confirm):
    batches = Minibatches(small.losses.items, 10, seed=0)
    weights, start = loss_weights(small.objective, None), small.space.middle
    descent = Descent(small.space.genes, start)
    iterates = [start]
    for step in range(10):
        descent.step(small.slopes(descent.genotype, batches.at(step), weights).genes)
        iterates.append(descent.genotype)
    held = [total_loss(small.evaluate(each, batches.held), weights) for each in iterates]
    chosen = iterates[held.index(min(held))]
    before, after = (
        total_loss(confirm.evaluate(each, list(confirm.losses.items)), weights)
        for each in (start, chosen)
    )
    assert after < 0.8 * before


def test_a_pass_that_runs_out_of_memory_is_repeated_in_smaller_microbatches(small, monkeypatch):
    items, weights = list(small.losses.items)[:12], loss_weights(small.objective, None)
    expected = small.slopes(small.space.middle, items, weights).genes
    sizes, backward = [], SmoothLosses.backward

    def failing(self, *arguments):
        sizes.append(self.most_tokens)
        report = backward(self, *arguments)  # memory runs out when much is done
        if len(sizes) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return report

    monkeypatch.setattr(small.losses, "most_tokens", 400)
    monkeypatch.setattr(SmoothLosses, "backward", failing)
    found = small.slopes(small.space.middle, items, weights).genes
    assert sizes == [400, 200, 100]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_backward_pass_that_never_fits_says_so(small, monkeypatch):
    def failing(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(small.losses, "most_tokens", 100)
    monkeypatch.setattr(small.losses, "is_checkpointing", False)
    monkeypatch.setattr(SmoothLosses, "backward", failing)
    with pytest.raises(GradientMemoryError, match=r"one item.*set `search\.gradient: false`"):
        small.slopes(
            small.space.middle, list(small.losses.items)[:2], loss_weights(small.objective, None)
        )
    assert not any(p.requires_grad for p in small.engine.model.parameters())


def report(**right: tuple[int, int]) -> LossReport:
    made = LossReport()
    for term, (good, n) in right.items():
        made.losses[term] = [0.5] * n
        made.right[term] = [True] * good + [False] * (n - good)
    return made


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", {"a": 0.5, "b": 0.5}),
        ("weighted", {"a": 0.25, "b": 0.75}),
        ("min", {"a": 0.0, "b": 1.0}),
        ("harmonic", {"a": 0.25 / 0.81, "b": 0.75 / 0.04}),
    ],
)
def test_weights_are_the_derivatives_of_the_objective(rule, expected):
    weights = {"a": 1.0, "b": 1.0 if rule in ("mean", "min") else 3.0}
    objective = Objective(rule, weights, {"a": 1, "b": 1})
    found = loss_weights(objective, report(a=(17, 18), b=(3, 18)))  # .9 and .2 with one of each
    total = sum(expected.values())
    assert found == pytest.approx({term: w / total for term, w in expected.items()})


def test_without_a_report_terms_have_their_shares():
    objective = Objective("harmonic", {"a": 1.0, "b": 3.0}, {"a": 1, "b": 1})
    assert loss_weights(objective, None) == pytest.approx({"a": 0.25, "b": 0.75})
    assert loss_weights(objective, report(a=(0, 9), b=(0, 9)))["a"] == pytest.approx(0.25)
