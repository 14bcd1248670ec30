"""Exit codes, the console, and the arguments and options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class Turns(StrEnum):
    """lm-eval's two words for whether each few-shot example is a turn."""

    true = "true"
    false = "false"


CONFIG = typer.Argument(metavar="CONFIG", help="A search.yaml, its folder, or `quickstart`.")
OUT = typer.Option("--out", "-o", metavar="DIR", help="Model directory to write.")
StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="Results folder of a study, such as results/NAME.")
]
MaxShardSizeOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Largest safetensors file, such as `5GB`.")
]
MergeDeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="Where tensors are merged: cpu, cuda, cuda:1.")
]
ModelDeviceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="cpu, cuda, cuda:1; auto: the study's, or CUDA if available."
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Download models that are not in the local cache.")
]
FewShotOption = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot", "-f", metavar="N", help="Examples per prompt; default: the task's."
    ),
]
TemplateOption = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Render prompts with the model's chat template."),
]
SystemOption = Annotated[
    str | None,
    typer.Option(
        "--system-instruction", metavar="TEXT", help="System turn, or text before every prompt."
    ),
]
TurnsOption = Annotated[
    Turns | None,
    typer.Option(
        "--fewshot-as-multiturn",
        metavar="BOOL",
        help="Whether each example is a turn: true or false; default: true with a template.",
    ),
]


def console() -> Console:
    """Return the screen: the terminal's width, or 200 columns if the output is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(width=width)


def quieten_libraries() -> None:
    """Turn off the progress bars and banners of all libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    import optuna

    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    quieten_transformers()


def quieten_transformers() -> None:
    """Turn off the progress bars and banners of transformers, importing no other library."""
    import transformers

    from ...evals.quiet import quieten

    quieten()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def fail(message: str, code: int) -> NoReturn:
    """Print one line to stderr and exit."""
    typer.echo(f"heterosis: error: {message}", err=True)
    sys.exit(code)


def as_multiturn(word: Turns | None) -> bool | None:
    """Return the value of `--fewshot-as-multiturn`."""
    return None if word is None else word is Turns.true


def announce_index(tasks: Sequence[str]) -> None:
    """Announce the wait if lm-eval's index of tasks will be read."""
    from ...evals.tasks.task_files import is_path

    if any(not is_path(task) for task in tasks):
        typer.echo("reading lm-eval's index of tasks (5 to 25 s)", err=True)
