"""Packed scoring: many requests per row, shared tokens computed once. Knows torch; knows no task.

The choices of a question follow one copy of it, several questions share a row, and the common
prefix of a task's prompts (its few-shot examples) is computed once per candidate and its keys and
values are kept. A block mask and restarted positions let every request see exactly the keys that it
would see alone. `architecture.py` knows which models allow that; the scorer's self-check tests it.

Legend: B rows, T tokens of a row, P tokens of a prefix, S scored positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from .batches import (
    Batch,
    Layout,
    Limits,
    LogLikelihoods,
    Plan,
    Prefix,
    Request,
    Scored,
    make_batch,
    padded,
    rows_of,
    score_batches,
    spread_picks,
)
from .forward import read_prefix, scored_logits
from .packing import Group, Row, fill_rows, group_rows, shared_prefix

# Tokens of a packed row. Attention is computed between all tokens of a row, masked or not, so rows
# are short against the model's width; measured in docs/experiments.md, "Packed scorer".
ROW_TOKENS = 256
_FULLNESS = 0.75  # of a batch's widest row; an emptier row starts a narrower batch
Caches = dict[Row, Cache]
"""Keys and values of prefixes, by their tokens."""


@dataclass(frozen=True)
class _Piece:
    """A group after a prefix of ``skip`` tokens, and the requests that each of its rows scores."""

    group: Group
    skip: int
    requests: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens in a packed row."""
        return self.group.length

    def n_scored(self, requests: Sequence[Request]) -> int:
        """Return the number of scored tokens."""
        return sum(len(requests[r].continuation) for row in self.requests for r in row)

    def scored(self, requests: Sequence[Request]) -> list[Scored]:
        """Return the scored tokens; cells count from the start of the piece."""
        tokens: list[Scored] = []
        trunk = self.group.trunk
        branch_start = trunk  # branches follow the trunk, one after another
        for row, indices in zip(self.group.rows, self.requests, strict=True):
            for r in indices:
                continuation = requests[r].continuation
                # The last input token predicts the last token of the continuation.
                first = len(row) - len(continuation)
                for column, token in enumerate(continuation, first):
                    # Columns beyond the trunk move to the row's branch; the trunk is shared.
                    shift = branch_start - trunk if column >= trunk else 0
                    tokens.append(Scored(column + shift, token, r))
            branch_start += len(row) - trunk
        return tokens

    def layout(self) -> tuple[NDArray[np.int64], ...]:
        """Return token ids, positions and branch numbers, each (length,)."""
        trunk, rows = self.group.trunk, self.group.rows
        parts = [rows[0][:trunk], *(row[trunk:] for row in rows)]  # the trunk, then the branches
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        # Positions restart after the trunk in every branch, as if the row stood alone.
        starts = [self.skip] + [self.skip + trunk] * len(rows)
        positions = [np.arange(len(p)) + start for p, start in zip(parts, starts, strict=True)]
        branches = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return ids, np.concatenate(positions), branches


def plan_packed(
    requests: Sequence[Request],
    tasks: Sequence[int],
    prefixes: Mapping[int, Row],
    limits: Limits,
) -> Plan:
    """Group, pack and batch requests, once: the same batches score every candidate.

    Args:
        requests: Requests with a context of at least 1 token, a continuation of 1 to
            ``max_length``.
        tasks: Task of each request; prefixes are shared within a task.
        prefixes: Shared prefix of each task that has one, from `task_prefixes`.
        limits: Limits of the model.
    """
    builder = _Builder(requests, limits)
    loose: dict[Row, list[int]] = {}  # packed without a prefix, across tasks
    alone: dict[Row, list[int]] = {}  # too long to be packed
    for task, rows in _rows_by_task(requests, tasks, limits.max_length).items():
        prefix = prefixes.get(task, ())
        behind: dict[Row, list[int]] = {}  # packed after the task's prefix
        for row, indices in rows.items():
            # A row uses the prefix if it begins with it and scores none of its tokens.
            fits = row[: len(prefix)] == prefix and _n_unscored(row, indices, requests) >= len(
                prefix
            )
            kind = behind if prefix and fits else loose
            kind = kind if len(row) <= limits.longest_packed else alone
            kind.setdefault(row, []).extend(indices)
        builder.add(behind, prefix)
    builder.add(loose, ())
    builder.add_alone(alone)
    return builder.plan()


def task_prefixes(
    requests: Sequence[Request], tasks: Sequence[int], limits: Limits
) -> dict[int, Row]:
    """Return the prefix of each task that is worth computing once; arguments as in `plan_packed`.

    Rows whose oldest tokens are cut off are ignored: they begin anywhere.
    """
    prefixes = {}
    longest = min(limits.max_length - 1, limits.longest_packed)
    for task, by_row in _rows_by_task(requests, tasks, limits.max_length).items():
        rows = [row for row in by_row if len(row) <= longest]
        n_unscored = [_n_unscored(row, by_row[row], requests) for row in rows]
        if prefix := shared_prefix(rows, n_unscored):
            prefixes[task] = prefix
    return prefixes


def _rows_by_task(
    requests: Sequence[Request], tasks: Sequence[int], max_length: int
) -> dict[int, dict[Row, list[int]]]:
    """Return the rows of each task, each with the indices of the requests that it scores."""
    by_task: dict[int, list[int]] = {}
    for index, task in enumerate(tasks):
        by_task.setdefault(task, []).append(index)
    return {task: rows_of(requests, indices, max_length) for task, indices in by_task.items()}


def _n_unscored(row: Row, indices: Sequence[int], requests: Sequence[Request]) -> int:
    """Return the number of a row's tokens before its first scored position."""
    return len(row) - max(len(requests[r].continuation) for r in indices)


class _Builder:
    """Batches of a plan in the making."""

    def __init__(self, requests: Sequence[Request], limits: Limits) -> None:
        self.requests, self.limits = requests, limits
        self.batches: list[Batch] = []
        self.prefixes: list[Prefix] = []
        self.request_of: list[int] = []

    def plan(self) -> Plan:
        """Return the plan of all batches added so far."""
        request_of = np.asarray(self.request_of, dtype=np.int64)
        return Plan(tuple(self.batches), request_of, len(self.requests), tuple(self.prefixes))

    def add(self, rows: dict[Row, list[int]], prefix: Row) -> None:
        """Pack rows that begin with ``prefix``."""
        if not rows:
            return
        index = len(self.prefixes) if prefix else None
        if prefix:
            self.prefixes.append(Prefix(prefix, torch.tensor([prefix], device=self.limits.device)))
        # 1. Cut the prefix off: its keys and values come from a cache.
        rest = {row[len(prefix) :]: indices for row, indices in rows.items()}
        # 2. Group rows with a common beginning, such as the choices of a question.
        groups = group_rows(rest, max(ROW_TOKENS, *map(len, rest)))
        pieces = [_Piece(g, len(prefix), tuple(tuple(rest[row]) for row in g.rows)) for g in groups]
        # 3. Pack groups into rows, and rows into batches.
        packed = fill_rows([piece.length for piece in pieces], ROW_TOKENS)
        self._batch([[pieces[i] for i in row] for row in packed], index)

    def add_alone(self, rows: dict[Row, list[int]]) -> None:
        """Add each row as a plain sequence, longest first."""
        ordered = sorted(rows, key=lambda row: (-len(row), row))
        pieces = [_Piece(Group((row,), len(row)), 0, (tuple(rows[row]),)) for row in ordered]
        self._batch([[piece] for piece in pieces], None, plain=True)

    def _batch(
        self, rows: Sequence[list[_Piece]], prefix: int | None, *, plain: bool = False
    ) -> None:
        """Cut rows, longest first, into batches within the budgets."""
        start = 0
        while start < len(rows):
            # The first row is the longest left, so it sets the width of the batch.
            width = padded(sum(piece.length for piece in rows[start]), 2**62)
            stop, n_scored = start, 0
            while stop < len(rows):
                more = sum(piece.n_scored(self.requests) for piece in rows[stop])
                is_full = (stop - start + 1) * width > self.limits.batch_tokens  # with padding
                is_short = sum(piece.length for piece in rows[stop]) < _FULLNESS * width
                has_logits = n_scored + more > self.limits.most_scored
                # A batch has at least one row, whatever the budgets.
                if stop > start and (is_full or is_short or has_logits):
                    break
                stop, n_scored = stop + 1, n_scored + more
            self._append(rows[start:stop], width, prefix, plain)
            start = stop

    def _append(
        self, rows: Sequence[list[_Piece]], width: int, prefix: int | None, plain: bool
    ) -> None:
        """Write pieces into rows of one width, and append the batch."""
        ids, positions, branches = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(3))
        groups = np.full((len(rows), width), -1, dtype=np.int64)  # -1: padding
        scored: list[Scored] = []
        for b, pieces in enumerate(rows):
            column = 0
            for g, piece in enumerate(pieces):
                span = slice(column, column + piece.length)
                ids[b, span], positions[b, span], branches[b, span] = piece.layout()
                groups[b, span] = g  # tokens of different pieces do not see each other
                cell = b * width + column  # of the piece's first token
                scored += [s._replace(cell=cell + s.cell) for s in piece.scored(self.requests)]
                column += piece.length
        layout = None if plain else (positions, groups, branches)
        self.batches.append(make_batch(ids, scored, self.limits.device, layout, prefix))
        self.request_of += [s.request for s in scored]


def run_packed(model: Any, plan: Plan, caches: Caches | None = None) -> LogLikelihoods:
    """Score every request of a plan with the current weights of the model.

    Args:
        model: A causal language model in eval mode whose attention takes a 4-D mask; unchanged.
        plan: Plan from `plan_packed`, on the model's device.
        caches: Caches of prefixes, computed with these very weights; missing ones are added.

    Returns:
        Log-likelihoods of the requests (R,), NaN or infinite where the model's are.
    """
    with torch.no_grad():
        listed = _prefix_caches(model, plan.prefixes, {} if caches is None else caches)
        return score_batches(plan, lambda batch: packed_logits(model, batch, listed))


def rehearse_packed(model: Any, plan: Plan, batches: int) -> None:
    """Run a few batches, evenly from first to last, and discard the results."""
    with torch.no_grad():
        caches = _prefix_caches(model, plan.prefixes, {})
        for index in spread_picks(len(plan.batches), batches):
            packed_logits(model, plan.batches[index], caches)


def _prefix_caches(model: Any, prefixes: Sequence[Prefix], caches: Caches) -> list[Cache]:
    """Return the caches of prefixes in order; compute and add missing ones."""
    for prefix in prefixes:
        if prefix.tokens not in caches:
            caches[prefix.tokens] = read_prefix(model, prefix.ids)
    return [caches[prefix.tokens] for prefix in prefixes]


def packed_logits(model: Any, batch: Batch, caches: Sequence[Cache]) -> Tensor:
    """Return the logits at the scored positions (S, V)."""
    if batch.layout is None:  # plain rows: causal attention is all the mask they need
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


def visible(layout: Layout, n_prefix: int) -> Bool[Tensor, "B 1 T K"]:
    """Return which keys each token sees: prefix, its group's trunk and its own branch, none later.

    Padding sees padding, so that no row of the mask is empty. There are K = P + T keys.
    """
    groups, branches = layout.groups, layout.branches
    n_rows, n_tokens = groups.shape
    # A key is in the trunk (branch 0) or in the token's own branch, (B, T queries, T keys) ...
    seen = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    # ... and in the token's group, ...
    seen &= groups[:, None, :] == groups[:, :, None]
    # ... and not later than the token; the prefix is visible to all.
    seen = torch.nn.functional.pad(seen.tril_(), (n_prefix, 0), value=True)
    return seen.view(n_rows, 1, n_tokens, n_prefix + n_tokens)


def attention_mask(model: Any, seen: Bool[Tensor, "B 1 T K"]) -> Float[Tensor, "B 1 T K"]:
    """Return the additive mask of a bool mask, in the model's dtype.

    SDPA also takes bools, but converts them in every layer.
    """
    added = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return added.masked_fill_(~seen, torch.finfo(model.dtype).min)
