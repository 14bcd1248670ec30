"""Log-likelihood speed on a CUDA device at 1B and 7B shapes, with random weights.

Uses the scoring paths and, if installed, lm-eval's HFLM; no checkpoint, no data set. Requests are
random tokens with the lengths of multiple-choice tasks, without and with five examples before every
question. `gpu.py` adds these measurements to its result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from heterosis.evals.scorer.architecture import longest_packed
from heterosis.evals.scorer.batches import Limits, Plan, Request
from heterosis.evals.scorer.packed import ROW_TOKENS
from heterosis.evals.scorer.scoring_paths import FLAT, HFLM, PACKED, LikelihoodRequests
from transformers import AutoModelForCausalLM, LlamaConfig

Timer = Callable[[Callable[[], object], str], float]

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {  # Llama 3.2
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "7B": {  # Llama 2
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
}
DOCS, CHOICES = 128, 4
CONTEXT, CONTINUATION, EXAMPLES = (
    (40, 100),
    (2, 16),
    500,
)  # tokens; (minimum, maximum) of the first two
BATCH_SIZE, MAX_LENGTH = 32, 2048
DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16 FLOP/s, dense
MATRIX = 8192  # rows and columns of the product that measures reachable FLOP/s


def requests(vocabulary: int, n_examples: int) -> list[Request]:
    """Return random four-choice questions, each after the same ``n_examples`` tokens."""
    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, rng.integers(low, high + 1)).tolist())

    shots = tokens(n_examples, n_examples)
    contexts = [shots + tokens(*CONTEXT) for _ in range(DOCS)]
    return [Request(c, tokens(*CONTINUATION)) for c in contexts for _ in range(CHOICES)]


def operations(model: Any, plan: Plan) -> float:
    """Count FLOP of a plan's matrix products, padding included, without attention."""
    head = model.lm_head.weight.numel()
    body = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2)
    n_scored = sum(batch.cells.numel() for batch in plan.batches)
    return 2.0 * (body * plan.n_tokens + head * n_scored)


def peak(device: str, seconds: Timer) -> float:
    """Measure the FLOP/s of one large bfloat16 product."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).bfloat16() for _ in range(2))
    return 2.0 * MATRIX**3 / seconds(lambda: torch.mm(a, b), device)


def lm_eval_around(model: Any) -> Any | None:
    """Return an HFLM around a model, or None if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        return None
    from lm_eval.models import huggingface
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", pad_token="<s>")
    make: Any = huggingface.HFLM
    return make(
        pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE, softmax_dtype="float32"
    )


class BareModel:
    """The part of an HFLM that the scoring paths use."""

    def __init__(self, model: Any) -> None:
        self.model = model


def measure_scoring(device: str, seconds: Timer) -> dict[str, Any]:
    """Measure each path's seconds, ratios and share of the peak, per shape and example length."""
    reached = peak(device, seconds)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    stated = next((flops for key, flops in DATASHEET.items() if key in name), None)
    rows = {
        shape: shape_rows(LlamaConfig(**sizes, max_position_embeddings=MAX_LENGTH), device, seconds)
        for shape, sizes in SHAPES.items()
    }
    for row in (row for by_examples in rows.values() for row in by_examples.values()):
        row["share of a large product's FLOP/s"] = row["FLOP/s"] / reached
        row["share of the data sheet's FLOP/s"] = row["FLOP/s"] / stated if stated else None
    return {"FLOP/s of a large product": reached, "FLOP/s stated": stated, "shapes": rows}


def shape_rows(config: LlamaConfig, device: str, seconds: Timer) -> dict[str, dict[str, Any]]:
    """Measure one model, created on the device."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    lm = lm_eval_around(model)
    return {
        f"{n} tokens of examples": score_row(model, lm, requests(config.vocab_size, n), seconds)
        for n in (0, EXAMPLES)
    }


def score_row(
    model: Any, lm: Any | None, all_requests: list[Request], seconds: Timer
) -> dict[str, Any]:
    """Measure packed, flat and lm-eval's loop on the same requests."""
    device = str(model.device)
    limits = Limits(
        batch_size=BATCH_SIZE,
        batch_tokens=BATCH_SIZE * ROW_TOKENS,
        max_length=MAX_LENGTH,
        longest_packed=longest_packed(model),
        vocabulary=model.config.vocab_size,
        device=model.device,
    )
    likelihoods = LikelihoodRequests(all_requests, [0] * len(all_requests), limits)
    wrapped = lm or BareModel(model)
    paths = (PACKED, FLAT, HFLM) if lm else (PACKED, FLAT)
    answers = {path: likelihoods.run(path, wrapped).lls for path in paths[:2]}
    times = {p: seconds(lambda p=p: likelihoods.run(p, wrapped), device) for p in paths}
    packed = times[PACKED]
    row: dict[str, Any] = {f"{path}, seconds": t for path, t in times.items()}
    row |= {f"{path} / packed": t / packed for path, t in times.items() if path != PACKED}
    if lm is None:
        row[f"{HFLM} / packed"] = "lm-eval is not installed"
    row["largest difference, nats"] = float(np.abs(answers[PACKED] - answers[FLAT]).max())
    row["FLOP/s"] = operations(model, likelihoods.plan(PACKED)) / packed
    return row
