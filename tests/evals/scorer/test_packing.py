"""Rows, groups, block mask and positions of the packed path."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from heterosis.evals.scorer.batches import Batch, Layout, Limits, Plan, Request
from heterosis.evals.scorer.packed import ROW_TOKENS, plan_packed, task_prefixes, visible
from heterosis.evals.scorer.packing import (
    Group,
    common_length,
    fill_rows,
    group_rows,
    shared_prefix,
)

LENGTH = 512


LIMITS = Limits(
    batch_size=4,
    batch_tokens=4 * ROW_TOKENS,
    max_length=LENGTH,
    longest_packed=2**62,
    vocabulary=1000,
    device=torch.device("cpu"),
)


def plan(requests: list[Request], prefixes=None, **changes) -> Plan:
    limits = replace(LIMITS, **changes)
    return plan_packed(requests, [0] * len(requests), prefixes or {}, limits)


def questions(n: int, seed: int = 0, before: tuple[int, ...] = ()) -> list[Request]:
    """Four choices each, behind contexts of 5 to 40 tokens."""
    rng = random.Random(seed)

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 1000) for _ in range(rng.randint(least, most)))

    contexts = [before + tokens(5, 40) for _ in range(n)]
    return [Request(context, tokens(1, 9)) for context in contexts for _ in range(4)]


# Which rows share what ----------------------------------------------------------------------


def test_common_length():
    assert common_length([]) == 0
    assert common_length([(1, 2)]) == 2
    assert common_length([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_length([(1,), (2,)]) == 0


def test_choices_of_a_question_stand_behind_one_trunk():
    rows = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7), (9, 8, 7)]
    groups = group_rows(rows, 100)
    assert groups == [Group((rows[0], rows[1]), 4), Group((rows[2],), 3)]
    assert [group.length for group in groups] == [4 + 1 + 2, 3]


def test_a_row_joins_only_where_that_spares_enough_and_fits():
    little = [(1, *range(10, 30)), (1, *range(40, 60))]  # one of 21 tokens is shared
    assert [len(group.rows) for group in group_rows(little, 100)] == [1, 1]
    much = [(*range(20), 30), (*range(20), 31)]
    assert [len(group.rows) for group in group_rows(much, 22)] == [2]
    assert [len(group.rows) for group in group_rows(much, 21)] == [1, 1]


def test_a_prefix_must_be_long_and_worth_its_pass():
    shared = tuple(range(20))
    rows = [(*shared, 50 + i) for i in range(4)]
    assert shared_prefix(rows, [20] * 4) == shared
    assert shared_prefix(rows, [17, 20, 20, 20]) == shared[:17]
    assert shared_prefix(rows, [15, 20, 20, 20]) == ()
    assert shared_prefix(rows[:1], [20]) == ()
    long = [(*shared, *range(100 * i, 100 * i + 400)) for i in range(1, 3)]
    assert shared_prefix(long, [20, 20]) == ()


def test_rows_are_filled_each_piece_once():
    lengths = np.random.default_rng(1).integers(1, 90, 200).tolist()
    rows = fill_rows([*lengths, 150], 100)
    assert sorted(i for row in rows for i in row) == list(range(201))
    assert rows[0] == [200]
    used = [sum([*lengths, 150][i] for i in row) for row in rows]
    assert max(used[1:]) <= 100
    assert used == sorted(used, reverse=True)
    assert len(rows) - 1 <= 1.1 * sum(lengths) / 100


# What a token sees --------------------------------------------------------------------------


def test_a_token_sees_the_prefix_its_trunk_and_its_own_branch():
    # A group of a trunk of 2 and branches of 1 and 2; a group of one row; padding.
    groups = torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1]])
    branches = torch.tensor([[0, 0, 1, 2, 2, 0, 0, 0]])
    seen = visible(Layout(torch.zeros_like(groups), groups, branches), 1)
    assert seen.shape == (1, 1, 8, 9)
    assert ["".join(map(str, row)) for row in seen[0, 0].int().tolist()] == [
        *("110000000", "111000000", "111100000", "111010000", "111011000"),
        *("100000100", "100000110", "100000001"),
    ]


def own_row(batch: Batch, b: int, column: int) -> tuple[list[int], list[int]]:
    """Token ids and positions that a cell sees, in order of positions."""
    assert batch.layout is not None
    seen = visible(batch.layout, 0)[b, 0, column]
    positions = batch.layout.positions[b][seen]
    return batch.ids[b][seen].tolist(), positions.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("behind", [0, 30])
def test_each_scored_position_sees_its_request_alone(seed, behind):
    before = tuple(range(1, behind + 1))
    requests = questions(25, seed, before)
    prefixes = task_prefixes(requests, [0] * len(requests), LIMITS)
    assert prefixes == ({0: before} if behind else {})
    made = plan(requests, prefixes)
    answers: dict[int, list[int]] = {}
    start = 0
    for batch in made.batches:
        width = batch.ids.shape[1]
        stop = start + len(batch.targets)
        for entry, target, r in zip(
            batch.entries, batch.targets, made.request_of[start:stop], strict=True
        ):
            b, column = divmod(int(batch.cells[entry]), width)
            ids, positions = own_row(batch, b, column)
            known = answers.setdefault(int(r), [])
            row = [*requests[r].context, *requests[r].continuation]
            n = len(requests[r].context) + len(known)
            assert [*before, *ids] == row[:n]
            assert positions == list(range(behind, n))
            assert int(target) == row[n]
            known.append(int(target))
        start = stop
    assert {r: tuple(known) for r, known in answers.items()} == {
        r: request.continuation for r, request in enumerate(requests)
    }


# Shapes -------------------------------------------------------------------------------------


def test_batches_keep_to_the_budget_in_few_shapes():
    requests = questions(200)
    made = plan(requests)
    shapes = {tuple(batch.ids.shape) for batch in made.batches}
    assert all(b * t <= 4 * ROW_TOKENS and t % 8 == 0 for b, t in shapes)
    assert len(shapes) <= 3
    assert made.n_tokens < 0.6 * sum(len(r.row(LENGTH)) for r in requests)


def test_the_plan_is_the_same_each_time():
    one, other = plan(questions(30)), plan(questions(30))
    assert np.array_equal(one.request_of, other.request_of)
    for a, b in zip(one.batches, other.batches, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.cells, b.cells)


def test_rows_too_long_to_pack_are_plain_rows():
    requests = [*questions(4), Request(tuple(range(1, 100)), (1, 2)), Request((1,) * 600, (3,))]
    made = plan(requests, longest_packed=60)
    plain = [batch for batch in made.batches if batch.layout is None]
    assert sorted(int(r) for r in made.request_of if r >= 16) == [16, 16, 17]
    assert sum(batch.ids.shape[0] for batch in plain) == 2
    assert max(batch.ids.shape[1] for batch in plain) == LENGTH


def test_few_logits_at_a_time(monkeypatch):
    monkeypatch.setattr("heterosis.evals.scorer.batches._MOST_LOGITS", 50 * 1000)
    made = plan(questions(100))
    assert len(made.batches) > len(plan(questions(100), vocabulary=1).batches)
