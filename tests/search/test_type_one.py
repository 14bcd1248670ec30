"""Luck is not sold as skill: where nobody can be better, the verdict is not "better"."""

import json
import random
from collections import Counter

import pytest
import yaml

from .conftest import SmallSearch
from .test_search import run

STUDIES = 50
MOST = 5  # of 50 at a level of 5 %: 2.5 are expected, more than 5 in one of 27 such tests


def coin_flips(folder, seed: int) -> str:
    """A task whose right answers are coin flips: every model's true accuracy is one half."""
    chance = random.Random(seed)
    letters = "abcdefgh"
    rows = [
        {"text": f'py "{"".join(chance.choices(letters, k=6))}"[::-1]', "gold": chance.randrange(2)}
        for _ in range(400)
    ]
    data = folder / "coins.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = {
        "task": f"coins_{seed}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    path = folder / "coins.yaml"
    path.write_text(yaml.safe_dump(task))
    return str(path)


@pytest.mark.slow
def test_where_every_model_guesses_the_verdict_is_better_no_oftener_than_it_may(tmp_path):
    verdicts, gains = Counter(), []
    for seed in range(STUDIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = SmallSearch(folder).write(
            tasks=[{"task": coin_flips(folder, seed)}],
            splits={"search_share": 0.4, "search_items": 100, "confirm_items": 200},
            search={"trials": 12, "finalists": 3, "run_seed": seed, "racing": {"first": 25}},
            baselines={"lambdas": [], "ties_drop_rates": [], "dare_ties_drop_rates": []},
        )
        board = run(path)[0].board
        verdicts[board.winner.verdict] += 1
        gains.append(board.winner.search.value - 0.5)
    assert verdicts["better"] <= MOST, verdicts
    assert sum(gains) / STUDIES > 0.02, "the best on the search items looks better than it is"
