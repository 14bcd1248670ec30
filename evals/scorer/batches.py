"""Batches of log-likelihood requests, and scores from their logits. Knows torch; knows no task.

A `Batch` has rows of token ids and the positions whose next token is scored. `flat.py` (one request
per row) and `packed.py` (many requests per row) lay out the rows.

Legend: B rows of a batch, T tokens of a row, S scored positions, E scored tokens, V vocabulary,
R requests.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

# Most logits of a forward pass, in entries: 2 GiB in float32.
_MOST_LOGITS = 2**29
# Most logits that are summed at once, in entries: on a CPU they fit its cache (4 MiB in float32),
# elsewhere few kernels are launched (256 MiB); docs/experiments.md, "Packed scorer".
_PIECE, _DEVICE_PIECE = 2**20, 2**26
PAD_MULTIPLE = 8  # tokens; lengths are rounded up to it, so that there are few shapes


@dataclass(frozen=True)
class Limits:
    """Limits of the batches of one model.

    Attributes:
        batch_size: Most rows per forward pass of the flat path.
        batch_tokens: Most tokens per forward pass of the packed path, padding included, but at
            least one row.
        max_length: Longest input in tokens; older tokens are cut off, as HFLM does.
        longest_packed: Longest input that may be packed (sliding windows); others are plain rows.
        vocabulary: Logits per position, which limit the scored positions of a batch.
        device: Device of the model.
    """

    batch_size: int
    batch_tokens: int
    max_length: int
    longest_packed: int
    vocabulary: int
    device: torch.device

    @property
    def most_scored(self) -> int:
        """Most scored positions of a forward pass."""
        return max(1, _MOST_LOGITS // self.vocabulary)


@dataclass(frozen=True)
class Request:
    """Token ids of a log-likelihood request: the `continuation` is scored, given the `context`."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def row(self, max_length: int) -> tuple[int, ...]:
        """Return the model's input: all but the last token, the newest ``max_length`` of them."""
        return (self.context + self.continuation)[-(max_length + 1) :][:-1]


class Scored(NamedTuple):
    """One scored token: the cell (row * T + column) that predicts it, its id, and its request."""

    cell: int
    token: int
    request: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Layout of packed rows.

    Attributes:
        positions: Position of each token in its request, a shared prefix included.
        groups: Group of each token; -1 for padding.
        branches: Branch of each token in its group, from 1; 0 for the trunk.
    """

    positions: Int64[Tensor, "B T"]
    groups: Int64[Tensor, "B T"]
    branches: Int64[Tensor, "B T"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Input of one forward pass, and the tokens that it scores.

    Attributes:
        ids: Input ids, right-padded with 0 as HFLM does.
        cells: Scored positions as indices into B * T, ascending.
        entries: Index in ``cells`` for each scored token.
        targets: Ids of the scored tokens.
        layout: Layout of packed rows; None: each row is one plain sequence.
        prefix: Index of the plan's prefix before every row; None: no prefix.
    """

    ids: Int64[Tensor, "B T"]
    cells: Int64[Tensor, " S"]
    entries: Int64[Tensor, " E"]
    targets: Int64[Tensor, " E"]
    layout: Layout | None = None
    prefix: int | None = None


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens before every row of some batches, and their ids on the device."""

    tokens: tuple[int, ...]
    ids: Int64[Tensor, "1 P"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of a fixed list of requests, on the device.

    Attributes:
        batches: Batches in the order they run.
        request_of: Request of each scored token, over all batches.
        n_requests: Number of requests.
        prefixes: Shared prefixes, each computed once per candidate.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    request_of: Int64[np.ndarray, " E"] = field(repr=False)
    n_requests: int
    prefixes: tuple[Prefix, ...] = field(default=(), repr=False)

    @property
    def n_tokens(self) -> int:
        """Tokens that the model processes per candidate, padding and prefixes included."""
        return sum(batch.ids.numel() for batch in self.batches) + sum(
            len(prefix.tokens) for prefix in self.prefixes
        )


class LogLikelihoods(NamedTuple):
    """Scores of a plan's requests.

    Attributes:
        lls: Log-likelihood of each continuation, nats.
        greedy: Whether greedy decoding gives exactly the continuation.
        gaps: Largest gap from the continuation's token to the most likely one, nats.
    """

    lls: Float64[np.ndarray, " R"]
    greedy: Bool[np.ndarray, " R"]
    gaps: Float64[np.ndarray, " R"]


def rows_of(
    requests: Sequence[Request], indices: Iterable[int], max_length: int
) -> dict[tuple[int, ...], list[int]]:
    """Return the distinct inputs of some requests, each with the indices of its requests."""
    by_row: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        by_row.setdefault(requests[index].row(max_length), []).append(index)
    return by_row


def make_batch(
    ids: Int64[np.ndarray, "B T"],
    scored: Sequence[Scored],
    device: torch.device,
    layout: tuple[Int64[np.ndarray, "B T"], ...] | None = None,
    prefix: int | None = None,
) -> Batch:
    """Move one batch to the device; tokens scored at one cell share its logits."""
    cells, entries = np.unique([s.cell for s in scored], return_inverse=True)

    def on_device(values: NDArray[np.int64]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Batch(
        ids=on_device(ids),
        cells=on_device(cells),
        entries=on_device(entries),
        targets=on_device(np.array([s.token for s in scored], dtype=np.int64)),
        layout=Layout(*map(on_device, layout)) if layout else None,
        prefix=prefix,
    )


def padded(length: int, most: int) -> int:
    """Return a length rounded up to a multiple of `PAD_MULTIPLE`, but not beyond ``most``."""
    return max(length, min(most, -(-length // PAD_MULTIPLE) * PAD_MULTIPLE))


def spread_picks(n: int, most: int) -> list[int]:
    """Return up to ``most`` of the indices 0 .. n-1, evenly, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def score_batches(plan: Plan, logits_of: Callable[[Batch], Float[Tensor, "S V"]]) -> LogLikelihoods:
    """Score every request of a plan, with a single wait for the device.

    Args:
        plan: Plan from `plan_flat` or `plan_packed`.
        logits_of: Function that returns the logits at a batch's ``cells``.
    """
    tokens = [score_tokens(logits_of(batch), batch) for batch in plan.batches]
    if not tokens:
        return gather(np.zeros((3, 0)), plan)
    return gather(torch.cat(tokens, dim=1).cpu().double().numpy(), plan)  # the one wait


def score_tokens(logits: Float[Tensor, "S V"], batch: Batch) -> Float[Tensor, "3 E"]:
    """Return log-likelihood, miss and gap of each scored token of a batch, in float32.

    Equal to a float32 log-softmax of all ``logits``, without a float32 copy of them.
    """
    device = logits.device
    n_rows = max(1, (_PIECE if device.type == "cpu" else _DEVICE_PIECE) // logits.shape[1])
    pieces = [_summary(piece.float()) for piece in logits.split(n_rows)]
    log_sum, best, token = (torch.cat(column) for column in zip(*pieces, strict=True))  # (S,)
    entries, targets = batch.entries.to(device), batch.targets.to(device)
    logit = logits[entries, targets].float()
    missed = (token[entries] != targets).float()
    return torch.stack([logit - log_sum[entries], missed, best[entries] - logit])


def _summary(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exp, largest logit and its token, of each row (S, V)."""
    best, token = logits.max(dim=-1)
    return torch.logsumexp(logits, dim=-1), best, token


def gather(tokens: Float64[np.ndarray, "3 E"], plan: Plan) -> LogLikelihoods:
    """Sum log-likelihoods and misses of tokens per request, and take the largest gaps."""
    lls, misses = (
        np.bincount(plan.request_of, weights=row, minlength=plan.n_requests).astype(np.float64)
        for row in tokens[:2]
    )
    gaps = np.zeros(plan.n_requests)
    np.fmax.at(gaps, plan.request_of, tokens[2])  # the log-likelihoods show NaN
    return LogLikelihoods(lls, misses == 0, gaps)
