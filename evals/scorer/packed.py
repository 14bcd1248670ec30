"""The packed path: many requests a row, shared tokens read once. Knows torch; no task.

The choices of a question stand behind one copy of it, several questions stand in one row, and what
all prompts of a task begin with (its few-shot examples) is read once per candidate and its keys
and values kept. A block mask and restarted positions give every request the keys it would see
alone. Which models allow that is told by `architecture.py`; the scorer's self-check certifies it.

Legend: B rows, T tokens of a row, P tokens of a prefix, S scored positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from .batches import (
    MOST_LOGITS,
    Batch,
    Layout,
    LogLikelihoods,
    Plan,
    Prefix,
    Request,
    Scored,
    make_batch,
    padded,
    score_batches,
    spread_picks,
)
from .forward import read_prefix, scored_logits
from .packing import Group, Row, fill_rows, group_rows, shared_prefix

# Tokens of a packed row. Every token meets every key of its row, masked or not, so rows are kept
# short against the model's width; measured in docs/experiments.md, "Packed scorer".
ROW_TOKENS = 256
_FULLNESS = 0.75  # of the widest row of a batch; an emptier row begins a narrower batch
Caches = dict[Row, Cache]  # keys and values of prefixes, by their tokens


@dataclass(frozen=True)
class _Piece:
    """A group behind a prefix of ``skip`` tokens, and the requests that each of its rows scores."""

    group: Group
    skip: int
    requests: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens in a packed row."""
        return self.group.length

    def n_scored(self, every: Sequence[Request]) -> int:
        """Number of scored tokens."""
        return sum(len(every[r].continuation) for own in self.requests for r in own)

    def scored(self, every: Sequence[Request]) -> list[Scored]:
        """Scored tokens; cells count from the start of the piece."""
        found = []
        start = self.group.trunk  # of the branch
        for row, own in zip(self.group.rows, self.requests, strict=True):
            for r in own:
                tokens = every[r].continuation
                for k, token in enumerate(tokens):
                    column = len(row) - len(tokens) + k
                    shift = start - self.group.trunk if column >= self.group.trunk else 0
                    found.append(Scored(column + shift, token, r))
            start += len(row) - self.group.trunk
        return found


def plan_packed(
    requests: Sequence[Request],
    tasks: Sequence[int],
    *,
    prefixes: Mapping[int, Row],
    batch_tokens: int,
    max_length: int,
    longest_packed: int,
    vocabulary: int,
    device: torch.device,
) -> Plan:
    """Group, pack and batch requests once; the composition never changes afterwards.

    Args:
        requests: Each with a non-empty context and a continuation of 1 to ``max_length`` tokens.
        tasks: Which task each request belongs to: prefixes are shared within a task.
        prefixes: Shared prefix of each task that has one, from `task_prefixes`.
        batch_tokens: Most tokens of a forward pass, padding included; one row at least.
        max_length: Longest input in tokens; older tokens are cut, as HFLM does.
        longest_packed: Longest input that may be packed (a sliding window); others stand alone.
        vocabulary: Logits per position; bounds the scored positions of a batch.
        device: Where the model is.
    """
    builder = _Builder(requests, batch_tokens, vocabulary, device)
    every = _rows(requests, tasks, max_length)
    loose: dict[Row, list[int]] = {}
    alone: dict[Row, list[int]] = {}
    for task, rows in every.items():
        prefix = prefixes.get(task, ())
        behind: dict[Row, list[int]] = {}
        for row, own in rows.items():
            fits = row[: len(prefix)] == prefix and _free(row, own, requests) >= len(prefix)
            place = behind if prefix and fits else loose
            (place if len(row) <= longest_packed else alone).setdefault(row, []).extend(own)
        builder.add(behind, prefix)
    builder.add(loose, ())
    builder.add_alone(alone)
    return builder.plan()


def task_prefixes(
    requests: Sequence[Request], tasks: Sequence[int], *, max_length: int, longest_packed: int
) -> dict[int, Row]:
    """Prefix of each task that is worth reading apart; see `plan_packed` for the arguments.

    Rows whose oldest tokens were cut have no say: they begin anywhere.
    """
    found = {}
    for task, rows in _rows(requests, tasks, max_length).items():
        most = min(max_length - 1, longest_packed)
        whole = {row: own for row, own in rows.items() if len(row) <= most}
        free = [_free(row, own, requests) for row, own in whole.items()]
        if prefix := shared_prefix(list(whole), free):
            found[task] = prefix
    return found


def _rows(
    requests: Sequence[Request], tasks: Sequence[int], max_length: int
) -> dict[int, dict[Row, list[int]]]:
    """Requests by task and input; requests with equal inputs share a row."""
    found: dict[int, dict[Row, list[int]]] = {}
    for index, (request, task) in enumerate(zip(requests, tasks, strict=True)):
        found.setdefault(task, {}).setdefault(request.row(max_length), []).append(index)
    return found


def _free(row: Row, own: Sequence[int], requests: Sequence[Request]) -> int:
    """Tokens of a row that may be in a prefix: none of its scored positions."""
    return len(row) - max(len(requests[r].continuation) for r in own)


class _Builder:
    """Collects the batches of a plan."""

    def __init__(
        self,
        requests: Sequence[Request],
        batch_tokens: int,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self.requests, self.device = requests, device
        self.batch_tokens, self.most_scored = batch_tokens, max(1, MOST_LOGITS // vocabulary)
        self.batches: list[Batch] = []
        self.prefixes: list[Prefix] = []
        self.request_of: list[int] = []

    def plan(self) -> Plan:
        """Return what was collected, the largest batches first."""
        return Plan(
            tuple(self.batches),
            np.asarray(self.request_of, dtype=np.int64),
            len(self.requests),
            tuple(self.prefixes),
        )

    def add(self, rows: dict[Row, list[int]], prefix: Row) -> None:
        """Pack rows that begin with ``prefix``."""
        if not rows:
            return
        index = None
        if prefix:
            index = len(self.prefixes)
            self.prefixes.append(Prefix(prefix, torch.tensor([prefix], device=self.device)))
        skip = len(prefix)
        rest = {row[skip:]: own for row, own in rows.items()}
        groups = group_rows(rest, max(ROW_TOKENS, *map(len, rest)))
        pieces = [_Piece(g, skip, tuple(tuple(rest[row]) for row in g.rows)) for g in groups]
        filled = fill_rows([piece.length for piece in pieces], ROW_TOKENS)
        self._batch([[pieces[i] for i in own] for own in filled], index)

    def add_alone(self, rows: dict[Row, list[int]]) -> None:
        """Give each row a plain sequence of its own, longest first."""
        whole = sorted(rows, key=lambda row: (-len(row), row))
        pieces = [_Piece(Group((row,), len(row)), 0, (tuple(rows[row]),)) for row in whole]
        self._batch([[piece] for piece in pieces], None, plain=True)

    def _batch(
        self, rows: Sequence[list[_Piece]], prefix: int | None, *, plain: bool = False
    ) -> None:
        """Cut rows, longest first, into batches within the budgets."""
        start = 0
        while start < len(rows):
            width = padded(sum(piece.length for piece in rows[start]), 2**62)
            stop, n_scored = start, 0
            while stop < len(rows):
                own = sum(piece.n_scored(self.requests) for piece in rows[stop])
                full = (stop - start + 1) * width > self.batch_tokens
                hollow = sum(piece.length for piece in rows[stop]) < _FULLNESS * width
                if stop > start and (full or hollow or n_scored + own > self.most_scored):
                    break
                stop, n_scored = stop + 1, n_scored + own
            self._append(rows[start:stop], width, prefix, plain)
            start = stop

    def _append(
        self, rows: Sequence[list[_Piece]], width: int, prefix: int | None, plain: bool
    ) -> None:
        """Lay pieces out in rows of one width."""
        ids, positions, branches = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
        groups = np.full((len(rows), width), -1, dtype=np.int64)
        scored: list[Scored] = []
        for b, pieces in enumerate(rows):
            column = 0
            for g, piece in enumerate(pieces):
                span = slice(column, column + piece.length)
                ids[b, span], positions[b, span], branches[b, span] = _laid_out(piece)
                groups[b, span] = g
                start = b * width + column
                scored += [s._replace(cell=start + s.cell) for s in piece.scored(self.requests)]
                column += piece.length
        layout = None if plain else (positions, groups, branches)
        self.batches.append(make_batch(ids, scored, self.device, layout, prefix))
        self.request_of += [s.request for s in scored]


def _laid_out(piece: _Piece) -> tuple[NDArray[np.int64], ...]:
    """Token ids, positions and branch numbers of a piece, each (length,)."""
    trunk = piece.group.trunk
    parts = [piece.group.rows[0][:trunk], *(row[trunk:] for row in piece.group.rows)]
    starts = [0] + [trunk] * len(piece.group.rows)
    ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
    positions = np.concatenate(
        [np.arange(len(p)) + s + piece.skip for p, s in zip(parts, starts, strict=True)]
    )
    return ids, positions, np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def run_packed(model: Any, plan: Plan, caches: Caches | None = None) -> LogLikelihoods:
    """Score every request of a plan with the weights the model now holds.

    Args:
        model: A causal language model in eval mode whose attention takes a 4-D mask; unchanged.
        plan: From `plan_packed`, on the model's device.
        caches: Prefixes read with these very weights; those that are missing are added.

    Returns:
        LogLikelihoods (R,), NaN or infinite where the model is.
    """
    with torch.no_grad():
        found = _read(model, plan.prefixes, {} if caches is None else caches)
        return score_batches(plan, lambda batch: _logits(model, batch, found))


def rehearse_packed(model: Any, plan: Plan, batches: int) -> None:
    """Run a few batches, evenly from first to last, and forget the answers."""
    picks = [plan.batches[i] for i in spread_picks(len(plan.batches), batches)]
    with torch.no_grad():
        found = _read(model, plan.prefixes, {})
        for batch in picks:
            _logits(model, batch, found)


def _read(model: Any, prefixes: Sequence[Prefix], caches: Caches) -> list[Cache]:
    """Caches of prefixes, in order; read where they are not there yet."""
    for prefix in prefixes:
        if prefix.tokens not in caches:
            caches[prefix.tokens] = read_prefix(model, prefix.ids)
    return [caches[prefix.tokens] for prefix in prefixes]


def _logits(model: Any, batch: Batch, caches: Sequence[Cache]) -> Tensor:
    """Logits at the scored positions (S, V)."""
    if batch.layout is None:
        return scored_logits(model, batch.cells, input_ids=batch.ids, use_cache=False)
    cache = None if batch.prefix is None else caches[batch.prefix]
    n_prefix = 0 if cache is None else int(cache.get_seq_length())
    return scored_logits(
        model,
        batch.cells,
        input_ids=batch.ids,
        position_ids=batch.layout.positions,
        attention_mask=attention_mask(model, visible(batch.layout, n_prefix)),
        past_key_values=cache,
        use_cache=cache is not None,
    )


def visible(layout: Layout, n_prefix: int) -> Tensor:
    """Which keys each token sees: the prefix, its group's trunk and its own branch, none later.

    Returns:
        Bool (B, 1, T, P + T). Padding sees padding, so that no row of it is empty.
    """
    groups, branches = layout.groups, layout.branches
    n_rows, n_tokens = groups.shape
    near = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    near &= groups[:, None, :] == groups[:, :, None]  # (B, T, T)
    seen = torch.nn.functional.pad(near.tril_(), (n_prefix, 0), value=True)
    return seen.view(n_rows, 1, n_tokens, n_prefix + n_tokens)


def attention_mask(model: Any, seen: Tensor) -> Tensor:
    """Turn what is seen into what is added to the scores of every layer, in the model's dtype.

    SDPA also takes bools, but turns them into this once per layer.
    """
    added = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return added.masked_fill_(~seen, torch.finfo(model.dtype).min)
