"""lm-eval commands that reproduce the confirm scores of an export.

Knows lm-eval's options, nothing of its code. `--samples` takes the document indices of a split;
lm-eval resolves `data_files` against the working directory, hence the `cd`.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path

from ...evals.tasks.chat import ChatOptions
from ...evals.tasks.splits import CONFIRM
from ...evals.tasks.tasks import FrozenTask
from ..study.parts import Parts, choose_device

CONFIRM_SAMPLES = "confirm_samples.json"


def confirm_samples(parts: Parts) -> str:
    """Return the JSON for lm-eval's ``--samples``: task -> indices of its confirm documents."""
    return (
        json.dumps({n: d for task in parts.tasks for n, d in task.samples(CONFIRM).items()}) + "\n"
    )


def confirm_commands(parts: Parts, out: Path) -> tuple[str, ...]:
    """Return shell lines for this machine, one per folder of task files and number of few-shots."""
    return tuple(
        _command(parts, shlex.quote(str(out)), shlex.quote(str(folder)), shots, tasks)
        for (folder, shots), tasks in _groups(parts).items()
    )


def portable_commands(parts: Parts) -> tuple[str, ...]:
    """Return the same lines for a published card: paths are $MODEL and $TASKS."""
    return tuple(
        _command(parts, '"$MODEL"', '"$TASKS"' if folder else "None", shots, tasks)
        for (folder, shots), tasks in _groups(parts).items()
    )


def _groups(parts: Parts) -> dict[tuple[Path | None, int], list[FrozenTask]]:
    groups: dict[tuple[Path | None, int], list[FrozenTask]] = defaultdict(list)
    for task in parts.tasks:
        groups[task.source.parent if task.source else None, task.num_fewshot].append(task)
    return groups


def _chat_words(options: ChatOptions) -> list[str]:
    """lm-eval's options for chat prompts."""
    words = ["--apply_chat_template"] if options.apply_chat_template else []
    if options.apply_chat_template:
        words += ["--fewshot_as_multiturn", str(options.as_multiturn).lower()]
    if options.system_instruction is not None:
        words += ["--system_instruction", shlex.quote(options.system_instruction)]
    return words


def _command(parts: Parts, model: str, folder: str, shots: int, tasks: list[FrozenTask]) -> str:
    """One shell line; ``model`` and ``folder`` are quoted shell words."""
    config = parts.config
    words = ["lm-eval run --model hf --model_args", f"pretrained={model}"]
    words += [f"dtype={config.merge.dtype}", "softmax_dtype=float32"]
    words += ["--device", choose_device(config), "--batch_size", str(config.eval.batch_size)]
    words += ["--tasks", *(shlex.quote(task.name) for task in tasks), "--num_fewshot", str(shots)]
    words += [*_chat_words(parts.chat.options), "--samples", f"{model}/{CONFIRM_SAMPLES}"]
    if tasks[0].source is None:
        return " ".join(words)
    return f"cd {folder} && {' '.join([*words, '--include_path', '.'])}"
