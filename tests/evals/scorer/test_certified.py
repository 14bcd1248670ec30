"""Scores equal lm-eval's: every kind of task, against ``evaluate()`` with ``HFLM``, fp32."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from heterosis.evals.quiet import quiet
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.tasks.splits import Splits
from heterosis.evals.tasks.tasks import FrozenTask, TaskSpec, load_tasks

from ..reference import BATCH, Case, give_right_answers, hflm, load_for_lm_eval, reference
from ..tiny_models import tiny_model, write_tasks

# Each metric of each task is certified in one of these rounds.
ROUNDS = [
    {"mc": "acc", "mc_5shot": "acc_norm", "letters": "acc", "rolling": "word_perplexity"}
    | {"ll": "acc", "ll_bare": "perplexity", "gen": "exact_match,flexible"},
    {"mc": "acc_norm", "mc_5shot": "acc", "letters": "acc_norm", "rolling": "byte_perplexity"}
    | {"ll": "perplexity", "ll_bare": "acc", "gen": "exact_match,strict"},
    {"mc_first": "acc", "rolling": "bits_per_byte"},
]


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gemma2"])
def case(request, tmp_path_factory, tokenizer) -> Any:
    model = tiny_model(request.param, seed=3)
    folder = tmp_path_factory.mktemp("tasks")
    paths = write_tasks(folder)
    for name in ("ll", "ll_bare"):
        text = paths[name].read_text()
        paths[name].write_text(text.replace("' {{a}}'", "'{{a}}'").replace("{{q}} ", "{{q}}"))
    give_right_answers(folder, model, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        results = reference(model, tokenizer, load_for_lm_eval(list(paths.values())))
        yield Case(model, tokenizer, paths, results)


def load(case: Case, metrics: dict[str, str], splits: Splits) -> tuple[FrozenTask, ...]:
    specs = [TaskSpec(str(case.paths[name]), metric=m) for name, m in metrics.items()]
    return load_tasks(specs, splits=splits)


def scorer(case: Case, metrics: dict[str, str], splits: Splits = Splits(1.0)) -> Scorer:  # noqa: B008
    return Scorer(load(case, metrics, splits), case.model, case.tokenizer, batch_size=BATCH)


@pytest.mark.parametrize("metrics", ROUNDS)
def test_every_metric_is_lm_evals(case, metrics):
    scorer_ = scorer(case, metrics)
    found = scorer_.score("search")
    for task in scorer_.tasks:
        expected = case.results["results"][task.name][task.metric.key]
        value = found.task_score(task.name).value
        if task.metric.aggregation == "mean":
            assert value == expected, task.name
        else:
            assert value == pytest.approx(expected, rel=1e-5), task.name


@pytest.mark.parametrize("metrics", ROUNDS[:1])
def test_every_item_and_log_likelihood_is_lm_evals(case, metrics):
    scorer_ = scorer(case, metrics)
    found = scorer_.score("search")
    for task in scorer_.tasks:
        samples = {
            sample["doc_id"]: sample
            for sample in case.results["samples"][task.name]
            if sample["filter"] == task.metric.filter
        }
        assert list(samples) == list(task.doc_ids["search"])
        for row, own in zip(task.doc_ids["search"], task.instances("search"), strict=True):
            assert [i.args for i in own] == [tuple(a) for a in samples[row]["arguments"]]
            for instance, theirs in zip(own, samples[row]["resps"], strict=True):
                assert_same_answer(instance.resps[0], theirs[0])
        values = found.value[found.rows(task.name)].tolist()
        theirs = [samples[row][task.metric.name] for row in task.doc_ids["search"]]
        firsts = [v[0] if isinstance(v, tuple) else v for v in theirs]
        assert values == pytest.approx(firsts, rel=1e-6, abs=1e-5)


def assert_same_answer(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, str):
        assert ours == theirs
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-5)
    else:
        assert ours[0] == pytest.approx(theirs[0], abs=1e-5, rel=1e-6)
        assert ours[1] == theirs[1]


def test_the_certificate_is_not_hollow(case):
    """Scores are neither 0 nor 1, some texts take several windows, some rows are shared."""
    results = case.results["results"]
    for key, name in (("acc,none", "mc"), ("acc,none", "ll"), ("exact_match,strict", "gen")):
        assert 0 < results[name][key] < 1, name
    scorer_ = scorer(case, {"rolling": "word_perplexity", "letters": "acc"})
    plan = scorer_._plans["search"]
    requests = plan.windows.requests
    assert len(requests) > len(plan.likelihoods)
    rows = sum(batch.ids.shape[0] for batch in plan.windows.plan("flat").batches)
    assert rows < len(requests) - 3 * 20


def test_a_group_is_lm_evals(case):
    group = case.paths["mc"].parent / "suite.yaml"
    group.write_text(
        "group: suite\ntask: [mc, letters]\naggregate_metric_list: "
        "[{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(group.parent), include_defaults=False)
    results = reference(case.model, case.tokenizer, manager.load(["suite"]))
    tasks = load_tasks([TaskSpec(str(group))], splits=Splits(1.0))
    found = Scorer(tasks, case.model, case.tokenizer, batch_size=BATCH).score("search")
    assert found.tasks == ("mc", "letters")
    assert float(found.value.mean()) == results["groups"]["suite"]["acc,none"]


def test_a_split_is_lm_evals_under_samples(case):
    """Also with randomly drawn few-shot examples: a split's prompts are those of ``--samples``."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ("mc", "mc_5shot", "ll", "gen")
    scorer_ = scorer(case, {name: ROUNDS[0][name] for name in names}, Splits(0.5))
    for split in ("search", "confirm"):
        loaded = load_for_lm_eval([case.paths[name] for name in names])
        samples = {k: v for task in scorer_.tasks for k, v in task.samples(split).items()}
        with quiet():
            results: Any = simple_evaluate(
                model=hflm(case.model, case.tokenizer),
                tasks=list(loaded["tasks"].values()),
                task_manager=TaskManager(include_defaults=False),
                samples=samples,
                bootstrap_iters=0,
            )
        found = scorer_.score(split)
        for task in scorer_.tasks:
            expected = results["results"][task.name][task.metric.key]
            assert found.task_score(task.name).value == expected, task.name


@pytest.mark.slow
def test_lm_evals_own_command_line_gives_the_score(tmp_path, tasks_folder, tokenizer):
    model = tiny_model("llama", seed=3)
    model.save_pretrained(tmp_path / "export")
    tokenizer.save_pretrained(tmp_path / "export")
    tasks = load_tasks([TaskSpec(str(tasks_folder["mc_5shot"]))], splits=Splits(0.5))
    found = Scorer(tasks, model, tokenizer, batch_size=BATCH).score("confirm")
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={tmp_path / 'export'},dtype=float32",
        "--device": "cpu",
        "--batch_size": str(BATCH),
        "--tasks": str(tasks_folder["mc_5shot"]),
        "--samples": json.dumps(tasks[0].samples("confirm")),
        "--output_path": str(tmp_path / "out"),
    }
    command = [sys.executable, "-m", "lm_eval", "run", *(x for o in options.items() for x in o)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder = tasks_folder["mc_5shot"].parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "out").rglob("results_*.json")
    score = json.loads(report.read_text())["results"]["mc_5shot"]
    ours = found.task_score("mc_5shot")
    assert score["acc,none"] == ours.value
    assert score["acc_stderr,none"] == pytest.approx(ours.se, rel=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_on_the_packed_path(dtype, tasks_folder, tokenizer):
    specs = [TaskSpec(str(tasks_folder[name])) for name in ("mc", "rolling")]
    model = tiny_model("llama", seed=3, dtype=dtype)
    scorer_ = Scorer(load_tasks(specs, splits=Splits(1.0)), model, tokenizer, batch_size=BATCH)
    assert scorer_.self_check(64).path == "packed"
    fast = scorer_.score("search")
    scorer_.path = "hflm"
    slow = scorer_.score("search")
    assert np.abs(fast.margin - slow.margin)[:24].max() < 0.5
