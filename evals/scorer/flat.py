"""Flat scoring: one request per row, as lm-eval's HFLM does, for any causal language model.

Knows torch; knows no task and no lm-eval. Returns what ``HFLM._loglikelihood_tokens`` returns for
the same token ids, but tokenises and sorts once, computes no unused logits and waits once.

Legend: B rows of a batch, T tokens of a row, S scored positions, V vocabulary, R requests.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .batches import (
    Batch,
    Limits,
    LogLikelihoods,
    Plan,
    Request,
    Scored,
    make_batch,
    padded,
    rows_of,
    score_batches,
    spread_picks,
)
from .forward import scored_logits

Row = tuple[int, ...]


def plan_flat(requests: Sequence[Request], limits: Limits) -> Plan:
    """Sort, share and pad requests, once: the same batches score every candidate.

    Requests with equal inputs (single-token choices of one question) share a row, as in HFLM.

    Args:
        requests: Requests with a context of at least 1 token, a continuation of 1 to
            ``max_length``.
        limits: Limits of the model.
    """
    by_row = rows_of(requests, range(len(requests)), limits.max_length)
    rows = sorted(by_row, key=lambda row: (-len(row), row))  # HFLM's order
    batches: list[Batch] = []
    request_of: list[int] = []
    for chunk in _chunks(rows, by_row, requests, limits):
        width = padded(len(chunk[0]), limits.max_length)
        scored = [
            Scored(cell, token, r)
            for b, row in enumerate(chunk)
            for r in by_row[row]
            for cell, token in _cells(b * width + len(row), requests[r])
        ]
        ids = np.zeros((len(chunk), width), dtype=np.int64)  # causality hides the padding
        for b, row in enumerate(chunk):
            ids[b, : len(row)] = row
        batches.append(make_batch(ids, scored, limits.device))
        request_of += [s.request for s in scored]
    return Plan(tuple(batches), np.asarray(request_of, dtype=np.int64), len(requests))


def _cells(end: int, request: Request) -> list[tuple[int, int]]:
    """Return cells and tokens of a continuation whose input ends before cell ``end``."""
    tokens = request.continuation  # the last input token predicts the last of them
    return list(enumerate(tokens, end - len(tokens)))


def _chunks(
    rows: Sequence[Row], by_row: dict[Row, list[int]], requests: Sequence[Request], limits: Limits
) -> list[list[Row]]:
    """Cut rows into batches of at most ``batch_size`` rows, fewer if many positions are scored."""
    chunks: list[list[Row]] = []
    n_scored = 0
    for row in rows:
        more = max(len(requests[r].continuation) for r in by_row[row])
        is_full = bool(chunks) and len(chunks[-1]) == limits.batch_size
        if not chunks or is_full or n_scored + more > limits.most_scored:
            chunks.append([])
            n_scored = 0
        chunks[-1].append(row)
        n_scored += more
    return chunks


def run_flat(model: Any, plan: Plan) -> LogLikelihoods:
    """Score every request of a plan with the current weights of the model.

    Args:
        model: A causal language model in eval mode; left unchanged.
        plan: Plan from `plan_flat`, on the model's device.

    Returns:
        Log-likelihoods of the requests (R,), NaN or infinite where the model's are.
    """
    with torch.no_grad():
        return score_batches(plan, lambda batch: flat_logits(model, batch))


def rehearse_flat(model: Any, plan: Plan, batches: int) -> None:
    """Run a few batches, evenly from longest to shortest, and discard the results."""
    with torch.no_grad():
        for index in spread_picks(len(plan.batches), batches):
            flat_logits(model, plan.batches[index])


def flat_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits at the scored positions (S, V)."""
    return scored_logits(model, batch.cells, input_ids=batch.ids, use_cache=False)
