"""`heterosis chat`: a conversation with a candidate, merged in memory; nothing is written.

Knows transformers' generation; model and tokenizer come from source.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextStreamer

REPLY = 256
"""Default largest length of one reply, in tokens: a long paragraph."""


@dataclass(frozen=True)
class ChatSettings:
    """Settings of generation.

    Attributes:
        system: System text; needs a chat template.
        max_new_tokens: Largest length of one reply; default: `REPLY`, or what is left of the
            model's context.
        temperature: 0 is greedy decoding.
    """

    system: str | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0


class Conversation:
    """A conversation with one model: by its chat template, or plain completion without one.

    Args:
        model: A causal language model, in eval mode.
        tokenizer: Its tokenizer.
        settings: Settings of generation.

    Raises:
        ValueError: If a system text is given and the model has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: ChatSettings) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        if settings.system is not None and not self.has_template:
            raise ValueError(
                "a system text needs a chat template, and this model has none; leave out --system "
                "and write the text before the prompt"
            )
        self._turns: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget all turns."""
        system = self._settings.system
        self._turns = [{"role": "system", "content": system}] if system is not None else []

    def reply(self, text: str, write: Callable[[str], None]) -> str:
        """Answer one turn, and remember it if there is a chat template.

        Args:
            text: The user's text.
            write: Called with each piece of the answer.

        Returns:
            The answer; after a KeyboardInterrupt the part so far.

        Raises:
            ValueError: If prompt and answer exceed the model's context.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        ids = self._encoded(turns, text)
        length = self._reply_length(ids.shape[1])
        streamer = _Streamer(self._tokenizer, write)
        try:
            self._generate(ids, length, streamer)
        except KeyboardInterrupt:
            write(" [stopped]")
        answer = "".join(streamer.pieces)
        if self.has_template:
            self._turns = [*turns, {"role": "assistant", "content": answer}]
        return answer

    def _encoded(self, turns: list[dict[str, str]], text: str) -> torch.Tensor:
        """Token ids of the prompt (1, n)."""
        if self.has_template:
            text = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
        encoded = self._tokenizer(
            text, return_tensors="pt", add_special_tokens=not self.has_template
        )
        return encoded.input_ids.to(self._model.device)

    def _reply_length(self, prompt: int) -> int:
        """Return the largest length of the reply, from the length of the prompt; in tokens."""
        asked = self._settings.max_new_tokens
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is None:
            return asked or REPLY
        if prompt + (asked or 1) <= limit:
            return asked or min(REPLY, limit - prompt)
        remedies = ["shorten the prompt"]
        if any(turn["role"] != "system" for turn in self._turns):
            remedies.append("use /clear to forget earlier turns")
        if asked is not None:
            remedies.append("use a smaller --max-new-tokens")
        raise ValueError(
            f"prompt and answer must fit the model's context of {limit} tokens, got {prompt} and "
            f"{asked or 1}; {' or '.join(remedies)}"
        )

    def _generate(self, ids: torch.Tensor, length: int, streamer: TextStreamer) -> None:
        hot = self._settings.temperature > 0
        end = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=streamer,
                max_new_tokens=length,
                do_sample=hot,
                temperature=self._settings.temperature if hot else None,
                top_p=None,
                top_k=None,
                eos_token_id=self._model.generation_config.eos_token_id or end,
                pad_token_id=end if pad is None else pad,
            )


class _Streamer(TextStreamer):
    """Streams complete words of the answer, and keeps them."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece."""
        del stream_end
        self.pieces.append(text)
        self._write(text)
