"""Recorded landscapes: features of points, and the directions in which the surrogate is fitted."""

from dataclasses import replace

import numpy as np
from heterosis.search.study.parts import open_parts


def test_baselines_have_the_features_of_their_recipes(landscape, setup):
    features = {
        b.name: landscape.features(b.recipe)
        for b in setup.baselines
        if landscape.is_linear(b.recipe)
    }
    assert set(features["task_arithmetic lambda=0.3"]) == {0.3}
    assert set(features["uniform"]) == {0.5}
    assert set(features["parent:java"]) == {0.0, 1.0}
    assert not any(name.startswith(("ties", "dare")) for name in features)


def test_a_replay_needs_no_parents_and_has_the_same_space(setup, quickstart):
    parts = open_parts(quickstart)
    assert setup.space.to_dict() == parts.space.to_dict()
    assert setup.objective == parts.objective
    assert [b.recipe for b in setup.baselines] == [b.recipe for b in parts.baselines]


def test_recorded_points_differ(recorded):
    assert len(np.unique(recorded.x.round(6), axis=0)) > 0.99 * len(recorded.x)


def test_layers_that_share_a_gene_do_not_change_the_surrogate(recorded):
    # One gene in 30 layers is one direction; float32 leaves noise in the 29 others.
    chance = np.random.default_rng(0)
    genes = chance.random((60, 2))
    right = (genes[:, :1] > chance.random((1, recorded.items.n))).astype(float)
    one = replace(recorded, x=genes * np.sqrt(15), value=right, margin=right)
    tied = np.repeat(genes, 15, axis=1).astype(np.float32).astype(float)
    many = replace(one, x=tied)
    assert one.is_full
    assert not many.is_full
    for place in chance.random((20, 2)):
        predicted = one.predict(place * np.sqrt(15)), many.predict(np.repeat(place, 15))
        assert np.allclose(predicted[0].margin, predicted[1].margin, atol=1e-4)
    assert many.held_out()["rank"] > 0.9
