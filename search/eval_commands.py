"""The commands `heterosis tasks` and `heterosis eval`: their options, and what a person reads.

Knows lm-eval's names for options; no torch until a command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import FAILED, INTERRUPTED, console, fail, quieten_libraries, say

if TYPE_CHECKING:
    from ..evals.catalogue import Listed
    from ..evals.chat import Chat
    from ..evals.full import EvalOptions

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
    from ..evals.chat import ChatOptions

    chat = ChatOptions(apply_chat_template, system_instruction, _turns(fewshot_as_multiturn))
    if show:
        _show(asked, num_fewshot, chat, model)
    elif num_fewshot is not None or model is not None or chat != ChatOptions():
        raise ValueError("options about prompts need `--show`, as in heterosis tasks NAME --show")
    else:
        _list(asked, all_tasks, format_)


def _turns(word: Turns | None) -> bool | None:
    return None if word is None else word is Turns.true


def _show(asked: Sequence[str], num_fewshot: int | None, options: Any, model: Path | None) -> None:
    """Print one rendered prompt."""
    from ..evals.rendering import show_task

    if len(asked) != 1:
        raise ValueError(f"`--show` must have one task to show, got {len(asked)}")
    chat = _chat_of(options, model)
    _announce_index(asked)
    screen = console()
    for line in show_task(asked[0], num_fewshot=num_fewshot, chat=chat):
        say(screen, line)


def _chat_of(options: Any, model: Path | None) -> Chat:
    """How prompts are wrapped for the model directory that is given, if one is needed."""
    from ..evals.chat import Chat
    from ..evals.full import check_chat

    if not options.apply_chat_template:
        return Chat(options)
    if model is None:
        raise ValueError("`--apply-chat-template` needs `--model`, the directory of the template")
    from .model_source import open_source

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
        from ..evals.catalogue import remedy

        say(screen, f"where data sets are missing: {remedy()}")
    elif lacking:
        say(screen, "what the others lack, and what to do: the same command with --all")


def _found(asked: Sequence[str]) -> list[Listed]:
    """Tasks of the files and folders that are named, and lm-eval's that fit the patterns.

    Raises:
        TaskError: If a file or folder is not there, or a pattern fits nothing.
    """
    from ..evals.catalogue import builtin_index, list_tasks
    from ..evals.task_files import TaskError, is_path, nearest, read_task_file

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


def _announce_index(asked: Sequence[str]) -> None:
    """Say why nothing happens for a while, if lm-eval's index will be read."""
    from ..evals.task_files import is_path

    if any(not is_path(word) for word in asked):
        sys.stderr.write("reading lm-eval's index of tasks (5 to 25 s)\n")


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model directory, a study's folder (its winner), or STUDY:TRIAL.",
        ),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks", "-t", metavar="A,B", help="Names or YAML files, with commas between them."
        ),
    ],
    num_fewshot: ShotsOption = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size", "-b", metavar="N", help="Rows per pass; a number, auto, auto:N."
        ),
    ] = "1",
    limit: Annotated[
        float | None,
        typer.Option("--limit", "-L", metavar="N", help="Documents per task, or share if < 1."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            "-E",
            metavar="JSON",
            help='Rows by task: {"TASK": [0, 3]}, or a JSON file.',
        ),
    ] = None,
    apply_chat_template: TemplateOption = False,
    system_instruction: SystemOption = None,
    fewshot_as_multiturn: TurnsOption = None,
    gen_kwargs: Annotated[
        str | None,
        typer.Option(metavar="K=V", help="Over the tasks': max_gen_toks=64,... or JSON."),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output-path", "-o", metavar="DIR", help="Folder or .json for lm-eval's results file."
        ),
    ] = None,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", "-s", help="Write every answer, too.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1; auto: CUDA if there.")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="float32, bfloat16, float16; auto: as saved, or as searched."
        ),
    ] = "auto",
    softmax_dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Of log-softmax; `auto`: the model's, lm-eval's own default."
        ),
    ] = "float32",
    seed: Annotated[
        str,
        typer.Option(
            metavar="N,N,N,N", help="Of Python, NumPy, torch, few-shot examples; or one for all."
        ),
    ] = "0,1234,1234,1234",
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Let tasks run the model's code.")
    ] = False,
) -> None:
    """Evaluate a model by lm-eval's own loop: the number that one publishes.

    Options are lm-eval's. Tasks, data and first prompts are checked before weights are read.
    """
    quieten_libraries()
    from ..evals.chat import ChatOptions
    from ..evals.full import EvalOptions, read_samples, read_seeds, read_settings

    options = EvalOptions(
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        limit=limit,
        samples=None if samples is None else read_samples(samples),
        chat=ChatOptions(apply_chat_template, system_instruction, _turns(fewshot_as_multiturn)),
        gen_kwargs=None if gen_kwargs is None else read_settings(gen_kwargs),
        seeds=read_seeds(seed),
        output_path=output_path,
        log_samples=log_samples,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    names = [name.strip() for given in tasks for name in given.split(",") if name.strip()]
    interrupted = False
    try:
        _evaluate(model, names, options, device, dtype, softmax_dtype)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:  # out here lm-eval's frames are gone, and their progress bars closed
        fail("interrupted; no results were written", INTERRUPTED)


def _evaluate(
    model: str, names: list[str], options: EvalOptions, device: str, dtype: str, softmax_dtype: str
) -> None:
    """Find the model, check the tasks, load the model, evaluate, print."""
    from ..evals.full import check_chat, evaluate_fully, open_tasks, tables
    from ..merge.resident import resident_dtype
    from .model_source import open_source

    if softmax_dtype != "auto":
        resident_dtype(softmax_dtype)
    source = open_source(model, device=device, dtype=dtype)
    chat = check_chat(options.chat, source.tokenizer, source.name)
    _announce_index(names)
    objects = open_tasks(names, options, chat)
    try:
        results, written = evaluate_fully(
            objects,
            source.load(),
            source.tokenizer,
            options,
            name=source.name,
            softmax_dtype=None if softmax_dtype == "auto" else softmax_dtype,
        )
    except OSError as error:
        fail(str(error), FAILED)
    for table in tables(results):
        sys.stdout.write(table + "\n")
    screen = console()
    told = results["config"]["model_args"]
    say(screen, ", ".join(f"{key} {value}" for key, value in told.items()))
    if options.limit is not None or options.samples is not None:
        say(screen, "of some documents only: a number for trying out, not for publishing")
    if written is not None:
        say(screen, f"results: {written}")
