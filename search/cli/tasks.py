"""The command `heterosis tasks`: which lm-eval tasks can run here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import console, quieten_libraries, say
from .lm_eval_options import (
    ShotsOption,
    SystemOption,
    TemplateOption,
    TurnsOption,
    _announce_index,
    _turns,
)

if TYPE_CHECKING:
    from ...evals.tasks.catalogue import Listed
    from ...evals.tasks.chat import Chat


class ListFormat(StrEnum):
    """How a list of tasks is written."""

    table = "table"
    json = "json"


def list_or_show_tasks(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...",
            help="Part of a name, a pattern as `mmlu_*`, a task's YAML file, or a folder of them.",
        ),
    ] = None,
    all_tasks: Annotated[
        bool, typer.Option("--all", help="Also what cannot run here, and what it lacks.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show one rendered prompt of the task WHAT.")
    ] = False,
    format_: Annotated[
        ListFormat, typer.Option("--format", help="How to write the list.")
    ] = ListFormat.table,
    num_fewshot: ShotsOption = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model directory whose chat template is applied."),
    ] = None,
    apply_chat_template: TemplateOption = False,
    system_instruction: SystemOption = None,
    fewshot_as_multiturn: TurnsOption = None,
) -> None:
    """List the tasks that can run here, or show how a model meets one of them.

    Without WHAT, those of lm-eval's tasks whose data are on this machine.
    """
    asked = what or []
    quieten_libraries()
    from ...evals.tasks.chat import ChatOptions

    chat = ChatOptions(apply_chat_template, system_instruction, _turns(fewshot_as_multiturn))
    if show:
        _show(asked, num_fewshot, chat, model)
    elif num_fewshot is not None or model is not None or chat != ChatOptions():
        raise ValueError("options about prompts need `--show`, as in heterosis tasks NAME --show")
    else:
        _list(asked, all_tasks, format_)


def _show(asked: Sequence[str], num_fewshot: int | None, options: Any, model: Path | None) -> None:
    """Print one rendered prompt."""
    from ...evals.tasks.rendering import show_task

    if len(asked) != 1:
        raise ValueError(f"`--show` must have one task to show, got {len(asked)}")
    chat = _chat_of(options, model)
    _announce_index(asked)
    screen = console()
    for line in show_task(asked[0], num_fewshot=num_fewshot, chat=chat):
        say(screen, line)


def _chat_of(options: Any, model: Path | None) -> Chat:
    """How prompts are wrapped for the model directory that is given, if one is needed."""
    from ...evals.lm_eval_run import check_chat
    from ...evals.tasks.chat import Chat

    if not options.apply_chat_template:
        return Chat(options)
    if model is None:
        raise ValueError("`--apply-chat-template` needs `--model`, the directory of the template")
    from ..models.source import open_source

    return check_chat(options, open_source(str(model)).tokenizer, str(model))


def _list(asked: Sequence[str], all_tasks: bool, format_: ListFormat) -> None:
    """Print the tasks that fit what is asked."""
    found = _found(asked)
    shown = [each for each in found if all_tasks or each.problem is None]
    if format_ is ListFormat.json:
        sys.stdout.write(json.dumps([asdict(each) for each in shown], indent=1) + "\n")
        return
    screen = console()
    if shown:
        screen.print(_table(shown))
    lacking = sum(each.problem is not None for each in found)
    say(screen, f"{len(found) - lacking} of {len(found)} can run here")
    if lacking and all_tasks:
        from ...evals.tasks.catalogue import remedy

        say(screen, f"where data sets are missing: {remedy()}")
    elif lacking:
        say(screen, "what the others lack, and what to do: the same command with --all")


def _found(asked: Sequence[str]) -> list[Listed]:
    """Tasks of the files and folders that are named, and lm-eval's that fit the patterns.

    Raises:
        TaskError: If a file or folder is not there, or a pattern fits nothing.
    """
    from ...evals.tasks.catalogue import builtin_index, list_tasks
    from ...evals.tasks.task_files import TaskError, is_path, nearest, read_task_file

    found: list[Listed] = []
    paths = [word for word in asked if is_path(word) or Path(word).is_dir()]
    for path in map(Path, paths):
        if not path.exists():
            read_task_file(path)  # says what is there instead
        tasks = list_tasks(folders=[path], builtin=False)
        if not tasks:
            raise TaskError(f"{path}: no YAML file there defines a task; see `task:` and `group:`")
        found += tasks
    patterns = [word for word in asked if word not in paths]
    _announce_index(patterns if asked else ["all"])
    for pattern in patterns if asked else [None]:
        tasks = list_tasks(pattern)
        if not tasks:
            near = nearest(str(pattern), builtin_index().all_tasks) or ";"
            raise TaskError(f"lm-eval has no task that fits '{pattern}'{near} `*` fits any letters")
        found += tasks
    return list(dict.fromkeys(found))


def _table(listed: Sequence[Listed]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    lacking = any(each.problem for each in listed)
    if lacking:
        table.add_column("what it lacks", overflow="fold")
    for each in listed:
        count = f"{each.n_tasks} tasks" if each.n_tasks > 1 else ""
        row = [Text(each.name), Text(count), Text(each.problem or "")]
        table.add_row(*row[: 3 if lacking else 2])
    return table
