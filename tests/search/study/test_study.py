"""Complete searches on the quickstart's models: the way of a trial, resuming, failures."""

import itertools
import json
import math
import shutil
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, GUARD, SEARCH
from heterosis.merge.engine.engine import MergeEngine, MergeFailure
from heterosis.search.config.load import load_config
from heterosis.search.evaluate.objective import Objective
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.storage.candidate import candidate_of
from heterosis.search.storage.journal import Journal, StudyError
from heterosis.search.study.parts import open_parts
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..conftest import QUICKSTART, SmallSearch
from ..studies import interrupted, record, run, without_seconds


def make_adapter(base, out):
    """A LoRA adapter of rank 2 on one matrix, as PEFT saves it."""
    out.mkdir()
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (out / "adapter_config.json").write_text(json.dumps(settings))
    name = "model.layers.1.self_attn.q_proj"
    with safe_open(base / "model.safetensors", "pt") as file:
        rows, columns = file.get_tensor(f"{name}.weight").shape
    factors = {"A": torch.ones(2, columns) * 0.01, "B": torch.ones(rows, 2) * 0.01}
    tensors = {f"base_model.model.{name}.lora_{k}.weight": v for k, v in factors.items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def grow(parent, out):
    """The same parent with one token more."""
    model = AutoModelForCausalLM.from_pretrained(parent)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    tokenizer.add_tokens(["<|new|>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete search, for the tests that only look at what it left."""
    small = SmallSearch(tmp_path_factory.mktemp("finished"))
    data = (QUICKSTART / "tasks/python.yaml").read_text()
    guard = small.folder / "guard.yaml"
    guard.write_text(
        data.replace("quickstart_python", "guarded").replace(
            "data/python.jsonl", str(QUICKSTART / "tasks/data/python.jsonl")
        )
    )
    small.data["guard"] = [{"task": str(guard), "max_items": 10}]
    outcome, text = run(small.write())
    return small, outcome, text


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a complete search of two candidates, to be copied."""
    small = SmallSearch(tmp_path_factory.mktemp("short"))
    run(small.write(search={"trials": 2, "finalists": 1}))
    return small.results


@pytest.fixture
def short_search(short, small_search):
    """A search that continues a copy of `short`."""
    shutil.copytree(short, small_search.results)
    return small_search


def test_a_search_ends_with_every_trial_and_a_leaderboard(finished):
    small, outcome, text = finished
    assert outcome.finished
    names = [candidate_of(trial).name for trial in Journal(small.results).trials]
    assert names[:4] == ["base", "parent:python", "parent:java", "uniform"]
    assert names[-12:] == [f"candidate {i}" for i in range(len(names) - 12, len(names))]
    assert "baselines 7/7" in text
    assert "search 12/12 | best 0." in text
    assert "items/s | ETA" in text


def test_only_finalists_and_baselines_are_confirmed(finished):
    small, outcome, _ = finished
    store = ItemStore(small.results / "items")
    confirmed = {n for n in range(19) if store.read(n, CONFIRM) is not None}
    assert confirmed >= set(range(7))
    assert len(confirmed) == 7 + 2
    assert confirmed == {n for n in range(19) if store.read(n, GUARD) is not None}
    best = sorted(
        (r for r in outcome.board.rows if not r.candidate.is_baseline),
        key=lambda r: (-r.candidate.value, r.candidate.number),
    )
    assert {r.candidate.number for r in best[:2]} == confirmed - set(range(7))


def test_search_and_confirm_share_no_item(finished):
    small, _, _ = finished
    store = ItemStore(small.results / "items")
    search, confirm = store.read(0, SEARCH), store.read(0, CONFIRM)
    items = [set(zip(s.task_index, s.doc_id, strict=True)) for s in (search, confirm)]
    assert not items[0] & items[1]
    assert (search.n, confirm.n) == (40, 60)


def test_the_record_is_one_line_per_candidate_and_one_item_file(finished):
    small, _, _ = finished
    assert [p.name for p in (small.results / "items").iterdir()] == ["items.parquet"]
    assert {p.name for p in small.results.iterdir()} >= {"leaderboard.md", "leaderboard.csv"}


def test_a_finished_search_finishes_again_at_once(finished):
    small, outcome, _ = finished
    before = record(small.results)
    again, text = run(small.folder / "search.yaml")
    assert "19 finished candidates found; continuing" in text
    assert "search 1" not in text
    assert record(small.results) == before
    assert [r.candidate for r in again.board.rows] == [r.candidate for r in outcome.board.rows]


def test_more_trials_continue_a_finished_search(small_search, tmp_path):
    """With methods chosen by kind, weights on lines and a parameter."""
    small_search.data["space"] = {
        "method": ["ties", "dare_ties", "slerp"],
        "depth": "lines",
        "drop_rate": [0.0, 0.8],
        "parameters": {"normalize": [0, 1]},
    }
    run(small_search.write(search={"trials": 4, "finalists": 1}))
    run(small_search.write(search={"trials": 9, "finalists": 1}))
    continued = record(small_search.results)
    run(
        small_search.write(
            results=str(tmp_path / "uninterrupted"), search={"trials": 9, "finalists": 1}
        )
    )
    assert continued == record(tmp_path / "uninterrupted")
    recipes = [candidate_of(trial).recipe for trial in Journal(small_search.results).trials[-9:]]
    methods = {recipe.setting(group).method for recipe in recipes for group in recipe.coefficients}
    assert methods == {"ties", "dare_ties", "slerp"}
    assert any(len(recipe.methods) > 1 for recipe in recipes)


def test_a_soft_stop_keeps_what_is_done_and_resuming_gives_the_same_result(finished, small_search):
    small_search.data["guard"] = finished[0].data["guard"]
    asked = iter(range(1000))
    stop_at = 11
    outcome, _ = run(small_search.write(), lambda: next(asked) >= stop_at)
    assert not outcome.finished
    stopped = record(small_search.results)
    assert 0 < len(stopped) <= stop_at
    assert outcome.board.winner.confirm is not None
    outcome, _ = run(small_search.write())
    assert outcome.finished
    assert record(small_search.results) == record(finished[0].results)
    folders = (small_search.results, finished[0].results)
    boards = [folder / "leaderboard.md" for folder in folders]
    assert without_seconds(boards[0]) == without_seconds(boards[1])


def test_a_stop_during_the_confirmation_ends_it_and_resuming_completes_it(small_search):
    path = small_search.write(search={"trials": 2, "finalists": 2})
    asked = iter(range(1000))
    outcome, _ = run(path, lambda: next(asked) >= 13)
    assert not outcome.finished
    confirmed = [row for row in outcome.board.rows if row.confirm]
    assert 0 < len(confirmed) < 9
    outcome, text = run(path)
    assert outcome.finished
    assert "confirmation 9/9" in text
    assert sum(row.confirm is not None for row in outcome.board.rows) == 9


def test_lost_items_are_scored_again(short_search):
    before = record(short_search.results)
    (short_search.results / "items/items.parquet").unlink()
    _, text = run(short_search.write(search={"trials": 2, "finalists": 1}))
    assert "base: items were lost and have been scored again" in text
    assert record(short_search.results) == before


def test_the_best_so_far_is_known_after_a_resume(short_search):
    best = max(c.value for c in map(candidate_of, Journal(short_search.results).trials) if c.value)
    _, text = run(short_search.write(search={"trials": 3}))
    assert f"best {best:.4f}" in next(x for x in text.splitlines() if x.startswith("search 3/3"))


def test_baselines_with_equal_scores_are_pointed_out(small_search):
    task = small_search.folder / "silly.yaml"
    text = (QUICKSTART / "tasks/python.yaml").read_text()
    data = QUICKSTART / "tasks/data/python.jsonl"
    text = text.replace("data/python.jsonl", str(data)).replace("answer", "'never this'")
    task.write_text(text)
    _, said = run(small_search.write(tasks=[{"task": str(task)}], search={"trials": 1}))
    assert "every baseline scores 0: do the tasks' `doc_to_target` and metric" in said


def test_items_of_a_candidate_that_never_reached_the_journal_are_dropped(short_search):
    store = ItemStore(short_search.results / "items")
    n = len(Journal(short_search.results).trials)
    store.append(n, SEARCH, store.read(0, SEARCH))
    run(short_search.write(search={"trials": 3}))
    values = store.read(n, SEARCH).value
    assert len(values) == 40
    assert record(short_search.results)[n][-1] == values.tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"space": {"weight": [0.0, 0.9]}}, "space.weight was"),
        ({"search": {"run_seed": 5}}, "sampler was"),
        ({"search": {"objective": "min"}}, "objective.rule was"),
        ({"splits": {"search_items": 21}}, "tasks.quickstart_python was"),
        ({"merge": {"dtype": "bfloat16"}}, "dtype was"),
        ({"merge": {"tokenizer": "base"}}, "tokenizer was None, is base"),
    ],
)
def test_a_study_is_not_continued_with_other_ingredients(short_search, change, named):
    with pytest.raises(StudyError, match=f"must not change within a study; .*{named}.*--results"):
        run(short_search.write(**change))


def test_a_study_of_an_older_version_without_tokenizer_policy_is_continued(short_search):
    path = short_search.write(search={"trials": 2, "finalists": 1})
    journal = Journal(short_search.results, write=True)
    old = journal.manifest
    del old["identity"]["tokenizer"], old["config"]["download"]
    for key in ("placement", "compile", "tokenizer", "layer_groups", "device_map"):
        del old["config"]["merge"][key]
    journal.write_manifest(old)
    outcome, _ = run(path)
    assert outcome.finished


def test_an_adapter_and_a_parent_with_a_token_of_its_own(small_search, tmp_path):
    """LoRA on the base, and Java's tokenizer grown by one token, under `tokenizer: union`."""
    make_adapter(QUICKSTART / "parents/base", tmp_path / "lora")
    grow(QUICKSTART / "parents/java", tmp_path / "grown")
    small_search.data["parents"] = {name: str(tmp_path / name) for name in ("lora", "grown")}
    path = small_search.write(merge={"tokenizer": "union"}, search={"trials": 1, "finalists": 1})
    outcome, _ = run(path)
    assert outcome.finished
    assert {row.verdict for row in outcome.board.rows} <= {"baseline", "tie", "worse", "better"}
    parts = open_parts(load_config(path))
    assert parts.tokenizer.convert_tokens_to_ids("<|new|>") == len(parts.tokenizer) - 1
    assert parts.parents.tensors["model.embed_tokens.weight"].shape[0] == len(parts.tokenizer)


def failing(monkeypatch, errors):
    """Make the engine fail at some of its loads: number -> error."""
    load, count = MergeEngine.load, itertools.count()

    def load_or_fail(self, recipe):
        if error := errors.get(next(count)):
            raise error
        return load(self, recipe)

    monkeypatch.setattr(MergeEngine, "load", load_or_fail)


FAILURES = [
    (MergeFailure("merged tensor x holds NaN"), "merged tensor x holds NaN"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory: CUDA out"),
    (RuntimeError("not enough memory: you tried to allocate 9 bytes"), "out of memory: not"),
    (MemoryError("big"), "out of memory: big"),
]


def test_a_failure_is_a_trial_with_its_reason(short_search, monkeypatch):
    failing(monkeypatch, {place: error for place, (error, _) in enumerate(FAILURES, 1)})
    outcome, text = run(short_search.write(search={"trials": 8}))
    assert outcome.finished
    failed = sorted(outcome.board.rows[-4:], key=lambda row: row.candidate.number)
    for row, (_, reason) in zip(failed, FAILURES, strict=True):
        assert row.verdict == "failed"
        assert row.candidate.failure.startswith(reason)
        assert f"{row.candidate.name}: FAILED: {reason}" in text
        assert reason in (short_search.results / "leaderboard.md").read_text()
        assert reason in (short_search.results / "leaderboard.csv").read_text()


@pytest.mark.parametrize("times", [1, 2])
def test_scoring_that_runs_out_of_memory_is_tried_once_in_smaller_batches(
    small_search, monkeypatch, caplog, times
):
    score, calls = Scorer.score, itertools.count()
    sizes = []

    def score_or_fail(self, split):
        if 3 <= next(calls) < 3 + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        sizes.append(self.batch_size)
        return score(self, split)

    monkeypatch.setattr(Scorer, "score", score_or_fail)
    outcome, _ = run(small_search.write(search={"trials": 0}))
    failures = [row.candidate.failure for row in outcome.board.rows if row.candidate.failure]
    assert "in batches of half the size" in caplog.text
    if times == 1:
        assert failures == []
        assert sizes.count(10) == 1
        assert set(sizes) == {10, 20}
    else:
        assert failures == [
            "out of memory: CUDA out of memory. Tried (in batches of half the size)"
        ]


def test_a_defect_propagates_and_costs_only_the_unfinished_candidate(small_search, monkeypatch):
    path = small_search.write(search={"trials": 3})
    with monkeypatch.context() as patch:
        failing(patch, {8: RuntimeError("a defect of ours")})
        with pytest.raises(RuntimeError, match="a defect of ours"):
            run(path)
    assert len(Journal(small_search.results).trials) == 8
    outcome, _ = run(path)
    assert outcome.finished
    assert len(Journal(small_search.results).trials) == 10


def test_weights_that_overflow_are_a_failed_candidate(small_search):
    path = small_search.write(
        space={"weight": [2e38, 3e38], "depth": "constant"}, search={"trials": 2}
    )
    outcome, _ = run(path)
    failed = [row for row in outcome.board.rows if row.verdict == "failed"]
    assert {row.candidate.kind for row in failed} == {"middle", "candidate"}
    assert all("holds NaN or infinity" in row.candidate.failure for row in failed)


def test_an_objective_that_is_not_finite_is_a_failed_candidate(small_search, monkeypatch):
    monkeypatch.setattr(Objective, "value", lambda self, values: -math.inf)
    outcome, text = run(small_search.write(search={"trials": 2}))
    assert outcome.finished
    assert {row.verdict for row in outcome.board.rows} == {"failed"}
    assert "candidate 8: FAILED: the objective is -inf" in text
    assert (
        "No candidate has been scored yet" in (small_search.results / "leaderboard.md").read_text()
    )


def test_leaderboard_scores_equal_the_stored_scores(finished):
    small, _, _ = finished
    store = ItemStore(small.results / "items")
    for row in read_leaderboard(small.results).rows:
        scores = store.read(row.candidate.number, SEARCH)
        for task, score in row.candidate.scores.items():
            assert np.mean(scores.value[scores.rows(task)]) == pytest.approx(score.value)
        values = [score.value for score in row.candidate.scores.values()]
        assert row.search.value == pytest.approx(harmonic_mean(values)), (
            "the default for accuracies"
        )


@pytest.mark.parametrize("sampler", ["CmaEsSampler", "TPESampler"])
def test_left_out_parents_and_searched_seeds_resume_to_the_same_result(
    small_search, tmp_path, sampler
):
    changes = {
        "merge": {"method": "dare_linear"},
        "space": {
            "depth": "constant",
            "optional": True,
            "mask_seed": [0, 7],
            "drop_rate": [0, 0.8],
        },
    }
    search = {"sampler": sampler, "finalists": 1, "racing": False, "trials": 9}
    run(small_search.write(**changes, search=search))
    killed = interrupted(small_search.results, tmp_path / "killed", 7 + 4)
    run(small_search.write(**changes, search=search, results=str(killed)))
    assert record(killed) == record(small_search.results)
    recipes = [row.candidate.recipe for row in read_leaderboard(small_search.results).rows]
    assert len({recipe.mask_seed for recipe in recipes}) > 2
    left_out = [r for r in recipes if not any(c.weights[0] for c in r.coefficients.values())]
    assert len(left_out) > 2
