"""lm-eval's results on the tests' tasks, for comparison."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from heterosis.evals.quiet import quiet

BATCH = 8


@dataclass
class Case:
    """A model, tasks that it sometimes answers right, and lm-eval's results on them."""

    model: Any
    tokenizer: Any
    paths: dict[str, Path]
    results: dict[str, Any]


def hflm(model: Any, tokenizer: Any) -> Any:
    """lm-eval's HFLM; its log-softmax in float32, which float32 models have anyway."""
    from lm_eval.models import huggingface

    make: Any = huggingface.HFLM  # its decorator hides the signature from pyright
    with quiet():
        return make(
            pretrained=model, tokenizer=tokenizer, batch_size=BATCH, softmax_dtype="float32"
        )


def load_for_lm_eval(paths: list[Path]) -> Any:
    """Tasks as lm-eval loads them: its loader, its paths relative to the working directory."""
    from lm_eval.tasks import TaskManager

    loaded: Any = TaskManager(include_defaults=False).load([str(p) for p in paths])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    return loaded


def reference(model: Any, tokenizer: Any, loaded: Any) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    run: Any = evaluate
    with quiet():
        return run(hflm(model, tokenizer), loaded, bootstrap_iters=0, log_samples=True)


def greedy_text(model: Any, tokenizer: Any, prompt: str, n: int) -> str:
    ids = torch.tensor([tokenizer.encode(prompt) or [1]])
    with torch.no_grad():
        for _ in range(n):
            best = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
    return tokenizer.decode(ids[0, -n:])


def give_right_answers(folder: Path, model: Any, tokenizer: Any) -> None:
    """Rewrite half of the answers to what the model would say, so that scores are not all 0."""
    for name, n in (("ll", 1), ("gen", 12)):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for row in rows[::2]:
            prompt = row["q"] if name == "ll" else f"{row['q']}\nAnswer:"
            said = greedy_text(model, tokenizer, prompt, n)
            said = said.split("\n")[0].split("st")[0] if name == "gen" else said
            row["a"] = said or row["a"]  # the model may name a token that the tokenizer lacks
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
