"""The scorer: independent calls, equal splits, the choice of a path, named failures."""

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from heterosis.evals.scorer.batches import LogLikelihoods, Request
from heterosis.evals.scorer.scorer import PathReport, Scorer
from heterosis.evals.scorer.scoring_paths import agreement
from heterosis.evals.scores.scores import ItemScores, NonFiniteScore
from heterosis.evals.tasks.splits import Splits
from heterosis.evals.tasks.tasks import TaskError, TaskSpec, load_tasks
from transformers import LlamaForCausalLM

from ..tiny_models import metric_list, randomise, tiny_model, write_jsonl, write_task

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


def test_a_split_equals_the_same_documents_in_the_whole_task(scorer, tasks_folder, tokenizer):
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
    with pytest.raises(ValueError, match=r"no task has items in split 'guard'; splits are"):
        scorer.score("guard")


def test_useless_arguments_are_refused(scorer, tokenizer):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        Scorer(scorer.tasks, scorer.model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="`batch_tokens` must be at least 1, got 0"):
        Scorer(scorer.tasks, scorer.model, tokenizer, batch_tokens=0)
    with pytest.raises(ValueError, match="task names must differ"):
        Scorer([scorer.tasks[0]] * 2, scorer.model, tokenizer)


# The paths ----------------------------------------------------------------------------------


def test_self_check_confirms_the_packed_path(scorer):
    report = scorer.self_check(1000)
    assert report.path == scorer.path == "packed"
    assert report.max_difference < 1e-5
    assert report.reason.startswith("equal to HFLM on ")


class Deaf(LlamaForCausalLM):
    """Obeys no mask."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **rest):
        return super().forward(input_ids=input_ids, **rest)


class Moody(LlamaForCausalLM):
    """Other logits without a cache, which only our own loops switch off."""

    factor = 2.0

    def forward(self, input_ids=None, position_ids=None, use_cache=None, **rest):
        output = super().forward(input_ids=input_ids, position_ids=position_ids, **rest)
        if use_cache is not None:
            assert output.logits is not None
            output.logits = output.logits * self.factor
        return output


class Strange(Moody):
    factor = float("nan")


class Strict(LlamaForCausalLM):
    """Takes ids alone."""

    def forward(self, input_ids, position_ids=None, **rest):
        if rest:
            raise TypeError("forward() got an unexpected keyword argument 'use_cache'")
        return super().forward(input_ids=input_ids)


def odd_model(kind: type) -> Any:
    model = tiny_model(seed=1)
    model.__class__ = kind
    return model


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        (Deaf, "flat", r"^equal to HFLM on .*; not packed: log-likelihoods differ by .* above"),
        (Moody, "hflm", r"not packed: log-likel.*; not flat: log-likel.* per token, above 0.001"),
        (Strange, "hflm", "not flat: log-likelihoods differ by inf nats per token"),
        (Strict, "hflm", r"not flat: the model's forward refuses it: TypeError: forward\(\) got"),
    ],
)
def test_a_wrong_path_gives_way_to_the_next(kind, path, reason, tasks_folder, tokenizer, caplog):
    names = ("mc_first", "letters", "ll", "rolling")
    expected = make(tasks_folder, tokenizer, names).score("search")
    scorer_ = make(tasks_folder, tokenizer, names, model=odd_model(kind))
    with caplog.at_level(logging.INFO):
        report = scorer_.self_check(32)
    assert report.path == scorer_.path == path
    assert re.search(reason, report.reason)
    assert "the packed path is not used: " in caplog.text
    assert ("scoring with lm-eval's own loop, which is slower" in caplog.text) == (path == "hflm")
    found = scorer_.score("search")
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    assert found.margin == pytest.approx(expected.margin, abs=1e-4, nan_ok=True)


def test_greedy_flags_must_agree_but_for_ties():
    requests = [Request((1,), (2,))] * 3
    lls, yes, no = np.zeros(3), np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    expected = LogLikelihoods(lls, yes, lls)
    near = agreement("flat", torch.float32, requests, LogLikelihoods(lls, no, lls + 1e-4), expected)
    assert near == PathReport("flat", "equal to HFLM on 3 requests", 0.0)
    far = agreement("flat", torch.float32, requests, LogLikelihoods(lls, no, lls + 1.0), expected)
    assert far == PathReport("hflm", "3 of 3 greedy flags differ", 0.0)


def test_a_model_without_logits_to_keep_is_scored_packed(tasks_folder, tokenizer):
    class Plain(LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, attention_mask=None, **rest):
            assert "logits_to_keep" not in rest
            more = {"position_ids": position_ids, "attention_mask": attention_mask}
            return super().forward(input_ids=input_ids, **more, **rest)

    names = ("mc", "ll")
    expected = make(tasks_folder, tokenizer, names).score("search")
    scorer_ = make(tasks_folder, tokenizer, names, model=odd_model(Plain))
    assert scorer_.self_check().path == "packed"
    assert scorer_.score("search").margin == pytest.approx(expected.margin, abs=1e-5)


def test_self_check_without_likelihoods(tasks_folder, tokenizer):
    scorer_ = make(tasks_folder, tokenizer, ("gen",))
    expected = PathReport("packed", "no log-likelihood requests to compare", 0.0)
    assert scorer_.self_check() == expected


@pytest.mark.parametrize("path", ["packed", "flat"])
def test_batch_sizes_do_not_change_scores(path, tasks_folder, tokenizer):
    names = ("mc", "mc_first", "letters", "rolling")
    expected = make(tasks_folder, tokenizer, names).score("search")
    for sizes in ({"batch_size": 1}, {"batch_size": 100}, {"batch_tokens": 64}):
        specs = [TaskSpec(str(tasks_folder[name])) for name in names]
        tasks = load_tasks(specs, splits=Splits(0.5))
        scorer_ = Scorer(tasks, tiny_model(seed=1), tokenizer, **sizes)
        scorer_.path = path
        found = scorer_.score("search")
        assert found.value == pytest.approx(expected.value, rel=1e-5)
        assert found.margin == pytest.approx(expected.margin, abs=1e-4, nan_ok=True)


def test_waits_for_the_device_once_per_call(scorer, monkeypatch):
    waits = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: waits.append(t.shape) or to_host(t))
    for path in ("packed", "flat"):
        scorer.path = path
        plan = scorer._plans["search"]
        waits.clear()
        scorer._answer_likelihoods(plan)
        assert len(plan.windows.plan(path).batches) > 1
        assert len(waits) == 1
    scorer.path = "packed"


# Rungs --------------------------------------------------------------------------------------


def items_of(scores: ItemScores) -> list[tuple[str, int]]:
    return [
        (scores.tasks[t], d)
        for t, d in zip(scores.task_index.tolist(), scores.doc_id.tolist(), strict=True)
    ]


@pytest.mark.parametrize("as_indices", [False, True])
def test_rungs_add_up_to_the_score(as_indices, scorer):
    randomise(scorer.model, 1)
    whole = scorer.score("search")
    items = items_of(whole)
    places = np.random.default_rng(0).permutation(len(items)).tolist()
    ends = [5, 12, 30, len(items)]
    scorer.plan_rungs("search", places if as_indices else [items[i] for i in places], ends)
    found = list(scorer.rungs("search"))
    assert [scores.n for scores in found] == ends
    for scores, end in zip(found, ends, strict=True):
        assert items_of(scores) == [items[i] for i in sorted(places[:end])]
        chosen = sorted(places[:end])
        assert scores.value == pytest.approx(whole.value[chosen], rel=1e-5)
        assert scores.margin == pytest.approx(whole.margin[chosen], abs=1e-4, nan_ok=True)
        assert scores.tasks == whole.tasks
    assert all(map(same, found, scorer.rungs("search")))
    for number, met in enumerate(found):
        assert all(map(same, found[number + 1 :], scorer.rungs("search", met)))
        assert len(list(scorer.rungs("search", met))) == len(found) - number - 1
    with pytest.raises(ValueError, match=r"`partial` must end with a rung, at \[0, .*, got 1"):
        next(scorer.rungs("search", found[0].subset(np.array([0]))))


def test_rungs_read_a_prefix_once(scorer):
    items = items_of(scorer.score("search"))
    scorer.plan_rungs("search", items, [20, 30, len(items)])
    whole = scorer._plans["search"].windows.plan("packed").prefixes
    plans = [rung.windows.plan("packed") for rung in scorer._rungs["search"]]
    keys = {prefix.tokens for plan in plans for prefix in plan.prefixes}
    assert keys
    assert keys <= {prefix.tokens for prefix in whole}


def test_a_task_that_a_rung_leaves_out_has_no_score_yet(scorer):
    items = items_of(scorer.score("search"))
    scorer.plan_rungs("search", items, [5, len(items)])
    first, last = scorer.rungs("search")
    assert first.task_score(NAMES[0]).n == 5
    for name in NAMES[1:]:
        score = first.task_score(name)
        assert score.n == 0
        assert np.isnan([score.value, score.se]).all()
    assert all(np.isfinite(score.value) for score in last.task_scores().values())


@pytest.mark.parametrize(
    ("change", "ends", "message"),
    [
        (lambda o: o[1:], [5], r"`order` must name each of the \d+ items once, got \d+, \d+ of"),
        (lambda o: [*o[1:], o[1]], [5], "`order` must name each of the"),
        (lambda o: o, [5], r"`ends` must increase from above 0 to \d+, got \[5\]"),
        (lambda o: o, [5, 5, len(NAMES) * 12], "`ends` must increase from above 0"),
        (lambda o: o, [], "`ends` must increase from above 0"),
    ],
)
def test_rungs_that_do_not_add_up_are_refused(change, ends, message, scorer):
    items = items_of(scorer.score("search"))
    with pytest.raises(ValueError, match=message):
        scorer.plan_rungs("search", change(items), ends)


def test_rungs_must_be_planned(scorer):
    with pytest.raises(ValueError, match="split 'confirm' has no rungs; call `plan_rungs` first"):
        next(scorer.rungs("confirm"))


# Failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("ll", "log-likelihood"), ("gen", "logit")])
@pytest.mark.parametrize("path", ["packed", "flat", "hflm"])
def test_nan_weights_are_a_typed_failure(name, what, path, tasks_folder, tokenizer):
    scorer_ = make(tasks_folder, tokenizer, (name,))
    scorer_.path = path
    with torch.no_grad():
        scorer_.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteScore, match=f"got {what} = nan on task '{name}', doc") as caught:
        scorer_.score("search")
    assert caught.value.task == name


def test_out_of_memory_comes_as_it_is(tasks_folder, tokenizer):
    class Huge(LlamaForCausalLM):
        def forward(self, input_ids=None, use_cache=None, **rest):
            if use_cache is not None:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(input_ids=input_ids, **rest)

    scorer_ = make(tasks_folder, tokenizer, ("mc", "ll"), model=odd_model(Huge))
    for act in (lambda: scorer_.score("search"), scorer_.self_check):
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
        ({"doc_to_text": "   "}, "task 'own', doc 0: the context of .* has no token of its own"),
        ({"doc_to_target": ""}, "task 'own', doc 0: the continuation of .* has no token"),
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
