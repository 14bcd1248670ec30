"""Scoring speed: lm-eval against the scorer, on the same documents and batch size.

Also the scorer against its forward passes alone: the rest is filters, metrics and bookkeeping.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from heterosis.evals.quiet import quiet
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.tasks.splits import SEARCH
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import Config
from heterosis.search.study.build import build_engine, make_scorer
from heterosis.search.study.parts import Parts, open_parts
from timing import Row, interleave

ALL_BATCHES = 10**9


def lm_eval_model(parts: Parts, engine: MergeEngine) -> Any:
    """Return lm-eval's HFLM around the resident model, with the scorer's batch size and dtype."""
    with quiet():
        from lm_eval.models import huggingface

        make: Any = huggingface.HFLM  # its decorator hides the signature from pyright
        return make(
            pretrained=engine.model,
            tokenizer=parts.tokenizer,
            backend="causal",
            batch_size=parts.config.eval.batch_size,
            softmax_dtype="float32",
        )


def unanswered(scorer: Scorer, split: str = SEARCH) -> list[Any]:
    """Return copies of a split's frozen requests, without answers."""
    frozen = [i for task in scorer.tasks for group in task.instances(split) for i in group]
    requests = [copy.copy(instance) for instance in frozen]
    for request in requests:
        request.resps, request.filtered_resps = [], {}
    return requests


def lm_eval_tasks(parts: Parts) -> dict[str, Any]:
    """Load the tasks by lm-eval itself, in their folder: its paths are relative to that."""
    from lm_eval.tasks import TaskManager

    loaded: dict[str, Any] = {}
    for task in parts.tasks:
        assert task.source is not None
        with quiet(), contextlib.chdir(task.source.parent):
            loaded |= TaskManager(include_defaults=False).load([task.source.name])["tasks"]
    return loaded


def with_shots(task: Path, shots: int, folder: Path) -> Path:
    """Write a few-shot copy of a task; its first documents are examples and not scored."""
    config = yaml.safe_load(task.read_text())
    data = task.parent / config["dataset_kwargs"]["data_files"]["test"]
    lines = data.read_text().splitlines(keepends=True)
    for name, part in (("train", lines[:shots]), ("test", lines[shots:])):
        (folder / f"{name}.jsonl").write_text("".join(part))
    config |= {
        "task": f"{config['task']}_{shots}shot",
        "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
    }
    path = folder / f"{config['task']}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def evaluator(parts: Parts, lm: Any) -> Callable[[], Any]:
    """Return lm-eval's `simple_evaluate()` of the search documents, requests included."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    run: Any = simple_evaluate
    tasks = list(lm_eval_tasks(parts).values())
    manager = TaskManager(include_defaults=False)
    rows = {name: ids for task in parts.tasks for name, ids in task.samples(SEARCH).items()}

    def call() -> Any:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return run(
                model=lm,
                tasks=tasks,
                task_manager=manager,
                samples=rows,
                bootstrap_iters=0,
                log_samples=False,
            )

    return call


def score_rows(config: Config, repeats: int = 5) -> Iterator[Row]:
    """Time lm-eval in units of one `Scorer.score`, on the same documents and batch size."""
    parts = open_parts(config)
    engine = build_engine(parts)
    engine.load(Recipe.uniform("linear", parts.space.parents, parts.space.groups, 0.5))
    scorer = make_scorer(parts, engine.model)
    path = scorer.self_check().path
    lm, requests = lm_eval_model(parts, engine), unanswered(scorer)
    evaluate = evaluator(parts, lm)
    same = f"{agreement(scorer, lm, requests, evaluate())}; {path} path"
    others = {
        "HFLM.loglikelihood": lambda: lm.loglikelihood(requests, disable_tqdm=True),
        "lm-eval simple_evaluate()": evaluate,
    }
    for name, other in others.items():
        a, b = interleave(other, lambda: scorer.score(SEARCH), repeats)
        yield Row("score", config.name, name, "Scorer.score", a, b, same)
    if any(task.output_type == "generate_until" for task in parts.tasks):
        return
    a, b = interleave(
        lambda: scorer.score(SEARCH), lambda: scorer.rehearse(SEARCH, ALL_BATCHES), repeats
    )
    yield Row("score", config.name, "Scorer.score", "its forward passes", a, b, f"{path} path")


def agreement(scorer: Scorer, lm: Any, requests: Sequence[Any], results: Any) -> str:
    """Describe how far the answers agree: a speed-up with other answers would be worthless."""
    scores = scorer.score(SEARCH)
    ours = [i.resps[0] for task in scorer.tasks for group in task.instances(SEARCH) for i in group]
    theirs = lm.loglikelihood(requests, disable_tqdm=True)
    worst = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    off = max(
        abs(scores.task_score(task.name).value - results["results"][task.name][task.metric.key])
        for task in scorer.tasks
    )
    return f"{len(ours)} requests, within {worst:.1g} nats and {off:.1g} of score"
