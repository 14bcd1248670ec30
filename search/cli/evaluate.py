"""The command `heterosis eval`: lm-eval's own scores of a model directory or a trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    FAILED,
    INTERRUPTED,
    FewShotOption,
    ModelDeviceOption,
    SystemOption,
    TemplateOption,
    TurnsOption,
    announce_index,
    as_multiturn,
    fail,
    quieten_libraries,
)

if TYPE_CHECKING:
    from ...evals.lm_eval_run import EvalOptions


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model directory, study (its winner) or STUDY:TRIAL."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", "-t", metavar="A,B", help="Task names or YAML files."),
    ],
    num_fewshot: FewShotOption = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size", "-b", metavar="N", help="Rows per pass: a number, auto or auto:N."
        ),
    ] = "1",
    limit: Annotated[
        float | None,
        typer.Option("--limit", "-L", metavar="N", help="Documents per task; a share if < 1."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            "-E",
            metavar="JSON",
            help='Documents by task: {"TASK": [0, 3]}, or a JSON file.',
        ),
    ] = None,
    apply_chat_template: TemplateOption = False,
    system_instruction: SystemOption = None,
    fewshot_as_multiturn: TurnsOption = None,
    gen_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="K=V", help="Override generation settings: max_gen_toks=64,... or JSON."
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output-path", "-o", metavar="DIR", help="Folder or .json file for lm-eval's results."
        ),
    ] = None,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", "-s", help="Also write every answer.")
    ] = False,
    device: ModelDeviceOption = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="float32, bfloat16 or float16; auto: as saved, or the study's."
        ),
    ] = "auto",
    softmax_dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="dtype of log-softmax; auto: the model's, as lm-eval."),
    ] = "float32",
    seed: Annotated[
        str,
        typer.Option(
            metavar="N,N,N,N",
            help="Seeds of Python, NumPy, torch, few-shot examples; or one for all.",
        ),
    ] = "0,1234,1234,1234",
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option("--confirm-run-unsafe-code", help="Let tasks run code that the model writes."),
    ] = False,
) -> None:
    """Evaluate a model with lm-eval's own loop, for scores to publish.

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
        chat=ChatOptions(
            apply_chat_template, system_instruction, as_multiturn(fewshot_as_multiturn)
        ),
        gen_kwargs=None if gen_kwargs is None else read_settings(gen_kwargs),
        seeds=read_seeds(seed),
        output_path=output_path,
        log_samples=log_samples,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    names = [name.strip() for word in tasks for name in word.split(",") if name.strip()]
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
    """Check the tasks, then load the model, evaluate it and print the results."""
    from ...evals.lm_eval_run import check_chat, open_tasks, run_lm_eval, tables
    from ...merge.engine.resident import resident_dtype
    from ..models.source import open_source

    if softmax_dtype != "auto":
        resident_dtype(softmax_dtype)
    source = open_source(model, device=device, dtype=dtype)
    chat = check_chat(options.chat, source.tokenizer, source.name)
    announce_index(names)
    objects = open_tasks(names, options, chat)
    try:
        results, written = run_lm_eval(
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
        typer.echo(table)
    arguments = results["config"]["model_args"]
    typer.echo(", ".join(f"{key} {value}" for key, value in arguments.items()))
    if options.limit is not None or options.samples is not None:
        typer.echo("scored on some documents only: for a trial run, not for publishing")
    if written is not None:
        typer.echo(f"results: {written}")
