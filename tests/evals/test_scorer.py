"""The scorer: no memory of earlier calls, splits that agree, the fall-back, failures by name."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from heterosis.evals import scorer as scorer_module
from heterosis.evals.scorer import PathReport, Scorer
from heterosis.evals.scores import ItemScores, NonFiniteScore
from heterosis.evals.splits import Splits
from heterosis.evals.tasks import TaskError, TaskSpec, load_tasks

from .tiny_models import metric_list, randomise, tiny_model, write_jsonl, write_task

NAMES = ("mc_first", "letters", "ll", "rolling", "gen")


def make(tasks_folder, tokenizer, names=NAMES, splits=Splits(0.5), model=None) -> Scorer:  # noqa: B008
    specs = [TaskSpec(str(tasks_folder[name])) for name in names]
    model = model or tiny_model(seed=1)
    return Scorer(load_tasks(specs, splits=splits), model, tokenizer, batch_size=8)


def same(a: ItemScores, b: ItemScores) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in ("task_index", "doc_id", "value", "weight", "margin")
    )


@pytest.fixture(scope="module")
def scorer(tasks_folder, tokenizer) -> Scorer:
    return make(tasks_folder, tokenizer)


def test_scoring_twice_gives_equal_numbers_and_other_weights_others(scorer):
    randomise(scorer.model, 1)
    first = scorer.score("search")
    assert same(first, scorer.score("search"))
    randomise(scorer.model, 2)
    other = scorer.score("search")
    assert not same(first, other)
    randomise(scorer.model, 1)
    assert same(first, scorer.score("search"))


def test_a_rehearsal_changes_no_score(scorer):
    randomise(scorer.model, 1)
    first = scorer.score("search")
    scorer.rehearse("search")
    assert same(first, scorer.score("search"))


def test_order_of_splits_does_not_matter(tasks_folder, tokenizer):
    one, other = (make(tasks_folder, tokenizer) for _ in range(2))
    a = [one.score("search"), one.score("confirm")]
    b = [other.score("confirm"), other.score("search")][::-1]
    assert all(map(same, a, b))


def test_a_split_equals_the_same_documents_in_the_whole(scorer, tasks_folder, tokenizer):
    randomise(scorer.model, 1)
    whole = make(tasks_folder, tokenizer, splits=Splits(1.0)).score("search")
    for split in ("search", "confirm"):
        part = scorer.score(split)
        for task in scorer.tasks:
            rows = whole.rows(task.name)
            rows = rows[np.isin(whole.doc_id[rows], task.doc_ids[split])]
            own = part.rows(task.name)
            assert whole.doc_id[rows].tolist() == part.doc_id[own].tolist()
            assert part.value[own] == pytest.approx(whole.value[rows], rel=1e-5)
            assert part.margin[own] == pytest.approx(whole.margin[rows], abs=1e-4, nan_ok=True)


def test_items_and_fingerprint(scorer, tasks_folder, tokenizer):
    assert scorer.items("search") + scorer.items("confirm") == 24 * len(NAMES)
    assert scorer.items("guard") == 0
    assert scorer.fingerprint == make(tasks_folder, tokenizer).fingerprint
    fewer = make(tasks_folder, tokenizer, NAMES[:2])
    assert fewer.fingerprint != scorer.fingerprint


def test_margins_are_gold_minus_best_other(scorer):
    found = scorer.score("search")
    task = scorer.tasks[0]
    rows = found.rows("mc_first")
    for requests, margin, row in zip(
        task.instances("search"), found.margin[rows], task.doc_ids["search"], strict=True
    ):
        lls = [i.resps[0][0] for i in requests]
        gold = row % 4
        assert margin == lls[gold] - max(ll for k, ll in enumerate(lls) if k != gold)
    assert np.array_equal(found.margin[rows] > 0, found.value[rows] == 1.0)
    assert (found.margin[found.rows("ll")] < 0).all()
    assert np.isnan(found.margin[found.rows("gen")]).all()


def test_guard_tasks_are_a_split_of_their_own(tasks_folder, tokenizer):
    specs = [
        TaskSpec(str(tasks_folder["mc"])),
        TaskSpec(str(tasks_folder["ll"]), guard=True),
    ]
    tasks = load_tasks(specs, splits=Splits(0.5))
    scorer_ = Scorer(tasks, tiny_model(seed=1), tokenizer, batch_size=8)
    assert scorer_.score("guard").tasks == ("ll",)
    assert scorer_.score("search").tasks == ("mc",)


def test_unknown_split_is_named(scorer):
    with pytest.raises(ValueError, match=r"no task has items in split 'guard'; there are"):
        scorer.score("guard")


def test_useless_arguments_are_refused(scorer, tokenizer):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Scorer(scorer.tasks, scorer.model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="task names must differ"):
        Scorer([scorer.tasks[0]] * 2, scorer.model, tokenizer)


# The two paths ------------------------------------------------------------------------------


def test_self_check_confirms_the_flat_path(scorer):
    report = scorer.self_check(1000)
    assert report.path == scorer.path == "flat"
    assert report.max_difference < 1e-5
    assert report.reason.startswith("equal to HFLM on ")


def wrong_by(shift: float, flip: bool = False) -> Any:
    right = scorer_module.run_flat

    def run_wrong(model, plan):
        ll, greedy = right(model, plan)
        return ll + shift, greedy ^ flip

    return run_wrong


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (wrong_by(0.5), r"log-likelihoods differ by .* nats per token, above 0.001"),
        (wrong_by(float("nan")), "log-likelihoods differ by inf nats per token"),
        (wrong_by(0.0, flip=True), "32 of 32 greedy flags differ"),
    ],
)
def test_a_wrong_flat_path_gives_way_to_hflm(
    wrong, reason, tasks_folder, tokenizer, monkeypatch, caplog
):
    expected = make(tasks_folder, tokenizer).score("search")
    scorer_ = make(tasks_folder, tokenizer)
    monkeypatch.setattr(scorer_module, "run_flat", wrong)
    with caplog.at_level(logging.WARNING):
        report = scorer_.self_check(32)
    assert report.path == scorer_.path == "hflm"
    assert "scoring with lm-eval's own loop, which is slower" in caplog.text
    found = scorer_.score("search")
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert found.margin == pytest.approx(expected.margin, abs=1e-4, nan_ok=True)


def test_a_model_that_refuses_the_flat_call_is_scored_by_hflm(tasks_folder, tokenizer, monkeypatch):
    def refuse(model, plan):
        raise TypeError("forward() got an unexpected keyword argument 'logits_to_keep'")

    scorer_ = make(tasks_folder, tokenizer)
    monkeypatch.setattr(scorer_module, "run_flat", refuse)
    report = scorer_.self_check()
    assert report.path == "hflm"
    assert "the model's forward refuses the flat loop: forward() got" in report.reason
    assert scorer_.score("search").n == scorer_.items("search")


def test_a_model_without_logits_to_keep_is_scored_flat(tasks_folder, tokenizer):
    class Plain(type(tiny_model())):
        def forward(self, input_ids=None, attention_mask=None, use_cache=None, **rest):
            assert "logits_to_keep" not in rest
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    plain = tiny_model(seed=1)
    plain.__class__ = Plain
    names = ("mc", "ll")
    expected = make(tasks_folder, tokenizer, names).score("search")
    scorer_ = make(tasks_folder, tokenizer, names, model=plain)
    assert scorer_.self_check().path == "flat"
    assert scorer_.score("search").margin == pytest.approx(expected.margin, abs=1e-5)


def test_self_check_without_likelihoods(tasks_folder, tokenizer):
    scorer_ = make(tasks_folder, tokenizer, ("gen",))
    expected = PathReport("flat", "no log-likelihood requests to compare", 0.0)
    assert scorer_.self_check() == expected


# Failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("ll", "log-likelihood"), ("gen", "logit")])
@pytest.mark.parametrize("path", ["flat", "hflm"])
def test_nan_weights_are_a_typed_failure(name, what, path, tasks_folder, tokenizer):
    scorer_ = make(tasks_folder, tokenizer, (name,))
    scorer_.path = path
    with torch.no_grad():
        scorer_.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteScore, match=f"got {what} = nan on task '{name}', doc") as caught:
        scorer_.score("search")
    assert caught.value.task == name


def test_out_of_memory_comes_as_it_is(scorer, monkeypatch):
    def exhausted(model, plan):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(scorer_module, "run_flat", exhausted)
        for act in (lambda: scorer.score("search"), scorer.self_check):
            with pytest.raises(torch.OutOfMemoryError):
                act()


def likelihood_task(folder, **changes) -> Any:
    docs = [{"q": "red green", "a": "blue"}, {"q": "red", "a": "stone " * 300}]
    config = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": write_jsonl(folder / "d.jsonl", docs[:1])}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": " {{a}}",
        "metric_list": metric_list("acc"),
    } | changes
    if changes.pop("long", False):
        write_jsonl(folder / "d.jsonl", docs)
    config.pop("long", None)
    path = write_task(folder, "own", **config)
    return load_tasks([TaskSpec(str(path), guard=True)], splits=Splits())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_text": "   "}, "task 'own', doc 0: the context of .* gives no token of its own"),
        ({"doc_to_target": ""}, "task 'own', doc 0: the continuation of .* gives no token"),
        ({"long": True}, "doc 1: a continuation of .* tokens is longer than the model's 192"),
    ],
)
def test_prompts_that_cannot_be_scored_are_named(changes, message, tmp_path, tokenizer):
    tasks = likelihood_task(tmp_path, **changes)
    with pytest.raises(TaskError, match=message):
        Scorer(tasks, tiny_model(), tokenizer)


def test_a_metric_that_is_no_number_is_named(tmp_path, tokenizer):
    (tmp_path / "own_metrics.py").write_text("def pair(doc, results):\n    return {'m': (1, 2)}\n")
    path = tmp_path / "own.yaml"
    (tmp_path / "d.jsonl").write_text('{"q": "red", "a": "blue"}\n')
    path.write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: d.jsonl}}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: ' {{a}}'\nprocess_results: !function own_metrics.pair\n"
        "metric_list: [{metric: m, aggregation: mean, higher_is_better: true}]\n"
    )
    tasks = load_tasks([TaskSpec(str(path), guard=True)], splits=Splits())
    with pytest.raises(TaskError, match=r"metric 'm' must be one number per document.*\(1, 2\)"):
        Scorer(tasks, tiny_model(), tokenizer).score("guard")


def test_answers_that_could_outgrow_the_model_are_refused(tmp_path, tokenizer):
    changes = {"output_type": "generate_until", "metric_list": metric_list("exact_match")}
    tasks = likelihood_task(tmp_path, **changes)
    with pytest.raises(TaskError, match=r"`max_gen_toks` must be below the model's length 192"):
        Scorer(tasks, tiny_model(), tokenizer)


def test_nothing_is_printed_while_loading_and_scoring(tasks_folder, tokenizer, capfd):
    scorer_ = make(tasks_folder, tokenizer)
    scorer_.self_check()
    scorer_.score("search")
    out, err = capfd.readouterr()
    assert out + err == ""
