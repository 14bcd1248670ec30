"""Ablation of the winner: masks, genes, and the simplest recipe without a loss."""

import math
from dataclasses import replace

import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.stats.comparison import Difference
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.search.config.load import load_config
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.leaderboard.sentences import caveat_lines
from heterosis.search.leaderboard.views import markdown
from heterosis.search.storage.candidate import VARIANTS, Candidate, candidate_of
from heterosis.search.storage.journal import Journal
from heterosis.search.study.parts import open_parts
from heterosis.search.study.variants import (
    MOST_RESETS,
    gene_groups,
    plain_params,
    rerolls,
    resets,
    simplify,
    without,
)
from hypothesis import given
from hypothesis import strategies as st

from ..conftest import SmallSearch
from ..studies import record, run

RANDOM = {
    "merge": {"method": "dare_ties", "dtype": "float32", "device": "cpu"},
    "space": {"depth": "constant", "drop_rate": [0.0, 0.6], "weight": [0.0, 2.0]},
}


def space_of(small_search, **changes):
    return open_parts(load_config(small_search.write(**changes))).space


def winner_of(space, params) -> Candidate:
    return Candidate(9, "candidate 9", "candidate", space.decode(params), value=0.5)


def test_masks_are_rerolled_only_if_they_drop_anything(small_search):
    space = space_of(small_search, **RANDOM)
    winner = winner_of(space, space.middle)
    variants = rerolls(winner, 3)
    seeds = {variant.recipe.mask_seed for variant in variants}
    assert len(seeds | {winner.recipe.mask_seed}) == 4
    assert variants[0].name == "candidate 9, mask 1"
    assert rerolls(winner, 3) == variants
    assert rerolls(winner_of(space, plain_params(space)), 3) == [], "nothing is dropped"
    calm = space_of(small_search)
    assert rerolls(winner_of(calm, calm.middle), 3) == []


def test_genes_are_reset_to_the_uniform_merge_one_at_a_time(small_search):
    space = space_of(small_search)
    plain = plain_params(space)
    assert space.decode(plain) == space.decode(space.middle)
    params = dict.fromkeys(space.genes, 0.9) | {"weight.python.attn.0": 0.5}
    variants = resets(winner_of(space, params), params, space)
    assert [v.reset[0] for v in variants] == [g for g in space.genes if params[g] != 0.5]
    first = next(v for v in variants if v.reset == ("weight.java.mlp.1",))
    assert first.recipe == space.decode(params | {"weight.java.mlp.1": 0.5})
    assert without(params, list(space.genes), space) == space.decode(plain)


def test_where_genes_are_many_curves_are_reset_as_a_whole(small_search):
    kinds = ["attn", "mlp", "other"]
    free = {"depth": "layers", "modules": kinds, "drop_rate": [0.0, 0.5]}
    space = space_of(small_search, merge={"method": "dare_ties"}, space=free)
    assert len(space.genes) > MOST_RESETS
    groups = gene_groups(space)
    curves = [f"{head}.{p}" for head in ("weight", "drop_rate") for p in ("python", "java")]
    assert set(groups) == {f"{curve}.{kind}" for curve in curves for kind in kinds}
    assert sorted(gene for group in groups.values() for gene in group) == sorted(space.genes)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**16))
def test_bisection_finds_the_most_groups_to_reset_in_few_trials(n, needed, shuffle):
    # The last `needed` genes of the order cannot go; nothing else is known of their effects.
    needed = min(needed, n)
    effects = {
        f"g{i}": Difference(-i / 100, 0.01, 0.5 if (shuffle >> i % 16) & 1 else 1e-6, 10, "normal")
        for i in range(n)
    }
    trials = []

    def is_fine(groups):
        trials.append(tuple(groups))
        return len(groups) <= n - needed

    assert simplify(effects, is_fine) == tuple(f"g{i}" for i in range(n - needed))
    assert len(trials) <= math.ceil(math.log2(n + 1)) + 1
    assert len(trials) == len(set(trials))


def test_bisection_ends_when_the_time_is_over():
    effects = {"g": Difference(0.0, 0.01, 0.5, 10, "normal")}
    assert simplify(effects, lambda _: None) == ()
    assert simplify({}, lambda _: pytest.fail("nothing to try")) == ()


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    small = SmallSearch(tmp_path_factory.mktemp("ablated"))
    path = small.write(search={"trials": 8, "dissect": True, "rerolls": 2}, **RANDOM)
    outcome, text = run(path)
    return small.results, outcome, text


def test_a_search_ends_with_the_ablation_of_its_winner(ablated):
    folder, outcome, text = ablated
    board = outcome.board
    assert outcome.finished
    assert "ablation: as many candidates as there is room for" in text
    winner = board.winner
    variants = [row.candidate for row in board.rows if row.candidate.is_variant]
    assert {c.of for c in variants} == {winner.candidate.number}
    assert {c.kind for c in variants} == set(VARIANTS)
    assert len(board.reroll_scores) == 2
    ablation = board.ablation
    assert set(ablation.effects) <= set(gene_groups(open_parts_of(folder).space))
    shown = [row.candidate for row in board.rows if row.place and row.candidate.is_variant]
    assert shown == ([ablation.simplest] if ablation.simplest else [])
    store = ItemStore(folder / "items")
    for candidate in variants:
        assert store.has(candidate.number, SEARCH)
        is_confirmed = candidate.kind == "reroll" or candidate == ablation.simplest
        assert store.has(candidate.number, CONFIRM) == is_confirmed


def open_parts_of(folder):
    from heterosis.search.config.config import Config

    return open_parts(Config.model_validate(Journal(folder).begun["config"]))


def test_the_leaderboard_shows_selection_bias_and_the_genes_that_matter(ablated):
    _, outcome, _ = ablated
    lines = list(caveat_lines(outcome.board))
    assert lines[0].startswith(
        "Selection bias (winner's curse): the best of 8 search scores is expected to be 0."
    )
    assert any(line.startswith("With 2 other masks candidate ") for line in lines)
    assert any("were reset to the uniform merge one at a time" in line for line in lines)
    assert all(line in markdown(outcome.board) for line in lines)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([0.1], "; none is shown to matter."),
        ([-0.1, 0.1], "; 1 matters: gene 0 (-0.1000)."),
        ([-0.1, -0.2], "; 2 matter: gene 1 (-0.2000), gene 0 (-0.1000)."),
    ],
)
def test_the_sentence_counts_the_genes_that_matter(ablated, values, end):
    _, outcome, _ = ablated
    effects = {f"gene {i}": Difference(v, 0.01, 0.001, 40, "sign") for i, v in enumerate(values)}
    board = replace(outcome.board, ablation=replace(outcome.board.ablation, effects=effects))
    assert any(line.endswith(end) for line in caveat_lines(board)), list(caveat_lines(board))


@pytest.mark.slow
def test_an_interrupted_ablation_resumes_to_the_same_result(small_search, tmp_path):
    path = small_search.write(search={"trials": 5, "dissect": True, "rerolls": 1}, **RANDOM)
    run(path)
    complete = record(small_search.results)
    results = tmp_path / "parts"
    path = small_search.write(
        search={"trials": 5, "dissect": True, "rerolls": 1}, results=str(results), **RANDOM
    )
    total = 0
    while total < len(complete):
        stops = iter([False] * 4 + [True] * 1000)
        run(path, lambda stops=stops: next(stops))
        assert len(record(results)) > total
        total = len(record(results))
        assert record(results) == complete[:total]
    outcome, _ = run(path)
    assert outcome.finished
    assert record(results) == complete


def test_variants_survive_the_journal(ablated):
    folder, outcome, _ = ablated
    stored = {c.number: c for c in map(candidate_of, Journal(folder).trials)}
    for row in outcome.board.rows:
        assert stored[row.candidate.number] == row.candidate
    again = read_leaderboard(folder)
    assert again.ablation == outcome.board.ablation
