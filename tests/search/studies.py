"""Studies for tests: run on tiny models, or written without any model."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from heterosis.evals.scores.fingerprint import fingerprint_of
from heterosis.evals.scores.scores import item_scores
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.load import load_config
from heterosis.search.config.search import SearchSection
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.propose.proposer import Proposer
from heterosis.search.run import run_search
from heterosis.search.storage.candidate import Candidate, candidate_of
from heterosis.search.storage.journal import JOURNAL, Journal
from heterosis.search.study.progress import PlainReporter
from rich.console import Console

from .spaces import GROUPS, make_space

N = 400
ADD_TRIAL = 4
"""Operation code of Optuna's journal."""
SPACE = make_space(depth="constant", modules=[])


def scores_of(right: float, seed: int = 0):
    """0/1 scores of two tasks; a model that is right more often is right on a superset."""
    values = np.concatenate(
        [(np.random.default_rng([seed, task]).permutation(N) < right * N) for task in (0, 1)]
    )
    header = {
        "tasks": ["skill_a", "skill_b"],
        "metrics": ["acc,none"] * 2,
        "aggregations": ["mean"] * 2,
        "higher_is_better": [True] * 2,
    }
    return item_scores(
        header,
        {
            "task_index": np.repeat([0, 1], N),
            "doc_id": np.tile(np.arange(N), 2),
            "value": values.astype(float),
            "weight": np.ones(2 * N),
            "margin": np.full(2 * N, np.nan),
        },
    )


def make_study(folder, rows, finalists=5, rule="mean", audit=()):
    """A study on disk from (name, kind, share right in search, in confirm or None)."""
    folder.mkdir(exist_ok=True)
    journal, store = Journal(folder, write=True), ItemStore(folder / "items")
    weights, signs = {"skill_a": 1.0, "skill_b": 1.0}, {"skill_a": 1, "skill_b": 1}
    journal.write_manifest(
        {
            "config": {"name": "made", "search": {"trials": 3, "finalists": finalists}},
            "identity": {"objective": {"rule": rule, "weights": weights, "signs": signs}},
        }
    )
    proposer = Proposer(SPACE, SearchSection())
    for number, (name, kind, search, confirm) in enumerate(rows):
        recipe = Recipe.uniform("linear", ("a", "b"), GROUPS, 0.1 * (number % 7))
        candidate = Candidate(number, name, kind, recipe, failure="NaN in x, by | design")
        value = None
        if search is not None:
            scores = scores_of(search)
            store.append(number, SEARCH, scores)
            value = search
            numbers = scores.task_scores()
            candidate = Candidate(
                number, name, kind, recipe, value, numbers, dict(audit), items=scores.n
            )
        if confirm is not None:
            store.append(number, CONFIRM, scores_of(confirm, seed=1))
        told = None if value is None else (value,)
        journal.append(proposer.add(None, told, candidate.to_attribute()))
    return read_leaderboard(folder)


BASELINES = [
    ("base", "base", 0.3, 0.3),
    ("parent:a", "parent", 0.6, 0.6),
    ("parent:b", "parent", 0.5, 0.5),
    ("uniform", "uniform", 0.7, 0.7),
]
RACE = {
    "splits": {"search_share": 0.5, "search_items": 100, "confirm_items": 30},
    "search": {"trials": 25, "finalists": 8, "racing": {"first": 20, "alpha": 0.1}},
}


def run(path, should_stop=lambda: False):
    """Run a search; return its outcome and its progress messages."""
    text = io.StringIO()
    outcome = run_search(
        load_config(path), PlainReporter(Console(file=text, width=200)), should_stop
    )
    return outcome, text.getvalue()


def interrupted(folder, to, trials: int) -> Path:
    """Copy a study as if it had been killed after a number of trials."""
    shutil.copytree(folder, to)
    journal, lines = to / JOURNAL, []
    for line in journal.read_text().splitlines(keepends=True):
        trials -= json.loads(line)["op_code"] == ADD_TRIAL
        lines += [line] if trials >= 0 else []
    journal.write_text("".join(lines))
    return to


def record(folder):
    """All that two equal studies have in common: recipes, values, failures and every item."""
    store = ItemStore(folder / "items")
    rows = []
    for trial in Journal(folder).trials:
        candidate = candidate_of(trial)
        scores = store.read(trial.number, SEARCH)
        items = None if scores is None else scores.value.tolist()
        row = (candidate.name, candidate.recipe.digest, candidate.value, candidate.failure)
        rows.append((*row, trial.params, items))
    return rows


def without_seconds(path) -> list[list[str]]:
    """A leaderboard's cells, but for how long each candidate took."""
    lines = path.read_text().splitlines()
    rows = list(
        csv.reader(lines) if path.suffix == ".csv" else (line.split(" | ") for line in lines)
    )
    head = next(row for row in rows if "seconds" in row)
    skipped = head.index("seconds")
    return [
        [cell for i, cell in enumerate(row) if i != skipped or len(row) != len(head)]
        for row in rows
    ]


def fingerprinted(folder, rows, **changes):
    """A study that says what decides its scores; a change says it otherwise."""
    make_study(folder, rows, rule=changes.pop("rule", "mean"))
    parts = {"dtype": "float32", "tokens": "a" * 32} | changes
    journal = Journal(folder, write=True)
    identity = journal.begun["identity"] | {"requests": parts}
    journal.write_manifest(journal.begun | {"identity": identity})
    store = ItemStore(folder / "items")
    for trial, split in sorted(store.keys()):
        scores = replace(store.read(trial, split), fingerprint=fingerprint_of(parts))
        store.append(trial, split, scores)
    return folder


def searched(confirm, count=3):
    """Rows of a study whose first candidate has a confirm score."""
    first = ("candidate 4", "candidate", 0.9, confirm)
    rest = [(f"candidate {n}", "candidate", 0.5, None) for n in range(5, 4 + count)]
    return [*BASELINES, first, *rest]
