"""Audit generated answers item by item: truncated, unparsed, repetitive."""

from collections.abc import Iterable, Sequence
from typing import Any

from .stopping import Answer

# Length of the sequences whose repetition counts, tokens (Welleck et al., as below).
_N_GRAM = 4


def audit_item(
    answer: Answer, filtered: Any, fallbacks: Iterable[str]
) -> tuple[float, float, float, float]:
    """Audit columns of one item: truncated, no_answer, length, repetition.

    Args:
        answer: As generated.
        filtered: What the task's filter made of it: a text, or several.
        fallbacks: From `fallbacks`.
    """
    return (
        float(answer.is_truncated),
        float(_is_no_answer(filtered, frozenset(fallbacks))),
        float(len(answer.tokens)),
        repeated_share(answer.tokens),
    )


def _is_no_answer(filtered: Any, fallbacks: frozenset[str]) -> bool:
    """Whether a filtered response is empty, or what a filter gives when nothing matches."""
    if isinstance(filtered, list | tuple):
        return all(_is_no_answer(one, fallbacks) for one in filtered)
    text = "" if filtered is None else str(filtered).strip()
    return not text or text in fallbacks


def fallbacks(task: Any, filter_name: str) -> frozenset[str]:
    """Texts that a task's filter gives where it finds no answer, such as ``[invalid]``."""
    ensembles = (e for e in task._filters if e.name == filter_name)
    steps = (make() for ensemble in ensembles for make in ensemble.filters)
    given = (getattr(step, "fallback", None) for step in steps)
    texts: set[str] = set()
    for fallback in given:
        texts |= set(map(str, fallback if isinstance(fallback, list) else [fallback]))
    return frozenset(texts - {"None"})


def repeated_share(tokens: Sequence[int], n: int = _N_GRAM) -> float:
    """Share of an answer's n-grams that stood in it before, in [0, 1); 0 below n tokens.

    Source:
        seq-rep-n of Welleck et al., arXiv:1908.04319, Eq. 10: 1 - unique n-grams / n-grams.
    """
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
