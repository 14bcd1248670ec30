"""Recorded landscapes: what a point is, and that the surrogate learns what the points span."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heterosis.search.assembly import open_parts
from heterosis.search.config import find_config, load_config

RECORDED = Path(__file__).parents[1] / "results/reference/search/quickstart.npz"


@pytest.fixture(scope="module")
def landscape(benchmark_scripts) -> Any:
    return importlib.import_module("landscape")


@pytest.fixture(scope="module")
def quickstart() -> Any:
    return load_config(find_config("quickstart"))


@pytest.fixture(scope="module")
def setup(landscape, quickstart) -> Any:
    return landscape.Landscape.read(RECORDED).setup(quickstart)


def test_baselines_have_the_features_of_the_merge_that_they_are(landscape, setup):
    found = {
        b.name: landscape.features(b.recipe)
        for b in setup.baselines
        if landscape.is_linear(b.recipe)
    }
    assert set(found["task_arithmetic lambda=0.3"]) == {0.3}
    assert set(found["uniform"]) == {0.5}
    assert set(found["parent:java"]) == {0.0, 1.0}
    assert not any(name.startswith(("ties", "dare")) for name in found)


def test_a_replay_needs_no_parents_and_is_of_the_same_space(setup, quickstart):
    parts = open_parts(quickstart)
    assert setup.space.to_dict() == parts.space.to_dict()
    assert setup.objective == parts.objective
    assert [b.recipe for b in setup.baselines] == [b.recipe for b in parts.baselines]


def test_no_two_recorded_points_are_alike(landscape):
    land = landscape.Landscape.read(RECORDED)
    assert len(np.unique(land.x.round(6), axis=0)) > 0.99 * len(land.x)


def test_layers_that_share_a_gene_do_not_change_the_surrogate(landscape):
    # One gene in 30 layers is one direction; float32 leaves noise in the 29 others.
    land = landscape.Landscape.read(RECORDED)
    chance = np.random.default_rng(0)
    genes = chance.random((60, 2))
    right = (genes[:, :1] > chance.random((1, land.items.n))).astype(float)
    one = replace(land, x=genes * np.sqrt(15), value=right, margin=right)
    tied = np.repeat(genes, 15, axis=1).astype(np.float32).astype(float)
    many = replace(one, x=tied)
    assert one.is_full
    assert not many.is_full
    for place in chance.random((20, 2)):
        told = one.at(place * np.sqrt(15)), many.at(np.repeat(place, 15))
        assert np.allclose(told[0].margin, told[1].margin, atol=1e-4)
    assert many.held_out()["rank"] > 0.9
