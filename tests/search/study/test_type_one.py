"""Type I errors: where no candidate can be better, the verdict is not "better"."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
from heterosis.evals.scores.scores import item_scores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, GUARD, SEARCH
from heterosis.search.config.load import load_config
from heterosis.search.evaluate.evaluator import Evaluator
from heterosis.search.evaluate.objective import Objective
from heterosis.search.leaderboard.board import Leaderboard, read_leaderboard
from heterosis.search.propose.baselines import null_baselines
from heterosis.search.propose.space import build_space
from heterosis.search.propose.stages import Stage
from heterosis.search.storage.journal import Journal
from heterosis.search.study.budget import Budget, Limits
from heterosis.search.study.progress import Tracker
from heterosis.search.study.study import Study

from ..conftest import QUICKSTART, SmallSearch
from ..studies import run

STUDIES = 200
MOST = 20
"""Of 200 at a level of 5 %: 10 are expected, more than 20 in one of 1300 such tests."""
ITEMS = {SEARCH: 100, CONFIRM: 200, GUARD: 0}


class Coins:
    """A stand-in for engine and scorer: every model answers each item by the flip of a fair coin.

    So no two recipes give the same answers, and none is better. The flips depend on the recipe.
    """

    fingerprint = "coins"

    def __init__(self, seed: int) -> None:
        self._seed, self._recipe, self._rungs = seed, "", []

    def load(self, recipe) -> None:
        self._recipe = recipe.digest

    def items(self, split: str) -> int:
        return ITEMS[split]

    def plan_rungs(self, _: str, order, ends) -> None:
        self._rungs = [np.sort(order[:end]) for end in ends]

    def rungs(self, split: str, met=None):
        whole = self.score(split)
        for places in self._rungs:
            if met is None or places.size > met.n:
                yield whole.subset(places)

    def score(self, split: str):
        entropy = [self._seed, len(split), int(self._recipe[:12], 16)]
        margin = np.random.default_rng(entropy).normal(size=ITEMS[split])
        header = {"tasks": ["coins"], "metrics": ["acc,none"]}
        header |= {"aggregations": ["mean"], "higher_is_better": [True]}
        columns = {"task_index": np.zeros(margin.size, int), "doc_id": np.arange(margin.size)}
        columns |= {
            "margin": margin,
            "value": (margin > 0).astype(float),
            "weight": np.ones(margin.size),
        }
        return item_scores(header, columns, self.fingerprint)


def coin_study(folder, path, seed: int) -> Leaderboard:
    """A whole search among models that all guess."""
    config = load_config(path)
    section = config.search.model_copy(update={"run_seed": seed})
    config = config.model_copy(update={"search": section})
    groups = ["embed", "layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp", "head"]
    space, objective = build_space(config, groups), Objective("mean", {"coins": 1.0}, {"coins": 1})
    folder.mkdir()
    journal, coins = Journal(folder, write=True), Coins(seed)
    identity = {"objective": objective.to_dict()}
    journal.write_manifest({"config": config.to_dict(), "identity": identity, "machine": {}})
    done = Study(
        Evaluator(coins, coins, objective),
        (Stage(space),),
        section,
        null_baselines(space, config.baselines),
        journal,
        ItemStore(folder / "items"),
        Tracker(),
        Budget(Limits(trials=section.trials), 0),
    ).run()
    assert done
    return read_leaderboard(folder)


def small(folder, trials: int, parents=None, **changes):
    """A configuration of few candidates, three of which are confirmed."""
    search = SmallSearch(folder)
    search.data["parents"] = parents or search.data["parents"]
    return search.write(
        splits={"search_share": 0.4, "search_items": 50, "confirm_items": 100},
        search={"trials": trials, "finalists": 3, "racing": {"first": 25}},
        baselines={"lambdas": [], "ties_drop_rates": [], "dare_ties_drop_rates": []},
        **changes,
    )


@pytest.mark.slow
def test_where_every_model_guesses_better_is_as_rare_as_its_level(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a study that is lost is no matter here
    path, verdicts, gains = small(tmp_path, 12), Counter(), []
    for seed in range(STUDIES):
        board = coin_study(tmp_path / str(seed), path, seed)
        verdicts[board.winner.verdict] += 1
        searched = [row.candidate for row in board.rows if row.candidate.is_searched]
        gains.append(max(c.value for c in searched if not c.raced) - 0.5)
        shutil.rmtree(tmp_path / str(seed))
    assert verdicts["better"] <= MOST, verdicts
    assert sum(gains) / STUDIES > 0.05, "the best on the search items looks better than it is"


@pytest.mark.slow
def test_two_copies_of_one_parent_leave_nothing_to_gain(tmp_path):
    """On the arc between them: a sum could still scale what they have learned, and gain by it."""
    copy = shutil.copytree(QUICKSTART / "parents/python", tmp_path / "copy")
    parents = {"python": str(QUICKSTART / "parents/python"), "copy": str(copy)}
    path = small(tmp_path, 8, parents=parents, merge={"method": "slerp", "dtype": "float32"})
    winner = run(path)[0].board.winner
    assert winner.verdict != "better"
    assert winner.to_parent.value == pytest.approx(0, abs=0.03)
