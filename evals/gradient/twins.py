"""Smooth twins: for each term of an objective, a loss of one item that follows its metric.

A metric of one item is 0 or 1, without a slope. Its twin is a function of the log-likelihoods of
the item's answers that falls as the metric rises: the cross-entropy over the choices of a question,
the negative log-likelihood of a text. Entropy needs no labels but is the wrong loss for language
models. Knows log-likelihoods; knows no model.

Shapes: C choices of a question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..scores.term_columns import METRIC, TermColumn
from ..tasks.tasks import FrozenTask

NORMALISED = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""Metrics that divide a choice's log-likelihood by a length of its text, as lm-eval does."""
MUTUAL_INFORMATION = "acc_mutual_info"


@dataclass(frozen=True)
class Twin:
    """The twin of one term for one item.

    Attributes:
        column: Column of the term.
        gold: Indices of the right choices; empty: the item is one text.
        lengths: Length of each choice by which its log-likelihood is divided (C); empty: none.
        divisor: Number by which a text's log-likelihood is divided (words or bytes).
        is_relative: Whether the second half of the log-likelihoods is subtracted from the first.
    """

    column: TermColumn
    gold: tuple[int, ...] = ()
    lengths: tuple[float, ...] = ()
    divisor: float = 1.0
    is_relative: bool = False

    def loss(self, lls: Float[Tensor, " C"]) -> Float[Tensor, ""]:
        """Return the loss of an item, nats (per unit of length where the metric is normalised).

        Args:
            lls: Log-likelihood of each request of the item.
        """
        if not self.gold:
            return -lls.sum() / self.divisor
        scores = self._scores(lls)
        right = torch.logsumexp(scores[list(self.gold)], dim=0)
        if self.column == "log_likelihood":
            return -right
        others = [i for i in range(scores.numel()) if i not in self.gold]
        if self.column == "margin":
            return torch.logsumexp(scores[others], dim=0) - right
        return torch.logsumexp(scores, dim=0) - right

    def is_right(self, lls: Float[Tensor, " C"], misses: Float[Tensor, " C"]) -> bool:
        """Tell whether the metric counts the item: best choice, or a text without a missed token.

        Args:
            lls: Log-likelihood of each request of the item.
            misses: Tokens of each request that greedy decoding would miss.
        """
        if not self.gold:
            return bool(misses.sum() == 0)
        return int(self._scores(lls).argmax()) in self.gold

    def _scores(self, lls: Tensor) -> Tensor:
        if self.is_relative:
            conditional, alone = lls.chunk(2)
            return conditional - alone
        return lls / lls.new_tensor(self.lengths) if self.lengths else lls


def choice_twin(task: FrozenTask, row: int, column: TermColumn, n_requests: int) -> Twin:
    """Return the twin of a multiple-choice document.

    Args:
        task: The task.
        row: Row of its data; it must have a right and a wrong choice.
        column: Column of the term.
        n_requests: Log-likelihoods of the document.
    """
    gold, n_choices = task.prompts.gold[row], task.prompts.n_choices[row]
    if column != METRIC:
        return Twin(column, gold)
    if task.metric.name == MUTUAL_INFORMATION and n_requests == 2 * n_choices:
        return Twin(column, gold, is_relative=True)
    length = NORMALISED.get(task.metric.name)
    choices: Sequence[str] = task.task.doc_to_choice(task.prompts.instances[row][0].doc)  # pyright: ignore
    return Twin(column, gold, tuple(float(length(c)) for c in choices) if length else ())
