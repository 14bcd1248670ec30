"""Smooth losses: the scorer's own log-likelihoods, their gradients, and what has no twin."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from heterosis.evals.gradient.items import is_right, reference
from heterosis.evals.gradient.losses import SmoothLosses
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.scores.terms import Term, plain_terms
from heterosis.evals.tasks.splits import Splits
from heterosis.evals.tasks.tasks import TaskSpec, load_tasks

from ..tiny_models import tiny_model

NAMES = ("mc_first", "letters", "ll", "rolling", "gen")


def make(tasks_folder, tokenizer, names=NAMES, arch="llama", **spec: Any) -> Scorer:
    specs = [TaskSpec(str(tasks_folder[name]), **spec) for name in names]
    tasks = load_tasks(specs, splits=Splits(0.5))
    return Scorer(tasks, tiny_model(arch, seed=1), tokenizer, batch_size=8)


def losses_of(scorer: Scorer, *terms: Term, **options: Any) -> SmoothLosses:
    return SmoothLosses(
        scorer, "search", terms or plain_terms([t.name for t in scorer.tasks]), **options
    )


@pytest.fixture(scope="module")
def scorer(tasks_folder, tokenizer) -> Scorer:
    made = make(tasks_folder, tokenizer)
    made.model.requires_grad_(False)
    return made


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox", "mamba"])
def test_losses_are_those_of_the_scorers_log_likelihoods(arch, tasks_folder, tokenizer):
    scorer = make(tasks_folder, tokenizer, ("mc_first", "ll", "rolling"), arch)
    scorer.self_check()
    scores = scorer.score("search")
    smooth = losses_of(
        scorer,
        Term("choice", "mc_first", "log_likelihood"),
        *plain_terms(["mc_first", "ll", "rolling"]),
    )
    report = smooth.evaluate(list(smooth.items))
    assert not smooth.reasons
    rows = scores.rows("mc_first")
    assert report.losses["choice"] == pytest.approx(-scores.log_likelihood[rows], abs=1e-3)
    right = scores.value[rows] == 1.0
    assert report.right["mc_first"] == right.tolist()
    rows = scores.rows("ll")
    assert report.losses["ll"] == pytest.approx(-scores.log_likelihood[rows], abs=1e-3)
    assert report.right["ll"] == (scores.value[rows] == 1.0).tolist()
    rows = scores.rows("rolling")
    per_unit = -scores.value[rows] / scores.weight[rows]
    assert report.losses["rolling"] == pytest.approx(per_unit, rel=1e-3)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_loss_of_a_question_is_the_cross_entropy_of_its_choices(
    metric, tasks_folder, tokenizer
):
    scorer = make(tasks_folder, tokenizer, ("mc_first",), metric=metric)
    smooth = losses_of(scorer)
    report = smooth.evaluate(list(smooth.items))
    scorer.score("search")
    task = scorer.tasks[0]
    for row, loss in zip(task.doc_ids["search"], report.losses["mc_first"], strict=True):
        instances = task.prompts.instances[row]
        choices: Any = task.task.doc_to_choice(instances[0].doc)  # pyright: ignore
        size = len if metric == "acc_norm" else (lambda _: 1)
        s = [i.resps[0][0] / size(c) for i, c in zip(instances, choices, strict=True)]
        gold = task.prompts.gold[row][0]
        assert loss == pytest.approx(math.log(sum(map(math.exp, s))) - s[gold], abs=1e-3)


def assert_equal_gradients(parameter: torch.Tensor, expected: torch.Tensor | None) -> None:
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


def test_gradients_are_those_of_finite_differences_and_microbatches_add_up(scorer):
    smooth, model = losses_of(scorer), scorer.model
    keys = list(smooth.items)
    weights = {name: 0.5 + i for i, name in enumerate(NAMES)}
    parameter = model.model.layers[1].mlp.up_proj.weight
    parameter.requires_grad_(True)
    report = smooth.backward(keys, weights)
    whole = parameter.grad.clone()
    generator = torch.Generator().manual_seed(1)
    tilt = torch.randn(parameter.shape, generator=generator)

    def loss(by: float) -> float:
        with torch.no_grad():
            parameter.add_(by * tilt)
        found = smooth.evaluate(keys).losses
        with torch.no_grad():
            parameter.sub_(by * tilt)
        return sum(weights[name] * float(np.mean(found[name])) for name in found)

    central = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert float((whole * tilt).sum()) == pytest.approx(central, rel=0.02)
    smooth.most_tokens = 1  # every item alone
    parameter.grad = None
    again = smooth.backward(keys, weights)
    assert_equal_gradients(parameter, whole)
    assert again.n_tokens == report.n_tokens
    for name, values in report.losses.items():
        assert again.losses[name] == pytest.approx(values, abs=1e-3)
    parameter.grad = None
    parameter.requires_grad_(False)


def test_shrinking_halves_then_recomputes_then_gives_up(scorer):
    smooth, parameter = losses_of(scorer), scorer.model.model.embed_tokens.weight
    keys, weights = list(smooth.items), dict.fromkeys(NAMES, 1.0)
    parameter.requires_grad_(True)
    smooth.backward(keys, weights)
    expected, parameter.grad = parameter.grad, None
    sizes = [smooth.most_tokens]
    while smooth.shrink() and not smooth.is_checkpointing:
        sizes.append(smooth.most_tokens)
    assert sizes == sorted(set(sizes), reverse=True) and len(sizes) > 1
    assert smooth.is_checkpointing and not smooth.shrink()
    calls = []
    layer = scorer.model.model.layers[0].mlp
    hook = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    smooth.backward(keys[:1], weights)
    hook.remove()
    assert len(calls) == 2, "once forward, once again in the backward pass"
    parameter.grad = None
    smooth.backward(keys, weights)
    assert_equal_gradients(parameter, expected)
    assert not any(module.training for module in scorer.model.modules())
    parameter.grad = None
    parameter.requires_grad_(False)


def test_a_generated_answer_is_learnt_from_its_reference_or_from_a_parent(scorer):
    smooth = losses_of(scorer, *plain_terms(["gen"]))
    task = next(task for task in scorer.tasks if task.name == "gen")
    row = task.doc_ids["search"][0]
    text = reference(task, row)
    assert text is not None and is_right(task, row, text)
    assert not is_right(task, row, "nothing of the kind")
    item = smooth.items["gen", row]
    assert scorer.lm.tok_decode(list(item.requests[0].continuation)).strip() == text.strip()


def test_documents_without_an_answer_are_counted_and_answers_of_parents_fill_them(
    scorer, monkeypatch
):
    monkeypatch.setattr("heterosis.evals.gradient.items.reference", lambda *_: None)
    task = next(task for task in scorer.tasks if task.name == "gen")
    rows = task.doc_ids["search"]
    some = losses_of(scorer, *plain_terms(["gen"]), answers={("gen", rows[0]): " red"})
    assert list(some.items) == [("gen", rows[0])]
    expected = f"{len(rows) - 1} of {len(rows)} documents have no right answer to learn from"
    assert some.reasons == {"gen": expected}


def test_a_term_without_a_twin_is_named(scorer):
    smooth = losses_of(scorer, Term("long", "gen", "length"), Term("ll", "ll", "metric"))
    assert smooth.reasons == {"long": "the length of an answer has no slope"}
    assert {key[0] for key in smooth.items} == {"ll"}


def test_a_margin_is_smooth(scorer):
    smooth = losses_of(scorer, Term("gap", "mc_first", "margin"))
    scores = scorer.score("search")
    found = np.array(smooth.evaluate(list(smooth.items)).losses["gap"])
    margins = scores.margin[scores.rows("mc_first")]
    assert np.all(found >= -margins - 1e-3), "the other choices are summed, so it is no smaller"
    assert np.corrcoef(found, margins)[0, 1] < -0.7
