"""lm-eval requests to token ids, by lm-eval's own rules. Knows HFLM's encoding, runs no model."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..tasks.task_files import TaskError
from .batches import Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


def encode(lm: Any, instance: "Instance") -> list[Request]:
    """Token ids of one lm-eval request; several windows for a rolling one, none for generation.

    Args:
        lm: An HFLM, for its tokenizer and its rules on BOS, blanks and windows.
        instance: Of type ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.

    Raises:
        TaskError: If HFLM could not score it: an empty text, or one longer than the model takes.
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
    """Encode as ``TemplateLM.loglikelihood`` of lm-eval does, context-free requests included."""
    if context != "":
        return lm._encode_pair(context, continuation)
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    if tokens and tokens[0] == lm.prefix_token_id:
        return tokens[:1], tokens[1:]
    return [lm.prefix_token_id], tokens


def _windows(lm: Any, text: str) -> Iterable[tuple[list[int], list[int]]]:
    """Disjoint windows as ``HFLM.loglikelihood_rolling`` makes them."""
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
    """Raise TaskError where HFLM would meet an assertion."""
    where = f"task '{instance.task_name}', doc {instance.doc_id}"
    if not context or not continuation:
        part = "continuation" if context else "context"
        raise TaskError(
            f"{where}: the {part} of {instance.args!r} gives no token of its own with this "
            "tokenizer; prompts end without a blank and answers are not empty"
        )
    if len(continuation) > lm.max_length:
        raise TaskError(
            f"{where}: a continuation of {len(continuation)} tokens is longer than the model's "
            f"{lm.max_length}; shorten it or leave the document out"
        )
