"""Greedy decoding in batches that are planned once: shared prefixes, and rows that leave early.

Knows torch, the caches of transformers and HFLM's encoding and stopping rules; knows no task. Texts
equal HFLM's; `heterosis.evals.scorer.generator` chooses between this loop and HFLM's own.

Legend: B rows of a batch, S suffix tokens of a batch's longest row, P tokens of the shared prefix,
V vocabulary.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..tasks.task_files import TaskError
from .packing import common_length
from .stopping import StopRule, stop_rule

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# Fewest tokens of a prefix that are worth a forward pass of their own.
_SHORTEST_PREFIX = 8
# Tokens written between two checks of the answers. A check waits for the device, which costs time
# on an accelerator only; tokens beyond an answer's end are cut off.
_STRIDE = {"cpu": 1}
_ACCELERATOR_STRIDE = 8


class NonFiniteLogit(RuntimeError):  # noqa: N818 - the caller adds the item's name
    """NaN or infinity as a model's largest logit; ``row`` is the index of the request."""

    def __init__(self, row: int, value: float) -> None:
        """Keep row and value."""
        super().__init__(f"logits must be finite, got {value} for request {row}")
        self.row, self.value = row, value


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts that are answered together.

    Attributes:
        rows: Index of each row's request (B,).
        ids: Suffix ids (B, S), left-padded with each row's first token.
        mask: 0 for padding, else 1 (B, S).
    """

    rows: tuple[int, ...]
    ids: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class PromptGroup:
    """Requests of one task with the same settings, which may share a prefix.

    Attributes:
        rule: Rule for the end of answers.
        prefix: Token ids with which all prompts begin (P,); may be empty.
        batches: Batches, longest prompts first.
    """

    rule: StopRule
    prefix: tuple[int, ...]
    batches: tuple[PromptBatch, ...]


def plan_groups(
    lm: Any, instances: "Sequence[Instance]", *, batch_size: int, shared: bool
) -> tuple[PromptGroup, ...]:
    """Encode prompts, find shared prefixes and make batches, once for all candidates.

    Args:
        lm: An HFLM, for its rules on BOS and truncation.
        instances: Requests of type ``generate_until``.
        batch_size: Rows per batch.
        shared: Whether prompts may share the keys and values of their common prefix.

    Raises:
        TaskError: If a prompt has no token.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for row, instance in enumerate(instances):
        key = (str(instance.task_name), repr(settings_of(instance)))
        groups.setdefault(key, []).append(row)
    window = attention_window(lm.model.config) if shared else 0
    return tuple(_plan_group(lm, instances, rows, batch_size, window) for rows in groups.values())


def settings_of(instance: "Instance") -> dict[str, Any]:
    """Return the ``generation_kwargs`` of a request."""
    _, settings = cast("tuple[str, dict[str, Any]]", instance.args)
    return settings


def _plan_group(
    lm: Any, instances: "Sequence[Instance]", rows: list[int], batch_size: int, window: float
) -> PromptGroup:
    """Plan the requests ``rows``, which have one task and the same settings."""
    rule = stop_rule(lm, settings_of(instances[rows[0]]))
    prompts = {row: encode_prompt(lm, instances[row], rule) for row in rows}
    # Padding is between prefix and suffix, where a sliding window would count it as tokens.
    fits = max(map(len, prompts.values())) + rule.limit <= window
    prefix = _common_prefix(list(prompts.values())) if fits else ()
    texts = {row: instances[row].args[0] for row in rows}
    rows = sorted(rows, key=lambda row: (-len(lm.tok_encode(texts[row])), texts[row]))  # as HFLM
    batches = (
        _make_batch(chunk, [prompts[row][len(prefix) :] for row in chunk], lm.device)
        for chunk in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
    )
    return PromptGroup(rule, prefix, tuple(batches))


def encode_prompt(lm: Any, instance: "Instance", rule: StopRule) -> tuple[int, ...]:
    """Return a prompt's token ids; the oldest are cut off to leave room for the answer."""
    room = lm.max_length - rule.limit
    ids, _ = lm.tok_batch_encode([instance.args[0]], left_truncate_len=room)
    if not ids.numel():
        raise TaskError(
            f"task '{instance.task_name}', doc {instance.doc_id}: the prompt must have a token, "
            f"got {instance.args[0]!r}; leave the document out"
        )
    return tuple(ids[0].long().tolist())


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the longest common prefix that leaves each prompt a token, if it is worth sharing."""
    length = min(common_length(prompts), min(map(len, prompts)) - 1)
    return prompts[0][:length] if length >= _SHORTEST_PREFIX and len(prompts) > 1 else ()


def _make_batch(
    rows: Sequence[int], prompts: Sequence[tuple[int, ...]], device: Any
) -> PromptBatch:
    """Left-pad the suffixes of some prompts and move them to the device."""
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = [(prompt[0],) * n + prompt for prompt, n in zip(prompts, padding, strict=True)]
    mask = [[0] * n + [1] * (width - n) for n in padding]
    return PromptBatch(
        tuple(rows), torch.tensor(ids, device=device), torch.tensor(mask, device=device)
    )


def attention_window(config: Any) -> float:
    """Return the tokens that the narrowest attention layer sees; infinite without a limit."""
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if (kinds and kinds <= {"full_attention"}) or getattr(config, "use_sliding_window", 1) is False:
        return float("inf")
    return min((w for w in widths if w), default=float("inf"))


def unusable_cache(model: Any) -> str | None:
    """Return why a model's cache cannot be copied and cut by rows; None if it can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "its forward takes no `past_key_values`"
    if getattr(model, "_is_stateful", False):
        return "its state is not keys and values"
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if others := kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        return f"its cache has layers of kind {sorted(kind.__name__ for kind in others)[0]}"
    return None


def run_group(lm: Any, group: PromptGroup) -> Iterator[tuple[int, list[int]]]:
    """Answer the requests of a group with the current weights of the model.

    Yields:
        The index of a request and the tokens of its answer, batch by batch.

    Raises:
        NonFiniteLogit: If a logit is NaN or infinite.
    """
    with torch.no_grad():
        prefix = _prefix_cache(lm, group.prefix)
        for batch in group.batches:
            answers = _Decoder(lm, group, batch, prefix).run()
            yield from zip(batch.rows, answers, strict=True)


def _prefix_cache(lm: Any, prefix: Sequence[int]) -> Any:
    """Return the keys and values of a prefix, for one row."""
    from transformers import DynamicCache

    cache = DynamicCache(config=lm.model.config)
    if prefix:
        ids = torch.tensor([list(prefix)], device=lm.device)
        lm.model(input_ids=ids, past_key_values=cache, use_cache=True, **_last_logit(lm.model))
    return cache


def _last_logit(model: Any) -> dict[str, int]:
    """Return the argument of forward that limits logits to the last column, if it has one."""
    takes = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if takes else {}


class _Decoder:
    """Greedy decoding of one batch: `run` repeats a step and a check until all answers have ended.

    Rows whose answer has ended leave the batch. ``_live`` maps the rows of all tensors, B at first
    and fewer later, to the rows of the batch.
    """

    def __init__(self, lm: Any, group: PromptGroup, batch: PromptBatch, prefix: Any) -> None:
        self._lm, self._rule, self._rows = lm, group.rule, batch.rows
        n_rows, n_prefix = len(batch.rows), len(group.prefix)
        self._live = list(range(n_rows))
        self._answers: list[list[int]] = [[] for _ in batch.rows]
        # The prefix was computed for one row; every row of the batch gets a copy of its cache.
        self._cache = copy.deepcopy(prefix)
        self._cache.batch_repeat_interleave(n_rows)
        # Input of the next step: the suffixes (B, S) at first, then the newest token (B, 1).
        self._ids = batch.ids
        # Positions skip the padding and continue those of the prefix.
        self._positions = (batch.mask.cumsum(-1) - 1).clamp(min=0) + n_prefix
        # The mask has room for the whole answer, (B, P + S + limit); `_width` columns are in use.
        self._width = n_prefix + batch.ids.shape[1]
        room = torch.ones(n_rows, self._width + group.rule.limit, dtype=torch.long)
        self._mask = room.to(batch.ids.device)
        self._mask[:, n_prefix : self._width] = batch.mask
        self._seen = first_seen(lm, group.rule, batch.ids, group.prefix)
        self._extra = _last_logit(lm.model)
        self._takes_positions = "position_ids" in inspect.signature(lm.model.forward).parameters
        self._stride = _STRIDE.get(batch.ids.device.type, _ACCELERATOR_STRIDE)

    def run(self) -> list[list[int]]:
        """Return the answers (B,), once all have ended."""
        n, pending = 0, []
        while self._live:
            pending.append(self._step())
            n += 1
            # Reading tokens waits for the device, so they are read a few steps at a time.
            if len(pending) == self._stride or n == self._rule.limit:
                self._check(pending)
                pending = []
        return self._answers

    def _step(self) -> tuple[Tensor, Tensor]:
        """Write one token per row; return the tokens and their logits, (B,) on the device."""
        # 1. Forward the new tokens; keys and values of all before are in the cache.
        positions = {"position_ids": self._positions} if self._takes_positions else {}
        logits = self._lm.model(
            input_ids=self._ids,
            attention_mask=self._mask[:, : self._width],
            past_key_values=self._cache,
            use_cache=True,
            **positions,
            **self._extra,
        ).logits[:, -1]
        # 2. Take the most likely token, after the repetition penalty.
        scores = penalised(logits.float(), self._seen, self._rule.repetition_penalty)
        best, tokens = scores.max(-1)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        # 3. It is the input of the next step, one position further.
        self._ids = tokens[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._width += 1
        return tokens, best

    def _check(self, pending: list[tuple[Tensor, Tensor]]) -> None:
        """Append new tokens to the answers, and drop rows whose answer has ended."""
        tokens = torch.stack(
            [token for token, _ in pending], dim=1
        ).tolist()  # waits for the device
        worst = torch.stack([best for _, best in pending], dim=1).abs().amax(1).tolist()
        keep = []
        for place, row in enumerate(self._live):
            if not worst[place] < float("inf"):  # NaN too
                raise NonFiniteLogit(self._rows[row], worst[place])
            if not self._extend(self._answers[row], tokens[place]):
                keep.append(place)
        if len(keep) < len(self._live):
            self._keep(keep)

    def _extend(self, answer: list[int], tokens: list[int]) -> bool:
        """Append tokens up to the end of an answer; tell whether it has ended."""
        for token in tokens:
            answer.append(token)
            if self._rule.is_over(self._lm, answer):
                return True
        return False

    def _keep(self, places: list[int]) -> None:
        """Keep some rows of all tensors, and drop the others."""
        self._live = [self._live[place] for place in places]
        if not places:
            return
        index = torch.tensor(places, device=self._ids.device)
        self._cache.batch_select_indices(index)
        self._ids, self._mask = self._ids[index], self._mask[index]
        self._positions = self._positions[index]
        self._seen = None if self._seen is None else self._seen[index]


def first_seen(lm: Any, rule: StopRule, ids: Tensor, prefix: Sequence[int] = ()) -> Tensor | None:
    """Return which tokens the prompts contain, bool (B, V); None without a repetition penalty."""
    if rule.repetition_penalty == 1.0:
        return None
    vocabulary = lm.model.config.get_text_config(decoder=True).vocab_size
    seen = torch.zeros(ids.shape[0], vocabulary, dtype=torch.bool, device=ids.device)
    seen[:, list(prefix)] = True
    return seen.scatter_(1, ids, True)


def penalised(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Return logits (B, V) with those of tokens seen (B, V) lowered.

    Source:
        Keskar et al., arXiv:1909.05858, Sec. 4.1.
    """
    if seen is None:
        return logits
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lowered, logits)
