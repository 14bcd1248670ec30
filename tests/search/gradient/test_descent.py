"""The descent: on known functions, within bounds, resumed to the bit; its minibatches."""

import json
import math

import numpy as np
import pytest
from heterosis.search.gradient.descent import AVERAGED, RATE, Descent
from heterosis.search.gradient.minibatches import Minibatches

BOUNDS = {"x": (0.0, 1.0), "y": (-1.0, 3.0)}
START = {"x": 0.5, "y": 0.5}
KEYS = [("a", row) for row in range(20)] + [("b", row) for row in range(5)] + [("c", 7)]


def bowl(genotype):
    return {"x": 2 * (genotype["x"] - 0.3), "y": 200 * (genotype["y"] - 0.9)}


def test_the_first_step_is_a_share_of_each_interval_whatever_the_slopes():
    for scale in (1e-6, 1.0, 1e6):
        descent = Descent(BOUNDS, START)
        descent.step({"x": scale, "y": -scale})
        assert descent.genotype["x"] == pytest.approx(0.5 - RATE, abs=1e-6)
        assert descent.genotype["y"] == pytest.approx(0.5 + 4 * RATE, abs=1e-5)


def test_it_finds_the_bottom_of_a_bowl():
    descent = Descent(BOUNDS, START)
    for _ in range(200):
        descent.step(bowl(descent.genotype))
    assert descent.genotype == pytest.approx({"x": 0.3, "y": 0.9}, abs=0.02)


def test_it_stays_within_bounds():
    descent = Descent(BOUNDS, {"x": 2.0, "y": 0.5})
    assert descent.genotype["x"] == 1.0
    for _ in range(50):
        descent.step({"x": 1.0, "y": 1.0})
    assert descent.genotype == {"x": 0.0, "y": -1.0}


def test_the_average_is_that_of_the_last_iterates():
    descent, seen = Descent(BOUNDS, START), []
    assert descent.average == START
    for _ in range(AVERAGED + 2):
        descent.step(bowl(descent.genotype))
        seen.append(descent.genotype["x"])
    assert descent.average["x"] == pytest.approx(np.mean(seen[-AVERAGED:]))


def test_a_restored_descent_goes_on_to_the_bit():
    descent, other = Descent(BOUNDS, START), Descent(BOUNDS, START)
    for _ in range(7):
        descent.step(bowl(descent.genotype))
    other.restore(json.loads(json.dumps(descent.to_dict())))
    for _ in range(7):
        descent.step(bowl(descent.genotype))
        other.step(bowl(other.genotype))
    assert other.to_dict() == descent.to_dict() and other.average == descent.average


def test_genes_without_a_slope_stay():
    descent = Descent(BOUNDS, START)
    descent.step({"x": 1.0})
    assert descent.genotype["y"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_slope_that_is_not_finite_is_refused(value):
    descent = Descent(BOUNDS, START)
    with pytest.raises(ValueError, match=r"must be finite, got .* for y; .*narrow the bounds"):
        descent.step({"x": 0.1, "y": value})
    assert descent.steps == 0 and descent.genotype == START


def test_minibatches_follow_from_seed_and_step():
    one, same, other = (Minibatches(KEYS, 4, seed) for seed in (1, 1, 2))
    assert [one.at(step) for step in (5, 0)] == [same.at(step) for step in (5, 0)]
    assert [one.at(step) for step in range(3)] != [other.at(step) for step in range(3)]


def test_every_task_gives_its_part_and_held_items_are_never_seen():
    batches = Minibatches(KEYS, 4, seed=3)
    held = set(batches.held)
    assert {task: sum(key[0] == task for key in held) for task in "abc"} == {"a": 5, "b": 1, "c": 0}
    for step in range(30):
        items = batches.at(step)
        counts = {task: sum(key[0] == task for key in items) for task in "abc"}
        assert counts == {"a": 4, "b": 4, "c": 1}
        assert len(set(items)) == len(items) and not held & set(items)


def test_every_item_is_seen_equally_often():
    batches = Minibatches(KEYS, 5, seed=3, apart=0.0)
    assert batches.held == ()
    seen = [key for step in range(8) for key in batches.at(step) if key[0] == "a"]
    assert {seen.count(key) for key in KEYS if key[0] == "a"} == {2}
