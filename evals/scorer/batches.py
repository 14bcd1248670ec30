"""What a forward pass is fed and what is read from it. Knows torch; no task, no tokenizer.

A `Batch` holds rows of token ids and names the positions whose next token is scored. How rows are
laid out is decided by `flat.py` (one request a row) and `packed.py` (many requests a row).

Legend: B rows of a batch, T tokens of a row, S scored positions, E scored tokens, V vocabulary,
R requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Most logits of one forward pass, in entries: 2 GiB in float32.
MOST_LOGITS = 2**29
# Logits that are summed at once, in entries: on a CPU they stay in its cache (4 MiB in float32),
# elsewhere few kernels are launched (256 MiB); docs/experiments.md, "Packed scorer".
_PIECE, _DEVICE_PIECE = 2**20, 2**26
PAD_MULTIPLE = 8  # tokens; lengths are rounded up to it, so that few shapes occur


@dataclass(frozen=True)
class Request:
    """Token ids of a log-likelihood request: `context` conditions, `continuation` is scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def row(self, max_length: int) -> tuple[int, ...]:
        """The model's input: all but the last token, the newest ``max_length`` of them."""
        return (self.context + self.continuation)[-(max_length + 1) :][:-1]


class Scored(NamedTuple):
    """One scored token: the cell (row * T + column) that predicts it, the token, its request."""

    cell: int
    token: int
    request: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of packed rows belong, all (B, T) int64.

    Attributes:
        positions: Position of each token in its own request, a shared prefix included.
        groups: Group of requests that a token belongs to; -1 for padding.
        branches: 0 for what the whole group shares, 1.. for what one branch alone holds.
    """

    positions: Tensor
    groups: Tensor
    branches: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward pass.

    Attributes:
        ids: Input ids (B, T), right-padded with 0 as HFLM does.
        cells: Scored positions as indices into B * T, ascending (S,).
        entries: Row of ``cells`` that scores each token (E,).
        targets: The tokens (E,).
        layout: How packed rows are laid out; None: each row is one plain sequence.
        prefix: Which shared prefix of the plan stands before every row; None: none.
    """

    ids: Tensor
    cells: Tensor
    entries: Tensor
    targets: Tensor
    layout: Layout | None = None
    prefix: int | None = None


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that stand before every row of some batches, and the same on the device (1, P)."""

    tokens: tuple[int, ...]
    ids: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches for a fixed list of requests, kept on the device.

    Attributes:
        batches: In the order they run.
        request_of: Which request each scored token belongs to, over all batches (E,).
        n_requests: How many requests.
        prefixes: Shared prefixes, each read once per candidate.
    """

    batches: tuple[Batch, ...] = field(repr=False)
    request_of: NDArray[np.int64] = field(repr=False)
    n_requests: int
    prefixes: tuple[Prefix, ...] = field(default=(), repr=False)

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads per candidate, padding and prefixes included."""
        return sum(batch.ids.numel() for batch in self.batches) + sum(
            len(prefix.tokens) for prefix in self.prefixes
        )


class LogLikelihoods(NamedTuple):
    """What a plan's requests scored.

    Attributes:
        lls: Log-likelihood in nats of each continuation (R,) float64.
        greedy: Whether greedy decoding would give exactly that continuation (R,) bool.
        gaps: Nats by which the most likely token beats the continuation's, at worst (R,) float64.
    """

    lls: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    gaps: NDArray[np.float64]


def make_batch(
    ids: NDArray[np.int64],
    scored: Sequence[Scored],
    device: torch.device,
    layout: tuple[NDArray[np.int64], ...] | None = None,
    prefix: int | None = None,
) -> Batch:
    """Put one batch on the device; tokens scored at one cell share its logits."""
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
    """Round a length up to a multiple of `PAD_MULTIPLE`, but not beyond ``most``."""
    return max(length, min(most, -(-length // PAD_MULTIPLE) * PAD_MULTIPLE))


def spread_picks(n: int, most: int) -> list[int]:
    """Return up to ``most`` of the indices 0 .. n-1, evenly, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def score_batches(plan: Plan, logits_of: Callable[[Batch], Tensor]) -> LogLikelihoods:
    """Score every request of a plan, with a single wait for the device.

    Args:
        plan: From `plan_flat` or `plan_packed`.
        logits_of: Gives the logits at a batch's ``cells``, (S, V), of any floating dtype.
    """
    found = [_score_tokens(logits_of(batch), batch) for batch in plan.batches]
    if not found:
        return gather(np.zeros((3, 0)), plan)
    return gather(torch.cat(found, dim=1).cpu().double().numpy(), plan)  # the one wait


def _score_tokens(logits: Tensor, batch: Batch) -> Tensor:
    """Log-likelihood, miss and gap of each scored token of a batch (3, E) float32.

    Equal to a log-softmax in float32 of all ``logits`` (S, V), of which no float32 copy is made.
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
    """Log-sum-exp, largest logit and its token, of each row (S, V)."""
    best, token = logits.max(dim=-1)
    return torch.logsumexp(logits, dim=-1), best, token


def gather(tokens: NDArray[np.float64], plan: Plan) -> LogLikelihoods:
    """Join log-likelihoods, misses and gaps of tokens (3, E) per request."""
    lls, misses = (
        np.bincount(plan.request_of, weights=row, minlength=plan.n_requests).astype(np.float64)
        for row in tokens[:2]
    )
    gaps = np.zeros(plan.n_requests)
    np.fmax.at(gaps, plan.request_of, tokens[2])  # NaN is told by the log-likelihoods
    return LogLikelihoods(lls, misses == 0, gaps)
