"""What a person does with a finished study: the commands `dashboard`, `chat` and `reproduce`.

Their options, and what a person reads; no torch until a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import FAILED, console, fail, quieten_libraries, quieten_transformers, say

if TYPE_CHECKING:
    from .chat import Conversation

StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="A study's results folder, as results/NAME.")
]


def dashboard(
    study: StudyArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port.")] = 8080,
) -> None:
    """Open a study in optuna-dashboard, also while its search runs (pip: heterosis[dashboard]).

    A copy of the journal is served, with a note on every trial; the study itself is only read.
    """
    quieten_libraries()
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ValueError(
            "`heterosis dashboard` needs optuna-dashboard: pip install 'heterosis[dashboard]'"
        ) from None
    from .dashboard import mirrored

    screen = console()
    with mirrored(study) as mirror:
        say(screen, f"{study} is at http://{host}:{port}/dashboard/ (Ctrl-C ends)")
        run_server(mirror.storage, host=host, port=port)


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
    from .chat import ChatSettings, Conversation
    from .model_source import open_source

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


def reproduce(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="recipe.json, or the directory of an export.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the model there.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=PATH", help="Where base or a parent is now."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where tensors are merged: cpu, cuda, cuda:1.")
    ] = "cpu",
    max_shard_size: Annotated[
        str, typer.Option(help="Largest safetensors file, as `5GB`.")
    ] = "5GB",
    download: Annotated[
        bool, typer.Option("--download", help="Fetch models from the hub that are not here.")
    ] = False,
) -> None:
    """Make a merge again from its recipe.json, and compare every tensor's SHA-256.

    Exit code 0: all are equal; 1: some differ. Without --out nothing is written.
    """
    quieten_transformers()
    from ..merge.writer import check_goal
    from .merging import describe, shown
    from .reproduce import open_reproduction
    from .reproduce import reproduce as make_again

    if out is not None:
        check_goal(out)
    screen = console()
    merge, record = open_reproduction(recipe, _places(model or ()), download=download)
    for line in describe(merge):
        say(screen, line)
    with shown(screen) as on_tensor:
        done = make_again(
            merge, record, out, device=device, max_shard_size=max_shard_size, on_tensor=on_tensor
        )
    if out is not None:
        say(screen, f"wrote {out}")
    if done.differing:
        versions = "; ".join(done.other_versions) or "packages are of the same versions"
        fail(
            f"{len(done.differing)} of {len(record.weights)} tensors differ from what "
            f"{merge.source} states: {_few(done.differing)} ({versions})",
            FAILED,
        )
    say(screen, f"reproduced: all {len(record.weights)} tensors have the SHA-256 that it states")


def _places(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, sign, path in pairs:
        if not (name and sign and path):
            raise ValueError(
                f"`--model` must be NAME=PATH, as base=models/base, got `{name}{sign}{path}`"
            )
    return {name: path for name, _, path in pairs}


def _few(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
