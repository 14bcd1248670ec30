"""Splits: by hash alone, copies together, caps by lowest hash."""

import random
from collections import Counter

import pytest
from heterosis.evals.tasks.splits import Splits, cap_rank, capped, doc_hash


def hashes(n: int) -> list[str]:
    return [doc_hash({"question": f"what is {i}?", "answer": i}) for i in range(n)]


def test_hash_ignores_key_order_and_nothing_else():
    assert doc_hash({"a": 1, "b": "é"}) == doc_hash({"b": "é", "a": 1})
    assert doc_hash({"a": 1}) != doc_hash({"a": "1"})
    assert doc_hash({"a": "x"}) != doc_hash({"a": "x "})


def test_share_is_right_and_splits_are_disjoint():
    sides = Splits(0.3).assign(hashes(4000))
    counts = Counter(sides)
    assert set(counts) == {"search", "confirm"}
    assert abs(counts["search"] / 4000 - 0.3) < 0.03


@pytest.mark.parametrize(("share", "only"), [(1.0, "search"), (0.0, "confirm")])
def test_extreme_shares(share, only):
    assert set(Splits(share).assign(hashes(50))) == {only}


def test_assignment_depends_on_no_other_document_and_on_no_order():
    every = hashes(200)
    whole = dict(zip(every, Splits().assign(every), strict=True))
    shuffled = random.Random(1).sample(every, 90)
    assert Splits().assign(shuffled) == [whole[h] for h in shuffled]


def test_raising_the_share_only_moves_items_into_the_search():
    every = hashes(300)
    few, many = Splits(0.3).assign(every), Splits(0.6).assign(every)
    assert all(m == "search" for f, m in zip(few, many, strict=True) if f == "search")


def test_copies_land_together_even_at_a_cap():
    every = hashes(60) * 3
    for splits in (Splits(), Splits(0.5, search_items=20, confirm_items=10)):
        sides = splits.assign(every)
        by_hash: dict[str, set[str]] = {}
        for digest, side in zip(every, sides, strict=True):
            by_hash.setdefault(digest, set()).add(side)
        assert all(len(names) == 1 for names in by_hash.values())


def test_caps_keep_that_many_and_grow_by_addition():
    every = hashes(400)
    small = Splits(0.5, search_items=20, confirm_items=30).assign(every)
    large = Splits(0.5, search_items=40).assign(every)
    assert Counter(small)["search"] == 20
    assert Counter(small)["confirm"] == 30
    assert Counter(large)["search"] == 40
    assert all(b == "search" for a, b in zip(small, large, strict=True) if a == "search")


def test_capped_never_takes_part_of_a_set_of_copies():
    every = hashes(4) * 3
    assert len(capped(every, 8, cap_rank)) == 2
    assert capped(every, 2, cap_rank) == set()
    assert capped(every, None, cap_rank) == set(every)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"`search_share` must be in \[0, 1\], got"):
        Splits(share)


@pytest.mark.parametrize("name", ["search_items", "confirm_items"])
def test_cap_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0; leave it out"):
        Splits(**{name: 0})
