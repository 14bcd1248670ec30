"""What a person does with a finished study: the commands `dashboard`, `chat` and `reproduce`.

Their options, and what a person reads; no torch until a command needs it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .common import StudyArgument, console, quieten_libraries, say

if TYPE_CHECKING:
    from ..models.chat import Conversation


def chat(
    study: StudyArgument,
    trial: Annotated[
        int | None, typer.Argument(metavar="[TRIAL]", help="Trial; default: the winner.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this once, and end.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Text before the first turn.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: the likeliest token each time.")
    ] = 0.0,
    device: Annotated[
        str, typer.Option("--device", help="auto (as the study says), cpu, cuda, cuda:1.")
    ] = "auto",
) -> None:
    """Talk to a candidate, merged again in memory; STUDY may also be a model's directory.

    Ctrl-C ends an answer, Ctrl-D or /exit the chat, /clear forgets what was said. Without a
    terminal, all of standard input is one prompt.
    """
    quieten_libraries()
    from ..models.chat import ChatSettings, Conversation
    from ..models.source import open_source

    source = open_source(str(study) if trial is None else f"{study}:{trial}", device=device)
    settings = ChatSettings(system, max_new_tokens, temperature)
    talk = Conversation(source.load(), source.tokenizer, settings)
    if prompt is None and sys.stdin.isatty():
        _talk(talk, source.name)
        return
    talk.reply(sys.stdin.read() if prompt is None else prompt, _write)
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _talk(talk: Conversation, name: str) -> None:
    """Turn by turn, until the person ends it."""
    kind = "" if talk.has_template else " (no chat template: it completes what you write)"
    say(console(), f"{name}{kind}; Ctrl-D or /exit ends, /clear forgets")
    while True:
        try:
            text = input("> ")
        except KeyboardInterrupt:
            _write("\n")
            continue
        except EOFError:
            _write("\n")
            return
        if text.strip() == "/exit":
            return
        if text.strip() == "/clear":
            talk.clear()
        elif text.strip():
            _answer(talk, text)


def _answer(talk: Conversation, text: str) -> None:
    try:
        talk.reply(text, _write)
    except ValueError as error:
        _write(str(error))
    _write("\n")
