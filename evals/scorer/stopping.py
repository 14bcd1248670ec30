"""When a greedy answer ends, and what its text is, by lm-eval's rules. Knows a tokenizer, no model.

The rules are those of ``HFLM.generate_until`` for one prompt at a time: an answer ends with an
end-of-sequence token of the model, as soon as the newest tokens spell a stop string, or at the
token limit. In a batch HFLM goes on until all rows have met the same stop string; what it writes
meanwhile is cut off again, so the texts are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tokens that HFLM looks back beyond a stop string's own (`MultiTokenEOSCriteria`): the model may
# cut the string otherwise than the tokenizer does.
_LOOKBACK = 2
# Settings of generation that a greedy loop may ignore: they shape random draws, name tokens that
# are handled here, or say how and not what is computed.
_IRRELEVANT = frozenset(
    [
        *("until", "max_gen_toks", "max_new_tokens", "repetition_penalty"),
        *("do_sample", "temperature", "top_p", "top_k", "top_h", "min_p", "typical_p"),
        *("epsilon_cutoff", "eta_cutoff", "renormalize_logits"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("use_cache", "cache_implementation", "transformers_version", "_from_model_config"),
    ]
)
_NEUTRAL_AT_ONE = frozenset(
    [
        *("num_beams", "num_return_sequences", "length_penalty", "guidance_scale"),
        "encoder_repetition_penalty",
    ]
)


@dataclass(frozen=True)
class Answer:
    """What a model wrote: lm-eval's text, every token, and whether the limit cut it short."""

    text: str
    tokens: tuple[int, ...]
    is_truncated: bool


@dataclass(frozen=True)
class StopRule:
    """How answers to requests of one kind end.

    Attributes:
        limit: Most tokens of an answer.
        until: Stop strings, the tokenizer's end-of-sequence text among them, in lm-eval's order.
        lookback: Newest tokens in which each of ``until`` is looked for.
        ends: Token ids that end an answer.
        repetition_penalty: Divides the logits of tokens seen before; 1 leaves them alone.
        unsupported: A setting that only lm-eval's own loop honours, as ``name = value``, or None.
    """

    limit: int
    until: tuple[str, ...]
    lookback: tuple[int, ...]
    ends: frozenset[int]
    repetition_penalty: float = 1.0
    unsupported: str | None = None

    def is_over(self, lm: Any, tokens: Sequence[int]) -> bool:
        """Whether an answer ends with the last of these tokens (at least one)."""
        return tokens[-1] in self.ends or len(tokens) >= self.limit or self._is_stopped(lm, tokens)

    def answer(self, lm: Any, tokens: Sequence[int]) -> Answer:
        """Make lm-eval's text of an answer that is over."""
        from lm_eval.models.utils import postprocess_generated_text

        text = postprocess_generated_text(lm.tok_decode(tokens), list(self.until), None)
        stopped = tokens[-1] in self.ends or self._is_stopped(lm, tokens)
        return Answer(text, tuple(tokens), is_truncated=not stopped)

    def cut(self, lm: Any, tokens: Sequence[int]) -> Sequence[int]:
        """Leave out what was written after an answer was over."""
        for n in range(1, len(tokens) + 1):
            if self.is_over(lm, tokens[:n]):
                return tokens[:n]
        return tokens

    def _is_stopped(self, lm: Any, tokens: Sequence[int]) -> bool:
        widest = lm.tok_decode(tokens[-max(self.lookback) :], skip_special_tokens=False)
        if not any(stop in widest for stop in self.until):
            return False
        return any(
            stop in lm.tok_decode(tokens[-n:], skip_special_tokens=False)
            for stop, n in zip(self.until, self.lookback, strict=True)
        )


def stop_rule(lm: Any, settings: Mapping[str, Any]) -> StopRule:
    """Read a request's ``generation_kwargs`` as HFLM does.

    Args:
        lm: An HFLM: its tokenizer, its default limit, its model's ``generation_config``.
        settings: As the task has them.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    until = tuple(handle_stop_sequences(asked["until"], eos=eos))
    known = lm.model.generation_config.to_diff_dict() | asked
    ends = known.get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    lengths = [len(lm.tokenizer.encode(stop, add_special_tokens=False)) for stop in until]
    return StopRule(
        limit=int(asked["max_gen_toks"]),
        until=until,
        lookback=tuple(n + _LOOKBACK for n in lengths),
        ends=frozenset(ends),
        repetition_penalty=float(known.get("repetition_penalty") or 1.0),
        unsupported=_unsupported(known, set(asked)),
    )


def _unsupported(known: Mapping[str, Any], asked: set[str]) -> str | None:
    """Name the first setting that changes greedy answers and is not handled here."""
    ignored = _IRRELEVANT if "max_length" in asked else _IRRELEVANT | {"max_length"}
    for name, value in sorted(known.items()):
        is_neutral = value in (None, False, 0, [], {}) or (name in _NEUTRAL_AT_ONE and value == 1)
        if name not in ignored and not is_neutral:
            return f"{name} = {value}"
    return None
