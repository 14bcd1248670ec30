"""Audit of one generated answer: truncated, no answer, length, repetition. Knows lm-eval's filters.

`heterosis.evals.scores.audit` summarises these columns per task.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .stopping import Answer

# Length of the counted n-grams, tokens (Welleck et al., as below).
_N_GRAM = 4
AuditColumns = tuple[float, float, float, float]


def audit_item(answer: Answer | None, filtered: Any, fallbacks: Iterable[str]) -> AuditColumns:
    """Return the audit columns of one item: truncated, no_answer, length, repetition.

    Args:
        answer: Generated answer; None if nothing was generated: all nan.
        filtered: Output of the task's filter: a text, or several.
        fallbacks: Texts from `fallbacks`.
    """
    if answer is None:
        return math.nan, math.nan, math.nan, math.nan
    return (
        float(answer.is_truncated),
        float(_is_no_answer(filtered, frozenset(fallbacks))),
        float(len(answer.tokens)),
        repeated_share(answer.tokens),
    )


def _is_no_answer(filtered: Any, fallbacks: frozenset[str]) -> bool:
    """Tell whether a filtered response is empty, or a filter's output without a match."""
    if isinstance(filtered, list | tuple):
        return all(_is_no_answer(one, fallbacks) for one in filtered)
    text = "" if filtered is None else str(filtered).strip()
    return not text or text in fallbacks


def fallbacks(task: Any, filter_name: str) -> frozenset[str]:
    """Return the texts that a task's filter gives without a match, such as ``[invalid]``."""
    ensembles = (e for e in task._filters if e.name == filter_name)
    steps = (make() for ensemble in ensembles for make in ensemble.filters)
    texts: set[str] = set()
    for step in steps:
        fallback = getattr(step, "fallback", None)
        texts |= set(map(str, fallback if isinstance(fallback, list) else [fallback]))
    return frozenset(texts - {"None"})


def repeated_share(tokens: Sequence[int], n: int = _N_GRAM) -> float:
    """Return the share of n-grams that repeat earlier ones, in [0, 1); 0 below n tokens.

    Source:
        seq-rep-n of Welleck et al., arXiv:1908.04319, Eq. 10: 1 - unique n-grams / n-grams.
    """
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
