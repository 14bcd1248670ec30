"""The flat scoring loop: batches made once, one forward pass each, one device sync per call.

Knows torch and any causal language model of transformers; knows no task and no lm-eval. Gives what
lm-eval's ``HFLM._loglikelihood_tokens`` gives for the same token ids, without re-tokenising,
re-sorting, padding, a copy of all logits or a sync per request.

Legend: B rows of a batch, T tokens, C columns whose logits are asked for, P scored positions,
E scored tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """Token ids of a log-likelihood request: `context` conditions, `continuation` is scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def row(self, max_length: int) -> tuple[int, ...]:
        """The model's input: all but the last token, the newest ``max_length`` of them."""
        return (self.context + self.continuation)[-(max_length + 1) :][:-1]


@dataclass(frozen=True, eq=False)
class _Batch:
    """One forward pass.

    Attributes:
        ids: Input ids (B, T), right-padded with 0 as HFLM does; causality hides the padding.
        columns: Columns whose logits are needed (C,).
        positions: Scored positions as indices into B * C (P,).
        entries: Row of ``positions`` that scores each token (E,).
        targets: The tokens (E,).
    """

    ids: Tensor
    columns: Tensor
    positions: Tensor
    entries: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class FlatPlan:
    """Batches for a fixed list of requests, kept on the device.

    Attributes:
        batches: In the order they run, longest rows first.
        request_of: Which request each scored token belongs to, over all batches (E,).
        n_requests: How many requests.
    """

    batches: tuple[_Batch, ...] = field(repr=False)
    request_of: NDArray[np.int64] = field(repr=False)
    n_requests: int


def plan_flat(
    requests: Sequence[Request], *, batch_size: int, max_length: int, device: torch.device
) -> FlatPlan:
    """Sort, share and pad requests once; the composition of batches never changes afterwards.

    Requests with equal inputs (single-token choices of one question) share a row, as in HFLM.

    Args:
        requests: Each with a non-empty context and a continuation of 1 to ``max_length`` tokens.
        batch_size: Rows per forward pass.
        max_length: Longest input in tokens; older tokens are cut, as HFLM does.
        device: Where the model is.
    """
    by_row: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        by_row.setdefault(request.row(max_length), []).append(index)
    rows = sorted(by_row, key=lambda row: (-len(row), row))  # HFLM's order
    batches, request_of = [], []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        members = [(b, r) for b, row in enumerate(chunk) for r in by_row[row]]
        batch, owners = _make_batch(chunk, members, requests, device)
        batches.append(batch)
        request_of += owners
    return FlatPlan(
        tuple(batches),
        np.asarray(request_of, dtype=np.int64),
        len(requests),
    )


def _make_batch(
    rows: Sequence[tuple[int, ...]],
    members: Sequence[tuple[int, int]],
    requests: Sequence[Request],
    device: torch.device,
) -> tuple[_Batch, list[int]]:
    """One batch and the request of each of its scored tokens; members are (row, request) pairs."""
    scored = [  # (row, column, token, request); the last input token predicts the last target
        (b, len(rows[b]) - len(requests[r].continuation) + k, token, r)
        for b, r in members
        for k, token in enumerate(requests[r].continuation)
    ]
    columns = sorted({column for _, column, _, _ in scored})
    place = {column: i for i, column in enumerate(columns)}
    cells = [b * len(columns) + place[column] for b, column, _, _ in scored]
    positions = sorted(set(cells))
    rank = {cell: i for i, cell in enumerate(positions)}
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)  # (B, T)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)

    def on_device(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    batch = _Batch(
        ids=ids.to(device),
        columns=on_device(columns),
        positions=on_device(positions),
        entries=on_device([rank[cell] for cell in cells]),
        targets=on_device([token for _, _, token, _ in scored]),
    )
    return batch, [r for _, _, _, r in scored]


def selects_logits(model: Any) -> bool:
    """Whether a model's forward takes ``logits_to_keep`` (column indices)."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _batch_logits(model: Any, batch: _Batch, select: bool) -> Tensor:
    """Logits at the scored positions (P, V), float32; the model's own head, so soft-caps hold."""
    if select:
        logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=batch.columns).logits
    else:
        logits = model(input_ids=batch.ids, use_cache=False).logits[:, batch.columns]
    return logits.flatten(0, 1)[batch.positions].float()


def run_flat(model: Any, plan: FlatPlan) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score every request of a plan with the weights the model now holds.

    Args:
        model: A causal language model in eval mode; left unchanged.
        plan: From `plan_flat`, on the model's device.

    Returns:
        Log-likelihood in nats of each continuation (R,), NaN or infinite where the model is; and
        whether greedy decoding would give exactly that continuation (R,).
    """
    lls, greedy = [], []
    select = selects_logits(model)
    with torch.no_grad():
        for batch in plan.batches:
            logp = torch.log_softmax(_batch_logits(model, batch, select), dim=-1)  # (P, V)
            lls.append(logp[batch.entries, batch.targets])
            greedy.append(logp.argmax(-1)[batch.entries] == batch.targets)
        both = torch.stack([torch.cat(lls), torch.cat(greedy).float()]).cpu()  # the one sync
    return _gather(both.double().numpy(), plan)


def rehearse(model: Any, plan: FlatPlan, batches: int) -> None:
    """Run a few batches, evenly from longest to shortest, and forget the answers."""
    every, select = plan.batches, selects_logits(model)
    picks = np.unique(np.linspace(0, len(every) - 1, min(batches, len(every))).round().astype(int))
    with torch.no_grad():
        for index in picks:
            _batch_logits(model, every[index], select)


def _gather(
    tokens: NDArray[np.float64], plan: FlatPlan
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sum token log-likelihoods and join greedy flags per request; tokens (2, E)."""
    ll = np.bincount(plan.request_of, weights=tokens[0], minlength=plan.n_requests)
    ll = ll.astype(np.float64)  # bincount of nothing is of integers
    misses = np.bincount(plan.request_of, weights=1.0 - tokens[1], minlength=plan.n_requests)
    return ll, misses == 0
