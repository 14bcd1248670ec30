"""The command `heterosis chat`: talk to a candidate on a terminal, or answer one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .common import ModelDeviceOption, StudyArgument, quieten_libraries

if TYPE_CHECKING:
    from ..models.chat import Conversation


def chat(
    study: StudyArgument,
    trial: Annotated[
        int | None, typer.Argument(metavar="TRIAL", help="Trial number; default: the winner.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this prompt and exit.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest answer, in tokens; default: 256, or what is left of the context.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy.")
    ] = 0.0,
    device: ModelDeviceOption = "auto",
) -> None:
    """Chat with a candidate, merged in memory; STUDY may also be a model directory.

    Ctrl-C stops an answer, Ctrl-D or /exit ends the chat, /clear starts a new conversation.
    Without a terminal, standard input is one prompt.
    """
    quieten_libraries()
    from ..models.chat import ChatSettings, Conversation
    from ..models.source import open_source

    source = open_source(str(study) if trial is None else f"{study}:{trial}", device=device)
    settings = ChatSettings(system, max_new_tokens, temperature)
    conversation = Conversation(source.load(), source.tokenizer, settings)
    if prompt is None and sys.stdin.isatty():
        _chat(conversation, source.name)
        return
    conversation.reply(sys.stdin.read() if prompt is None else prompt, _write)
    _write("\n")


def _write(text: str) -> None:
    typer.echo(text, nl=False)


def _chat(conversation: Conversation, name: str) -> None:
    """Answer turn by turn until the user ends the chat."""
    kind = "" if conversation.has_template else " (no chat template: it completes your text)"
    typer.echo(f"{name}{kind}; Ctrl-D or /exit ends, /clear starts anew")
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
            conversation.clear()
        elif text.strip():
            _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    try:
        conversation.reply(text, _write)
    except ValueError as error:
        _write(str(error))
    _write("\n")
