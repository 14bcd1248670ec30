"""The command `heterosis eval`: lm-eval's own numbers of a directory or a trial."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import FAILED, INTERRUPTED, console, fail, quieten_libraries, say
from .lm_eval_options import (
    ShotsOption,
    SystemOption,
    TemplateOption,
    TurnsOption,
    _announce_index,
    _turns,
)

if TYPE_CHECKING:
    from ...evals.lm_eval_run import EvalOptions


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
    from ...evals.lm_eval_run import EvalOptions, read_samples, read_seeds, read_settings
    from ...evals.tasks.chat import ChatOptions

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
    from ...evals.lm_eval_run import check_chat, evaluate_fully, open_tasks, tables
    from ...merge.engine.resident import resident_dtype
    from ..models.source import open_source

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
