"""Pareto fronts."""

import numpy as np
import pytest
from heterosis.search.evaluate.pareto import (
    crowding_distance,
    front_members,
    is_on_front,
    place_in_fronts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

points = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30
)


@settings(deadline=None)
@given(points)
def test_no_member_of_a_front_is_beaten_and_all_others_are(rows):
    values = np.array(rows, float)
    for own, is_in in zip(values, is_on_front(values), strict=True):
        beaten = any((v >= own).all() and (v > own).any() for v in values)
        assert is_in == (not beaten)


@settings(deadline=None)
@given(points)
def test_fronts_are_peeled_one_by_one(rows):
    values = np.array(rows, float)
    fronts = np.array([front for front, _ in place_in_fronts(values, len(values))])
    for number in range(fronts.max() + 1):
        left = fronts >= number
        assert np.array_equal(is_on_front(values[left]), fronts[left] == number)


def test_the_ends_of_a_front_come_first_then_the_least_crowded():
    values = np.array([[0.0, 1.0], [0.1, 0.9], [0.2, 0.85], [0.6, 0.5], [1.0, 0.0]])
    assert crowding_distance(values)[[0, 4]].tolist() == [np.inf, np.inf]
    assert set(front_members(values)[:2]) == {0, 4}
    assert front_members(values)[2] == 3
    assert crowding_distance(values)[1] == pytest.approx(0.2 + 0.15)
