"""The command `heterosis tasks`: which tasks can run here, and one rendered prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    FewShotOption,
    SystemOption,
    TemplateOption,
    TurnsOption,
    announce_index,
    as_multiturn,
    console,
    quieten_libraries,
)

if TYPE_CHECKING:
    from ...evals.tasks.catalogue import TaskEntry
    from ...evals.tasks.chat import Chat


class ListFormat(StrEnum):
    """Output formats of a list of tasks."""

    table = "table"
    json = "json"


def tasks(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WHAT",
            help="Part of a name, a pattern such as `mmlu_*`, a YAML file or a folder.",
        ),
    ] = None,
    all_tasks: Annotated[
        bool, typer.Option("--all", help="Also list tasks that cannot run here, and why.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show the first prompt of the task WHAT.")
    ] = False,
    format_: Annotated[
        ListFormat, typer.Option("--format", help="Output format.")
    ] = ListFormat.table,
    num_fewshot: FewShotOption = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model directory whose chat template is applied."),
    ] = None,
    apply_chat_template: TemplateOption = False,
    system_instruction: SystemOption = None,
    fewshot_as_multiturn: TurnsOption = None,
) -> None:
    """List the tasks that can run here, or show one rendered prompt.

    Without WHAT: lm-eval's tasks whose data are on this machine.
    """
    words = what or []
    quieten_libraries()
    from ...evals.tasks.chat import ChatOptions

    chat = ChatOptions(apply_chat_template, system_instruction, as_multiturn(fewshot_as_multiturn))
    if show:
        _show(words, num_fewshot, chat, model)
    elif num_fewshot is not None or model is not None or chat != ChatOptions():
        raise ValueError("options about prompts need `--show`: heterosis tasks NAME --show")
    else:
        _list(words, all_tasks, format_)


def _show(words: Sequence[str], num_fewshot: int | None, options: Any, model: Path | None) -> None:
    """Print one rendered prompt."""
    from ...evals.tasks.rendering import show_task

    if len(words) != 1:
        raise ValueError(f"`--show` must have one task to show, got {len(words)}")
    chat = _chat_of(options, model)
    announce_index(words)
    for line in show_task(words[0], num_fewshot=num_fewshot, chat=chat):
        typer.echo(line)


def _chat_of(options: Any, model: Path | None) -> Chat:
    """Return how prompts are wrapped, with the model's template if it is applied."""
    from ...evals.lm_eval_run import check_chat
    from ...evals.tasks.chat import Chat

    if not options.apply_chat_template:
        return Chat(options)
    if model is None:
        raise ValueError("`--apply-chat-template` needs `--model`, the directory with the template")
    from ..models.source import open_source

    return check_chat(options, open_source(str(model)).tokenizer, str(model))


def _list(words: Sequence[str], all_tasks: bool, format_: ListFormat) -> None:
    """Print the tasks that match."""
    from ...evals.tasks.catalogue import remedy

    matches = _matches(words)
    shown = [each for each in matches if all_tasks or each.problem is None]
    if format_ is ListFormat.json:
        typer.echo(json.dumps([asdict(each) for each in shown], indent=1))
        return
    if shown:
        console().print(_table(shown))
    unusable = sum(each.problem is not None for each in matches)
    typer.echo(f"{len(matches) - unusable} of {len(matches)} can run here")
    if unusable and all_tasks:
        typer.echo(f"if data sets are missing: {remedy()}")
    elif unusable:
        typer.echo("for what the others lack, and the remedy: the same command with --all")


def _matches(words: Sequence[str]) -> list[TaskEntry]:
    """Return the tasks of the files and folders, and lm-eval's that match the patterns.

    Raises:
        TaskError: If a file or folder does not exist, or a pattern matches nothing.
    """
    from ...evals.tasks.catalogue import builtin_index, list_tasks
    from ...evals.tasks.task_files import TaskError, did_you_mean, is_path, read_task_file

    matches: list[TaskEntry] = []
    paths = [word for word in words if is_path(word) or Path(word).is_dir()]
    for path in map(Path, paths):
        if not path.exists():
            read_task_file(path)  # says what is there instead
        in_folder = list_tasks(folders=[path], builtin=False)
        if not in_folder:
            raise TaskError(f"{path}: no YAML file there defines a task; see `task:` and `group:`")
        matches += in_folder
    patterns = [word for word in words if word not in paths]
    announce_index(patterns if words else ["all"])
    for pattern in patterns if words else [None]:
        builtin = list_tasks(pattern)
        if not builtin:
            near = did_you_mean(str(pattern), builtin_index().all_tasks) or ";"
            raise TaskError(
                f"lm-eval has no task that matches '{pattern}'{near} `*` matches any letters"
            )
        matches += builtin
    return list(dict.fromkeys(matches))


def _table(listed: Sequence[TaskEntry]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    has_problems = any(each.problem for each in listed)
    if has_problems:
        table.add_column("problem", overflow="fold")
    for each in listed:
        count = f"{each.n_tasks} tasks" if each.n_tasks > 1 else ""
        row = [Text(each.name), Text(count), Text(each.problem or "")]
        table.add_row(*row[: 3 if has_problems else 2])
    return table
