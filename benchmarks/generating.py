"""Generation speed: lm-eval's `generate_until` against the scorer, on the same prompts."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from heterosis.evals.quiet import quiet
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.tasks.splits import GUARD, Splits
from heterosis.evals.tasks.tasks import TaskSpec, load_tasks
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.config.config import Config
from heterosis.search.study.build import build_engine
from heterosis.search.study.parts import open_parts
from scoring import lm_eval_model, unanswered
from timing import Row, interleave

SUBJECTS = ("France", "gold", "a week", "rain", "the Moon", "a triangle", "bees", "water")
QUESTIONS = ("What is {}?", "Tell me in a few words what {} is made of.", "Why does {} matter?")
SHOTS = 5
STOPS = {"one stop": ("\n",), "triviaqa's stops": ("\n", ".", ",")}
"""HFLM continues until every row contains the same string; triviaqa and nq_open have three."""
MOST_TOKENS = 48


def write_task(folder: Path, num_fewshot: int, until: Sequence[str]) -> Path:
    """Write a task of short questions; return its YAML file."""
    docs = [{"q": q.format(s), "a": "It is well known."} for q in QUESTIONS for s in SUBJECTS]
    files = {"test": docs, "train": docs[:SHOTS]}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": f"questions_{num_fewshot}_shot",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {name: str(folder / f"{name}.jsonl") for name in files}},
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": num_fewshot,
        "fewshot_config": {"sampler": "first_n"},
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": list(until), "max_gen_toks": MOST_TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / "questions.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def generation_rows(config: Config, repeats: int = 3, docs: int = 8) -> Iterator[Row]:
    """Time `HFLM.generate_until` in units of one `Scorer.score`, zero-shot and few-shot."""
    parts = open_parts(config)
    engine = build_engine(parts)
    engine.load(Recipe.uniform("linear", parts.space.parents, parts.space.groups, 0.5))
    lm = lm_eval_model(parts, engine)
    for num_fewshot, (title, until) in itertools.product((0, SHOTS), STOPS.items()):
        with tempfile.TemporaryDirectory() as folder:
            path = write_task(Path(folder), num_fewshot, until)
            spec = TaskSpec(str(path), guard=True, max_items=docs)
            tasks = load_tasks([spec], splits=Splits())
        size = config.eval.batch_size
        scorer = Scorer(tasks, engine.model, parts.tokenizer, batch_size=size)
        yield _row(config, scorer, lm, repeats, f"{num_fewshot}-shot, {title}")


def _row(config: Config, scorer: Scorer, lm: Any, repeats: int, what: str) -> Row:
    scorer.self_check()
    requests = unanswered(scorer, GUARD)

    def theirs() -> list[str]:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            return lm.generate_until(requests, disable_tqdm=True)

    scores, texts = scorer.score(GUARD), theirs()
    ours = [group[0].resps[0] for group in scorer.tasks[0].instances(GUARD)]
    same = sum(a == b for a, b in zip(ours, texts, strict=True))
    report = scorer.generation_report
    note = (
        f"{same} of {len(texts)} texts equal, {scores.length.mean():.0f} tokens on average, "
        f"{scores.truncated.mean():.0%} truncated; {report.path if report else '-'} path"
    )
    a, b = interleave(theirs, lambda: scorer.score(GUARD), repeats)
    return Row("generate", config.name, f"HFLM.generate_until {what}", "Scorer.score", a, b, note)
