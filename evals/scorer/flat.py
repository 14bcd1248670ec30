"""The flat path: one request a row, as lm-eval's HFLM does, for any causal language model.

Knows torch; no task and no lm-eval. Gives what ``HFLM._loglikelihood_tokens`` gives for the same
token ids, without re-tokenising, re-sorting, logits nobody reads or a wait per request.

Legend: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .batches import (
    MOST_LOGITS,
    Batch,
    LogLikelihoods,
    Plan,
    Request,
    Scored,
    make_batch,
    padded,
    score_batches,
    spread_picks,
)
from .forward import scored_logits

Row = tuple[int, ...]


def plan_flat(
    requests: Sequence[Request],
    *,
    batch_size: int,
    max_length: int,
    vocabulary: int,
    device: torch.device,
) -> Plan:
    """Sort, share and pad requests once; the composition of batches never changes afterwards.

    Requests with equal inputs (single-token choices of one question) share a row, as in HFLM.

    Args:
        requests: Each with a non-empty context and a continuation of 1 to ``max_length`` tokens.
        batch_size: Most rows per forward pass.
        max_length: Longest input in tokens; older tokens are cut, as HFLM does.
        vocabulary: Logits per position; bounds the scored positions of a batch.
        device: Where the model is.
    """
    by_row: dict[Row, list[int]] = {}
    for index, request in enumerate(requests):
        by_row.setdefault(request.row(max_length), []).append(index)
    rows = sorted(by_row, key=lambda row: (-len(row), row))  # HFLM's order
    batches: list[Batch] = []
    request_of: list[int] = []
    for chunk in _chunks(rows, by_row, requests, batch_size, MOST_LOGITS // vocabulary):
        width = padded(len(chunk[0]), max_length)
        scored = [
            Scored(cell, token, r)
            for b, row in enumerate(chunk)
            for r in by_row[row]
            for cell, token in _cells(b * width + len(row), requests[r])
        ]
        ids = np.zeros((len(chunk), width), dtype=np.int64)  # causality hides the padding
        for b, row in enumerate(chunk):
            ids[b, : len(row)] = row
        batches.append(make_batch(ids, scored, device))
        request_of += [s.request for s in scored]
    return Plan(tuple(batches), np.asarray(request_of, dtype=np.int64), len(requests))


def _cells(end: int, request: Request) -> list[tuple[int, int]]:
    """Cells and tokens of a continuation whose input ends before cell ``end``."""
    tokens = request.continuation  # the last input token predicts the last of them
    return [(end - len(tokens) + k, token) for k, token in enumerate(tokens)]


def _chunks(
    rows: Sequence[Row],
    by_row: dict[Row, list[int]],
    requests: Sequence[Request],
    batch_size: int,
    most_scored: int,
) -> list[list[Row]]:
    """Cut rows into batches of at most ``batch_size``, fewer where many positions are scored."""
    chunks: list[list[Row]] = []
    scored = 0
    for row in rows:
        own = max(len(requests[r].continuation) for r in by_row[row])
        if not chunks or len(chunks[-1]) == batch_size or scored + own > most_scored:
            chunks.append([])
            scored = 0
        chunks[-1].append(row)
        scored += own
    return chunks


def run_flat(model: Any, plan: Plan) -> LogLikelihoods:
    """Score every request of a plan with the weights the model now holds.

    Args:
        model: A causal language model in eval mode; left unchanged.
        plan: From `plan_flat`, on the model's device.

    Returns:
        LogLikelihoods (R,), NaN or infinite where the model is.
    """
    with torch.no_grad():
        return score_batches(plan, lambda batch: _logits(model, batch))


def rehearse_flat(model: Any, plan: Plan, batches: int) -> None:
    """Run a few batches, evenly from longest to shortest, and forget the answers."""
    with torch.no_grad():
        for index in spread_picks(len(plan.batches), batches):
            _logits(model, plan.batches[index])


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits at the scored positions (S, V)."""
    return scored_logits(model, batch.cells, input_ids=batch.ids, use_cache=False)
