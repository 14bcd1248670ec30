"""The quickstart's promise: the searched merge beats what anyone would try first."""

import pytest
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.stats.comparison import paired_difference
from heterosis.evals.tasks.splits import CONFIRM
from heterosis.search.config.load import find_config, load_config
from heterosis.search.run import run_search
from heterosis.search.study.progress import PlainReporter
from rich.console import Console

LEVEL = 0.01
BEATEN = ("base", "parent:python", "parent:java", "uniform", "task_arithmetic", "ties")


@pytest.mark.slow
@pytest.mark.parametrize("run_seed", [0, 1, 2])
def test_the_search_beats_parents_uniform_task_arithmetic_and_ties(tmp_path, run_seed):
    config = load_config(find_config("quickstart"))
    section = config.search.model_copy(update={"run_seed": run_seed})
    config = config.model_copy(update={"search": section, "results": tmp_path})
    board = run_search(config, PlainReporter(Console(quiet=True))).board

    store = ItemStore(tmp_path / "items")
    winner = store.read(board.winner.candidate.number, CONFIRM)
    against = {
        row.candidate.name: paired_difference(
            winner, store.read(row.candidate.number, CONFIRM), board.objective
        )
        for row in board.rows
        if row.candidate.is_baseline and row.candidate.name.startswith(BEATEN)
    }
    assert len(against) >= len(BEATEN) + 4
    finalists = config.search.finalists  # the winner is the best of them: Bonferroni
    lost = {n: d for n, d in against.items() if not (d.value > 0 and d.p * finalists < LEVEL)}
    assert not lost
    assert board.winner.verdict == "better"
