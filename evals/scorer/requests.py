"""Encode lm-eval requests as token ids, by lm-eval's own rules. Knows HFLM; runs no model."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..tasks.task_files import TaskError
from .batches import Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


def encode(lm: Any, instance: "Instance") -> list[Request]:
    """Encode one lm-eval request; a rolling one has several windows, a generation none.

    Args:
        lm: An HFLM, for its tokenizer and its rules on BOS, blanks and windows.
        instance: A ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until`` request.

    Raises:
        TaskError: If HFLM cannot score it: an empty text, or one too long for the model.
    """
    if instance.request_type == "generate_until":
        return []
    if instance.request_type == "loglikelihood_rolling":
        pairs = list(_windows(lm, instance.args[0]))
    else:
        pairs = [_pair(lm, *instance.args)]
    for context, continuation in pairs:
        _refuse_unscorable(lm, instance, context, continuation)
    return [Request(tuple(context), tuple(continuation)) for context, continuation in pairs]


def _pair(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode like ``TemplateLM.loglikelihood`` of lm-eval, requests without context included."""
    if context != "":
        return lm._encode_pair(context, continuation)
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    if tokens and tokens[0] == lm.prefix_token_id:
        return tokens[:1], tokens[1:]
    return [lm.prefix_token_id], tokens


def _windows(lm: Any, text: str) -> Iterable[tuple[list[int], list[int]]]:
    """Return the disjoint windows of ``HFLM.loglikelihood_rolling``."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    windows = get_rolling_token_windows(
        token_list=lm.tok_encode(text),
        prefix_token=lm.prefix_token_id,
        max_seq_len=lm.max_length,
        context_len=1,
    )
    return map(make_disjoint_window, windows)


def _refuse_unscorable(
    lm: Any, instance: "Instance", context: Sequence[int], continuation: Sequence[int]
) -> None:
    """Raise TaskError where an assertion of HFLM would fail."""
    where = f"task '{instance.task_name}', doc {instance.doc_id}"
    if not context or not continuation:
        part = "continuation" if context else "context"
        raise TaskError(
            f"{where}: the {part} of {instance.args!r} has no token of its own with this "
            "tokenizer; prompts must not end with a blank, and answers must not be empty"
        )
    if len(continuation) > lm.max_length:
        raise TaskError(
            f"{where}: a continuation of {len(continuation)} tokens is longer than the model's "
            f"{lm.max_length}; shorten it or leave the document out"
        )
