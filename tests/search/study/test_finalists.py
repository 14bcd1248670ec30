"""Finalists: the best by score or estimate, after those with an estimate are completed."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.search.storage.candidate import Candidate
from heterosis.search.study.finalists import finalists, finals

RECIPE = Recipe("linear", ("a",), {"layers.0.attn": Coefficients((1.0,), (0.0,))})


def candidates(*told: float | None) -> list[Candidate]:
    """A baseline, then candidates; those with negative values were stopped at the estimate."""
    found = [Candidate(0, "base", "base", RECIPE, value=0.99)]
    for number, value in enumerate(told, 1):
        score = None if value is None else abs(value)
        raced = value is not None and value < 0
        found.append(Candidate(number, "", "candidate", RECIPE, value=score, raced=raced))
    return found


def chosen(given: list[Candidate], count: int, truth: Mapping[int, float | None]):
    """Numbers of the finalists, and of those that were completed on the way."""
    asked = []

    def complete(candidate: Candidate) -> Candidate | None:
        asked.append(candidate.number)
        value = truth[candidate.number]
        return None if value is None else replace(candidate, value=value, raced=False)

    known, found = finals(given, count, complete)
    assert [c.number for c in known] == [c.number for c in given]
    return [c.number for c in found], asked


def test_only_estimates_among_the_best_are_completed():
    given = candidates(0.8, -0.7, 0.6, -0.5, None)
    assert chosen(given, 2, {2: 0.75}) == ([1, 2], [2])
    assert chosen(given, 2, {2: 0.55}) == ([1, 3], [2]), "its place is that of its score"
    assert chosen(given, 1, {}) == ([1], [])
    assert finalists(given, 2) == [given[1], given[3]], "scores come before estimates"


def test_a_completed_candidate_that_falls_makes_room_for_the_next_up_to_a_bound():
    given = candidates(0.9, -0.8, -0.7, -0.6, -0.5, 0.1)
    truth = {2: 0.3, 3: 0.2, 4: 0.65, 5: 0.5}
    assert chosen(given, 3, truth) == ([1, 4, 2], [2, 3, 4])
    assert chosen(given, 2, truth) == ([1, 2], [2, 3]), "no more than finalists"


def test_a_candidate_that_cannot_be_completed_ranks_after_the_others():
    given = candidates(0.8, -0.7, 0.6)
    assert chosen(given, 2, {2: None}) == ([1, 3], [2])
    assert chosen(given, 3, {2: None}) == ([1, 3, 2], [2])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fronts_decide_with_several_values(count):
    values = [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5), (0.4, 0.4)]
    given = [
        Candidate(n, "", "candidate", RECIPE, 0.5, values=v, raced=n == 2)
        for n, v in enumerate(values)
    ]
    found, asked = chosen(given, count, {2: 0.5})
    assert found == [0, 1, 2, 3][:count]
    assert asked == ([2] if count > 2 else [])
