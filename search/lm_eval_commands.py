"""How lm-eval's own command line gives the leaderboard's confirm score of an export.

Knows lm-eval's options, nothing of its code. `--samples` takes the doc indices of a split;
`data_files` are relative to the working directory there, hence the `cd`.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..evals.splits import CONFIRM
from ..evals.tasks import FrozenTask
from .assembly import Parts, choose_device

CONFIRM_SAMPLES = "confirm_samples.json"


def confirm_samples(parts: Parts) -> str:
    """Return the JSON of lm-eval's ``--samples``: task -> indices of its confirm docs."""
    return (
        json.dumps({n: d for task in parts.tasks for n, d in task.samples(CONFIRM).items()}) + "\n"
    )


def confirm_commands(parts: Parts, out: Path) -> tuple[str, ...]:
    """Return shell lines, one per folder of task files and number of shots."""
    groups: dict[tuple[Path | None, int], list[FrozenTask]] = defaultdict(list)
    for task in parts.tasks:
        groups[task.source.parent if task.source else None, task.num_fewshot].append(task)
    return tuple(
        _command(parts, out, folder, shots, tasks) for (folder, shots), tasks in groups.items()
    )


def portable(parts: Parts, out: Path, commands: Sequence[str]) -> tuple[str, ...]:
    """Return the lines with the places of this machine as $MODEL and $TASKS: they are published."""
    folders = {str(task.source.parent) for task in parts.tasks if task.source}
    for folder in folders:
        commands = [line.replace(f"cd {shlex.quote(folder)}", 'cd "$TASKS"') for line in commands]
    return tuple(line.replace(str(out), "$MODEL") for line in commands)


def _command(
    parts: Parts, out: Path, folder: Path | None, shots: int, tasks: list[FrozenTask]
) -> str:
    config = parts.config
    words = ["lm-eval", "run", "--model", "hf", "--model_args", f"pretrained={out}"]
    words += [f"dtype={config.merge.dtype}", "softmax_dtype=float32"]
    words += ["--device", choose_device(config), "--batch_size", str(config.eval.batch_size)]
    words += ["--tasks", *(task.name for task in tasks), "--num_fewshot", str(shots)]
    words += ["--samples", str(out / CONFIRM_SAMPLES)]
    if folder is None:
        return shlex.join(words)
    return f"cd {shlex.quote(str(folder))} && {shlex.join([*words, '--include_path', '.'])}"
