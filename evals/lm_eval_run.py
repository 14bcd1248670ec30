"""Full evaluation by lm-eval's own `simple_evaluate`, for published numbers. Knows lm-eval.

It uses nothing of our scorer, so it can check it. Tasks are built, their data found and their first
prompts rendered before a model is needed.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .quiet import one_line, quiet
from .tasks.catalogue import refuse_missing_data
from .tasks.chat import Chat, ChatOptions
from .tasks.prompts import first_prompt
from .tasks.task_files import TaskError
from .tasks.tasks import leaf_tasks, task_objects

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
SEEDS = (0, 1234, 1234, 1234)
"""lm-eval's default seeds: of Python, NumPy, torch and few-shot examples."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of lm-eval's command line, with its names and defaults.

    Args:
        num_fewshot: Examples per prompt; None: the tasks' own numbers. A task whose file says 0
            keeps it, as in lm-eval.
        batch_size: Rows per forward pass, ``auto`` or ``auto:N``.
        limit: Documents per task, or their share if below 1; for trials.
        samples: Rows of the data by task; excludes ``limit``.
        chat: Chat options.
        gen_kwargs: Generation settings that override the tasks'.
        seeds: Seeds of Python, NumPy, torch and few-shot examples; None: leave one unchanged.
        output_path: Folder, or file ending in ``.json``, for lm-eval's results file.
        log_samples: Whether to write every answer beside it.
        confirm_run_unsafe_code: Whether tasks may run code that a model writes.

    Raises:
        ValueError: If a number is out of range, or options contradict each other.
    """

    num_fewshot: int | None = None
    batch_size: int | str = 1
    limit: float | None = None
    samples: Mapping[str, Sequence[int]] | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    gen_kwargs: Mapping[str, Any] | None = None
    seeds: Sequence[int | None] = SEEDS
    output_path: Path | None = None
    log_samples: bool = False
    confirm_run_unsafe_code: bool = False

    def __post_init__(self) -> None:
        """Refuse values that lm-eval would misread, or fail on later."""
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"`num_fewshot` must be at least 0, got {self.num_fewshot}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"`limit` must be above 0, got {self.limit:g}; leave it out for all")
        if self.limit is not None and self.samples is not None:
            raise ValueError("`limit` and `samples` exclude each other; give one of them")
        for task, rows in (self.samples or {}).items():
            if not rows:  # lm-eval would take all rows
                raise ValueError(f"`samples` must name rows of each task, got none for '{task}'")
        if self.log_samples and self.output_path is None:
            raise ValueError("`log_samples` needs `output_path`, where the samples are written")
        size = str(self.batch_size)
        if size.partition(":")[0] != "auto" and not (size.isdigit() and int(size) > 0):
            raise ValueError(f"`batch_size` must be at least 1, `auto` or `auto:N`, got {size}")


def read_seeds(text: str) -> tuple[int | None, ...]:
    """Parse lm-eval's ``--seed``: one number for all, or four; ``None`` leaves one unchanged.

    Raises:
        ValueError: If it is neither.
    """
    words = [word.strip().lower() for word in text.split(",")]
    if len(words) not in (1, 4) or not all(w == "none" or w.isdigit() for w in words):
        raise ValueError(
            "`seed` must be one whole number, or four of Python, NumPy, torch and few-shot "
            f"examples as 0,1234,1234,1234, got {text}"
        )
    seeds = [None if word == "none" else int(word) for word in words]
    return tuple(seeds * 4 if len(seeds) == 1 else seeds)


def read_settings(text: str) -> dict[str, Any]:
    """Parse lm-eval's ``--gen_kwargs``: ``max_gen_toks=64,until=["."]``, or a JSON object.

    Raises:
        ValueError: If it is neither.
    """
    from lm_eval._cli.utils import key_val_to_dict

    try:
        return json.loads(text) if text.startswith("{") else key_val_to_dict(text)
    except ValueError as error:
        raise ValueError(
            "`gen_kwargs` must be settings like max_gen_toks=64,temperature=0, or a JSON object, "
            f"got {text} ({error})"
        ) from error


def read_samples(text: str) -> dict[str, list[int]]:
    """Parse lm-eval's ``--samples``: a JSON object of rows by task, or the path of one.

    Raises:
        ValueError: If it is neither.
    """
    is_file = not text.lstrip().startswith("{")
    try:
        samples = json.loads(Path(text).read_text(encoding="utf-8") if is_file else text)
        if all(isinstance(row, int) for rows in samples.values() for row in rows):
            return samples
        reason = "rows must be whole numbers"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = one_line(error)
    raise ValueError(
        '`samples` must be a JSON object such as {"TASK": [0, 3]}, or a file with one, got '
        f"{text} ({reason})"
    )


def check_chat(options: ChatOptions, tokenizer: Any, name: str) -> Chat:
    """Return the chat options with the template of one model.

    Raises:
        TaskError: If a chat template is asked for and the tokenizer has none.
    """
    if options.apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            f"`apply_chat_template` needs a tokenizer with a chat template, and {name}'s has none; "
            "copy a `chat_template.jinja` into its directory, or leave the option out"
        )
    return Chat(options, tokenizer)


def open_tasks(tasks: Sequence[str], options: EvalOptions, chat: Chat) -> "list[Task | Group]":
    """Build all tasks and the first prompt of each; groups stay groups for lm-eval's aggregation.

    Args:
        tasks: lm-eval's names, or paths of YAML files.
        options: As for `run_lm_eval`.
        chat: Chat options and template, from `check_chat`.

    Raises:
        TaskError: If a task or its data cannot be used as asked, or ``output_path`` is not
            writable.
    """
    _make_folder(options.output_path)
    names = list(dict.fromkeys(name for name in tasks if name))
    if not names:
        raise TaskError("no tasks are given; name some, or see `heterosis tasks`")
    with quiet():
        refuse_missing_data(names)
        objects = [built for task in names for built in task_objects(task)]
        for task in leaf_tasks(objects):
            _refuse_unsafe(task, options)
            _rehearse(task, options, chat)
    _check_names(objects, options)
    return objects


def _make_folder(path: Path | None) -> None:
    """Make the folder of the results, so that failures come before the evaluation."""
    if path is None:
        return
    reason: object = "no permission to write there"
    try:
        _folder_of(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    if not _folder_of(path).is_dir() or not os.access(_folder_of(path), os.W_OK):
        raise TaskError(
            f"`output_path` must be a writable folder, or a .json file in one, got "
            f"{path} ({reason})"
        )


def _check_names(objects: "Sequence[Task | Group]", options: EvalOptions) -> None:
    """Raise TaskError if two tasks have one name, or ``samples`` names other tasks."""
    names = [str(task.task_name) for task in leaf_tasks(objects)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TaskError(
            f"task names must differ, got '{twice}' {names.count(twice)} times; remove a "
            "duplicate, or give one another `task:` name"
        )
    if options.samples is None:
        return
    for name in sorted(set(options.samples) ^ set(names)):  # without rows, lm-eval would take all
        raise TaskError(f"`samples` must name the tasks asked for, these and no others: '{name}'")


def _refuse_unsafe(task: Any, options: EvalOptions) -> None:
    """Raise TaskError if a task runs code written by a model without confirmation."""
    if getattr(task, "UNSAFE_CODE", False) and not options.confirm_run_unsafe_code:
        raise TaskError(
            f"task '{task.task_name}' runs code that the model writes; allow it by "
            "--confirm-run-unsafe-code, in an environment where it can do no harm"
        )


def _rehearse(task: Any, options: EvalOptions, chat: Chat) -> None:
    """Build a task's first prompt as lm-eval will, so that its errors come before the model."""
    shots, default = options.num_fewshot, task.config.num_fewshot
    if shots and default == 0:
        log.warning(
            "task '%s' has `num_fewshot: 0`, which lm-eval keeps; remove that line from its file "
            "for %d examples",
            task.task_name,
            shots,
        )
    keeps = shots is None or default == 0
    task.set_config("num_fewshot", (default or 0) if keeps else shots)
    first_prompt(task, seed=options.seeds[3] or 0, chat=chat)


def run_lm_eval(
    objects: "Sequence[Task | Group]",
    model: Any,
    tokenizer: Any,
    options: EvalOptions,
    *,
    name: str,
    softmax_dtype: str | None = "float32",
) -> tuple[dict[str, Any], Path | None]:
    """Run lm-eval's `simple_evaluate` on a model in memory.

    Re-seeds the global random generators, as lm-eval's command line does.

    Args:
        objects: Tasks and groups from `open_tasks`.
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        options: See `EvalOptions`.
        name: Name of the model in the results.
        softmax_dtype: Dtype of the log-softmax: float32, as in the search's scorer; None: the
            model's dtype, which is lm-eval's default.

    Returns:
        lm-eval's results, and the file that they were written to; None if none was asked for.

    Raises:
        OSError: If the results cannot be written.
    """
    with quiet():
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.models import huggingface

        size, path = str(options.batch_size), options.output_path
        hflm: Any = huggingface.HFLM  # its decorator hides the signature from pyright
        lm = hflm(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=int(size) if size.isdigit() else size,
            softmax_dtype=softmax_dtype,
        )
        arguments = {"pretrained": name, "dtype": str(model.dtype).removeprefix("torch.")}
        arguments |= {"softmax_dtype": softmax_dtype} if softmax_dtype else {}
        tracker = EvaluationTracker(output_path=None if path is None else str(path))
        results = _simple_evaluate(objects, lm, arguments, options, tracker)
        return results, _write(results, options, tracker)


def _simple_evaluate(
    objects: "Sequence[Task | Group]",
    lm: Any,
    model_args: dict[str, str],
    options: EvalOptions,
    tracker: Any,
) -> dict[str, Any]:
    """Call lm-eval with our options."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    python, numpy, torch, fewshot = options.seeds
    evaluate: Any = simple_evaluate  # its decorator hides the signature from pyright
    return evaluate(
        model=lm,
        model_args=model_args,
        tasks=list(objects),
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        device=str(lm.device),
        limit=options.limit,
        samples=None if options.samples is None else {t: [*s] for t, s in options.samples.items()},
        log_samples=options.log_samples,
        evaluation_tracker=tracker,
        system_instruction=options.chat.system_instruction,
        apply_chat_template=options.chat.apply_chat_template,
        fewshot_as_multiturn=options.chat.as_multiturn,
        gen_kwargs=dict(options.gen_kwargs) if options.gen_kwargs else None,
        task_manager=TaskManager(include_defaults=False),
        random_seed=python,
        numpy_random_seed=numpy,
        torch_random_seed=torch,
        fewshot_random_seed=fewshot,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
    )


def _folder_of(path: Path) -> Path:
    return path.parent if path.suffix == ".json" else path


def _write(results: dict[str, Any], options: EvalOptions, tracker: Any) -> Path | None:
    """Write lm-eval's results file, and the samples if asked for; return the file.

    Raises:
        OSError: If lm-eval wrote none, which it only logs.
    """
    samples = results.pop("samples", None) if options.log_samples else None
    if options.output_path is None:
        return None
    folder = _folder_of(options.output_path)
    before = set(folder.rglob("*.json"))
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, answers in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=answers)
    written = set(folder.rglob("*.json")) - before
    if not written:
        raise OSError(f"{folder}: lm-eval could not write its results there; choose another folder")
    return written.pop()


def tables(results: Mapping[str, Any]) -> list[str]:
    """Return lm-eval's own tables of its results: one of tasks, and one of groups if any."""
    from lm_eval.utils import make_table

    of_tasks = [make_table(results)]
    return [*of_tasks, make_table(results, "groups")] if results.get("groups") else of_tasks
