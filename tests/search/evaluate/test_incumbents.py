"""Whom a candidate is raced against: the same whom one would find by looking at all candidates."""

import random

import numpy as np
import pytest
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.search.evaluate.pareto import front_members
from heterosis.search.evaluate.racing import MOST_INCUMBENTS, IncumbentItems
from heterosis.search.propose.pace import first_searched
from heterosis.search.storage.candidate import Candidate

RECIPE = Recipe("linear", ("a",), {"layers.0.attn": Coefficients((1.0,), (0.0,))})


def some_candidates(n: int, n_values: int) -> list[Candidate]:
    """Baselines, then searched ones, of which some failed, were raced, or are variants."""
    chance, found = random.Random(n_values), []
    for number in range(n):
        kind = "uniform" if number < 4 else chance.choice(["candidate"] * 9 + ["reset"])
        values = tuple(chance.randrange(12) / 12 for _ in range(n_values))
        value = None if kind == "candidate" and chance.random() < 0.1 else sum(values) / n_values
        is_raced = kind == "candidate" and value is not None and chance.random() < 0.4
        several = values if n_values > 1 and value is not None else ()
        found.append(
            Candidate(number, "", kind, RECIPE, value=value, values=several, raced=is_raced)
        )
    return found


def looked_up(candidates: list[Candidate], known: int) -> list[int]:
    """The best of all that count, by their definition."""
    counted = first_searched(candidates, known)
    whole = [c for c in counted if c.value is not None and not c.raced and not c.is_variant]
    if whole and whole[0].values:
        members = front_members(np.array([c.values for c in whole]))
        return [whole[index].number for index in members[:MOST_INCUMBENTS]]
    return [max(whole, key=lambda c: c.value or 0.0).number] if whole else []


@pytest.mark.parametrize("n_values", [1, 2, 3])
def test_rivals_are_the_best_that_a_proposal_knew(n_values):
    candidates, read = some_candidates(300, n_values), []

    def items(candidate):
        read.append(candidate.number)
        return candidate.number

    incumbents = IncumbentItems(items)
    for known in range(200):
        seen = candidates[: known + 60]  # more are finished than the proposal knew
        assert list(incumbents.of_proposal(seen, known)) == looked_up(seen, known)
    assert len(read) < 200, "items of the same incumbents are read once"
    assert len(read) > len(set(read)) * 0.5
