"""Genes told from all trials: those that matter are found, idle ones are not."""

import json
from dataclasses import asdict

import optuna
import pytest
from heterosis.search.report.importance import FEWEST, MOST, importances
from optuna.trial import create_trial

from ..trials import trials_of, values_of


def test_genes_and_choices_that_matter_are_shown_and_idle_ones_are_not():
    trials = trials_of(120)
    found = importances(trials, values_of(trials))
    assert found is not None
    assert list(found.genes)[:2] == ["method", "strong"]
    assert {name for name, gene in found.genes.items() if gene.is_shown} == {"method", "strong"}
    assert all(g.low <= g.share <= g.high for g in found.genes.values())
    assert 0 < found.chance < found.genes["strong"].low
    assert found.trials == 120
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_the_same_trials_say_the_same_again():
    trials = trials_of(FEWEST)
    assert importances(trials, values_of(trials)) == importances(trials, values_of(trials))


def test_few_trials_or_equal_scores_give_no_importances():
    trials = trials_of(FEWEST)
    assert importances(trials[1:], values_of(trials[1:])) is None
    assert importances(trials, [0.5] * len(trials)) is None
    assert importances(trials, [*values_of(trials[1:]), float("nan")]) is None


def test_trials_without_a_genotype_do_not_count():
    trials = trials_of(FEWEST)
    given = create_trial(value=9.0)
    assert importances([*trials, given], [*values_of(trials), 9.0]) == importances(
        trials, values_of(trials)
    )
    assert importances([*trials[1:], given], [*values_of(trials[1:]), 9.0]) is None


def test_many_genes_are_grouped_by_curve():
    names = [f"weight.a.attn.{i}" for i in range(42)]
    trials = trials_of(FEWEST, genes=("strong", *names))
    found = importances(trials, values_of(trials))
    assert found is not None
    assert set(found.genes) == {"strong", "weight.a.attn", "method"}


@pytest.mark.parametrize("factor", [1, 3])
def test_a_forest_sees_at_most_so_many_trials(factor, monkeypatch):
    trials = trials_of(MOST * factor)
    seen = []
    make = optuna.create_study

    def counted(**options):
        seen.append(make(**options))
        return seen[-1]

    monkeypatch.setattr("heterosis.search.report.importance.REPEATS", 1)
    monkeypatch.setattr(optuna, "create_study", counted)
    assert importances(trials, values_of(trials)) is not None
    assert len(seen[0].get_trials(deepcopy=False)) == MOST


def test_the_last_stage_of_a_search_counts():
    coarse, fine = trials_of(80, genes=("strong",)), trials_of(FEWEST, seed=2)
    found = importances([*coarse, *fine], values_of([*coarse, *fine]))
    assert found == importances(fine, values_of([*coarse, *fine])[80:])
    assert found is not None
    assert found.trials == FEWEST
    assert importances([*fine, *coarse[:9]], values_of([*fine, *coarse[:9]])) is None
