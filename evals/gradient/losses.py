"""Losses of items with gradients for the model's weights, in microbatches. Knows torch.

Each microbatch is one forward and one backward pass. If memory runs out, `shrink` halves the
microbatches, then recomputes activations layer by layer (gradient checkpointing, Chen et al.,
arXiv:1604.06174).

Shapes: n items.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..quiet import quiet
from ..scorer.scorer import Scorer
from ..scorer.scoring_paths import LikelihoodRequests
from ..scores.terms import Term
from .items import Answers, ItemKey, SmoothItem, smooth_items

MICROBATCH = 4
"""Part of the scorer's tokens per forward pass that a backward pass gets: it keeps activations."""


@dataclass
class LossReport:
    """Losses of some items.

    Attributes:
        losses: Term -> loss of each of its items, in the order given (n).
        right: Term -> whether its metric, under teacher forcing, counts each item (n).
        n_tokens: Tokens read by forward passes.
    """

    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    n_tokens: int = 0


class SmoothLosses:
    """Smooth losses of a split's items with the current weights of the scorer's model.

    Args:
        scorer: Scorer of the tasks; its batches and its path are used.
        split: Name of the split.
        terms: Terms of the objective.
        answers: Right answers of parents (`smooth_items`).

    Attributes:
        items: Items with a smooth twin, by task and row.
        reasons: Term -> why it, or some of its items, have none.
        most_tokens: Most tokens of a microbatch, about; at least one item.
        is_checkpointing: Whether activations are recomputed.
    """

    def __init__(
        self,
        scorer: Scorer,
        split: str,
        terms: Sequence[Term],
        answers: Answers | None = None,
    ) -> None:
        """Encode every item; see the class."""
        self._scorer = scorer
        with quiet():
            listed, self.reasons = smooth_items(scorer, split, terms, answers or {})
        self.items: Mapping[ItemKey, SmoothItem] = {item.key: item for item in listed}
        self.most_tokens = max(scorer.limits.batch_tokens // MICROBATCH, 1)
        self.is_checkpointing = False

    def backward(self, keys: Sequence[ItemKey], weights: Mapping[str, float]) -> LossReport:
        """Add the gradient of the weighted loss of some items to the parameters.

        The loss is the sum over terms of weight times mean loss of the term's items.

        Args:
            keys: Keys of `items`.
            weights: Term -> weight; a missing one is 0.

        Raises:
            torch.OutOfMemoryError: If memory runs out; gradients are then incomplete. `shrink`.
        """
        counts = Counter(term for key in keys for term in self.items[key].twins)
        shares = {term: weights.get(term, 0.0) / count for term, count in counts.items()}
        report = LossReport()
        with _checkpointing(self._scorer.model, self.is_checkpointing):
            for batch in self._microbatches(keys):
                with torch.enable_grad():
                    total = self._add(batch, shares, report)
                if total is not None:
                    total.backward()
        return report

    @torch.no_grad()
    def evaluate(self, keys: Sequence[ItemKey]) -> LossReport:
        """Return the losses of some items, without gradients."""
        report = LossReport()
        for batch in self._microbatches(keys):
            self._add(batch, {}, report)
        return report

    def shrink(self) -> bool:
        """Use less memory from now on; return False if nothing more can be done."""
        longest = max((item.n_tokens for item in self.items.values()), default=0)
        if self.most_tokens > longest:
            self.most_tokens //= 2
            return True
        if not self.is_checkpointing and _checkpointed_layers(self._scorer.model):
            self.is_checkpointing = True
            return True
        return False

    def _microbatches(self, keys: Sequence[ItemKey]) -> Iterator[list[SmoothItem]]:
        batch, tokens = [], 0
        for item in (self.items[key] for key in keys):
            if batch and tokens + item.n_tokens > self.most_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(item)
            tokens += item.n_tokens
        if batch:
            yield batch

    def _add(
        self, batch: Sequence[SmoothItem], shares: Mapping[str, float], report: LossReport
    ) -> Tensor | None:
        """Score a microbatch, add it to the report, and return its part of the loss."""
        requests = [request for item in batch for request in item.requests]
        planned = LikelihoodRequests(requests, [0] * len(requests), self._scorer.limits, {})
        scored = planned.differentiable(self._scorer.path, self._scorer.model)
        lls, misses = (numbers.cpu() for numbers in scored)  # twins are scalars: one wait for all
        parts, values, start = [], [], 0
        for item in batch:
            own = slice(start, start := start + len(item.requests))
            answers = _by_answer(lls[own], item), _by_answer(misses[own], item)
            for term, twin in item.twins.items():
                loss = twin.loss(answers[0])
                values.append((term, loss.detach(), twin.is_right(*answers)))
                if shares.get(term):
                    parts.append(shares[term] * loss)
        for term, loss, is_right in values:
            report.losses[term].append(float(loss))
            report.right[term].append(is_right)
        report.n_tokens += sum(item.n_tokens for item in batch)
        return torch.stack(parts).sum() if parts else None


def _by_answer(numbers: Tensor, item: SmoothItem) -> Tensor:
    """Return the sum over the windows of each answer."""
    owner = torch.tensor(item.owner)
    return numbers.new_zeros(max(item.owner) + 1).index_add(0, owner, numbers)


def _checkpointed_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


class _checkpointing:  # noqa: N801 - a context manager
    """Recompute the activations of a model's layers in the backward pass.

    transformers does so in training mode only; here only the layers' own flag says so, their
    sub-modules (dropout) stay in eval mode.
    """

    def __init__(self, model: Any, is_on: bool) -> None:
        self._layers = _checkpointed_layers(model) if is_on else []

    def __enter__(self) -> None:
        for layer in self._layers:
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.gradient_checkpointing = layer.training = False
