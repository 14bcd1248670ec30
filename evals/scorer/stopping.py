"""End and text of greedy answers, by lm-eval's rules. Knows a tokenizer; knows no model.

The rules are those of ``HFLM.generate_until`` for a single prompt: an answer ends with an
end-of-sequence token, when the newest tokens spell a stop string, or at the token limit. In a
batch, HFLM continues until every row has ended and cuts the rest off, so the texts are equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tokens that HFLM looks back beyond the length of a stop string (`MultiTokenEOSCriteria`): a model
# may split the string into other tokens than the tokenizer.
_LOOKBACK = 2
# Generation settings that a greedy loop can ignore: they are about sampling, are handled here, or
# do not change the answer.
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
    """A generated answer: lm-eval's text, all tokens, and whether the token limit cut it off."""

    text: str
    tokens: tuple[int, ...]
    is_truncated: bool


@dataclass(frozen=True)
class StopRule:
    """Rules for the end of answers to requests with the same settings.

    Attributes:
        limit: Most tokens of an answer.
        until: Stop strings in lm-eval's order, the tokenizer's end-of-sequence text included.
        lookback: Number of newest tokens that are searched for each of ``until``.
        ends: Token ids that end an answer.
        repetition_penalty: Divisor of the logits of tokens seen before; 1: none.
        unsupported: Setting that only lm-eval's loop supports, as ``name = value``; None: none.
    """

    limit: int
    until: tuple[str, ...]
    lookback: tuple[int, ...]
    ends: frozenset[int]
    repetition_penalty: float = 1.0
    unsupported: str | None = None

    def is_over(self, lm: Any, tokens: Sequence[int]) -> bool:
        """Tell whether an answer ends with the last of these tokens (at least one)."""
        return tokens[-1] in self.ends or len(tokens) >= self.limit or self._is_stopped(lm, tokens)

    def answer(self, lm: Any, tokens: Sequence[int]) -> Answer:
        """Return a finished answer with lm-eval's text."""
        from lm_eval.models.utils import postprocess_generated_text

        text = postprocess_generated_text(lm.tok_decode(tokens), list(self.until), None)
        stopped = tokens[-1] in self.ends or self._is_stopped(lm, tokens)
        return Answer(text, tuple(tokens), is_truncated=not stopped)

    def cut(self, lm: Any, tokens: Sequence[int]) -> Sequence[int]:
        """Cut off the tokens after the end of an answer."""
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
    """Return the rule of a request's ``generation_kwargs``, as HFLM reads them.

    Args:
        lm: An HFLM, for its tokenizer, default limit and model's ``generation_config``.
        settings: The request's ``generation_kwargs``.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), lm.max_gen_toks))
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    until = tuple(handle_stop_sequences(asked["until"], eos=eos))
    merged = lm.model.generation_config.to_diff_dict() | asked
    ends = merged.get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    lengths = [len(lm.tokenizer.encode(stop, add_special_tokens=False)) for stop in until]
    return StopRule(
        limit=int(asked["max_gen_toks"]),
        until=until,
        lookback=tuple(n + _LOOKBACK for n in lengths),
        ends=frozenset(ends),
        repetition_penalty=float(merged.get("repetition_penalty") or 1.0),
        unsupported=_unsupported(merged, set(asked)),
    )


def _unsupported(settings: Mapping[str, Any], asked: set[str]) -> str | None:
    """Return the first setting that changes greedy answers and is not handled here."""
    ignored = _IRRELEVANT if "max_length" in asked else _IRRELEVANT | {"max_length"}
    for name, value in sorted(settings.items()):
        is_neutral = value in (None, False, 0, [], {}) or (name in _NEUTRAL_AT_ONE and value == 1)
        if name not in ignored and not is_neutral:
            return f"{name} = {value}"
    return None
