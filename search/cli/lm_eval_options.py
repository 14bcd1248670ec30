"""The commands `heterosis tasks` and `heterosis eval`: their options, and what a person reads.

Knows lm-eval's names for options; no torch until a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

ShotsOption = Annotated[
    int | None,
    typer.Option("--num-fewshot", "-f", metavar="N", help="Examples per prompt; default: TASK's."),
]
TemplateOption = Annotated[
    bool, typer.Option("--apply-chat-template", help="Render prompts by the model's template.")
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system-instruction", metavar="TEXT", help="Text before everything."),
]


class Turns(StrEnum):
    """Whether each few-shot example is a turn; lm-eval takes the same two words."""

    true = "true"
    false = "false"


TurnsOption = Annotated[
    Turns | None,
    typer.Option(
        "--fewshot-as-multiturn",
        metavar="BOOL",
        help="Whether each example is a turn: true, false; default: with a template.",
    ),
]


def _turns(word: Turns | None) -> bool | None:
    return None if word is None else word is Turns.true


def _announce_index(asked: Sequence[str]) -> None:
    """Say why nothing happens for a while, if lm-eval's index will be read."""
    from ...evals.tasks.task_files import is_path

    if any(not is_path(word) for word in asked):
        sys.stderr.write("reading lm-eval's index of tasks (5 to 25 s)\n")
