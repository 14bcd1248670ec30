"""Chat options of a study, and the chat template. Knows tokenizers; knows no model.

The options have the names and meanings of lm-eval's. One template, that of the study's tokenizer,
renders the prompts of every candidate.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..scores.fingerprint import digest
from .task_files import TaskError


@dataclass(frozen=True)
class ChatOptions:
    """Options of prompts for models tuned for conversation.

    Args:
        apply_chat_template: Whether the tokenizer's chat template renders the prompts.
        system_instruction: Text before the prompt; the system turn of a template.
        fewshot_as_multiturn: Whether each few-shot example is a separate turn; None: as
            ``apply_chat_template``, like lm-eval.

    Raises:
        ValueError: If few-shot turns are asked for without a template.
    """

    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None

    def __post_init__(self) -> None:
        """Refuse turns without a template."""
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError(
                "`fewshot_as_multiturn: true` needs `apply_chat_template: true`, got false; set "
                "both, or neither"
            )

    @property
    def as_multiturn(self) -> bool:
        """Whether few-shot examples are separate turns."""
        if self.fewshot_as_multiturn is None:
            return self.apply_chat_template
        return self.fewshot_as_multiturn


class Chat:
    """Chat options with the template that renders all prompts of a study.

    Args:
        options: Options of the study; None: plain prompts.
        tokenizer: Tokenizer of the study; needed only for a template.

    Attributes:
        options: Options as given.
        template: Text of the template; None if prompts are plain.

    Raises:
        TaskError: If a template is asked for and the tokenizer has none.
    """

    def __init__(self, options: ChatOptions | None = None, tokenizer: Any = None) -> None:
        """Read the template; see the class."""
        self.options = options or ChatOptions()
        self._tokenizer, self.template = tokenizer, None
        if self.options.apply_chat_template:
            self.template = getattr(tokenizer, "chat_template", None)
            if not self.template:
                raise TaskError(
                    "`apply_chat_template: true` needs a tokenizer with a chat template, and the "
                    "base's has none; copy `chat_template.jinja` of a parent into the base's "
                    "directory, or set it to false"
                )

    @property
    def digest(self) -> str:
        """Digest of options and template; ``none`` if prompts are plain."""
        if self.options == ChatOptions():
            return "none"
        return digest([self.template, self.options.system_instruction, self.options.as_multiturn])

    @property
    def template_sha256(self) -> str | None:
        """SHA-256 of the template's text, as ``sha256sum chat_template.jinja`` prints it."""
        text = self.template
        return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None

    @property
    def render(self) -> Callable[..., str] | None:
        """Renderer of messages, as ``HFLM.apply_chat_template``; None without a template."""
        return self._render if self.template else None

    def _render(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            return self._apply(history, add_generation_prompt)
        except TemplateError:  # some templates refuse a system role; lm-eval drops it then
            rest = [message for message in history if message["role"] != "system"]
            return self._apply(rest, add_generation_prompt)

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
