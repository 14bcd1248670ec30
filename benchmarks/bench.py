"""Speed of each part of a candidate, as a ratio of two things measured in one run.

`make bench` prints hardware, versions and date, then one table; ``--out FILE`` also writes every
sample as JSON. Parts: `merge`, loading a recipe against copying the weights once; `peer`,
mergekit's merge of the same recipe against ours (needs `make mergekit`); `score` and `generate`,
lm-eval against the scorer on the same documents; `search`, each part of a candidate in a real
search against its total time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers
from generating import generation_rows
from heterosis.evals.quiet import quiet
from heterosis.search.config.config import BaselinesSection, Config, TaskSection
from heterosis.search.config.load import find_config, load_config
from heterosis.search.study.build import build_engine
from heterosis.search.study.parts import open_parts
from merging import QUICK_METHODS, load_rows, shape_rows
from rich.console import Console
from scoring import score_rows, with_shots
from searching import search_rows
from timing import Row, machine, table, write_json

SHOTS = 5
FEWEST_ITEMS = 2  # the least that `splits.confirm_items` accepts; a benchmark confirms nothing


def on_cpu(config: Config, **sections: dict[str, Any]) -> Config:
    """Return the configuration for the CPU, few confirm items and the given section values."""
    sections = {"merge": {}, "splits": {}, **sections}
    sections["merge"] |= {"device": "cpu"}
    sections["splits"] |= {"confirm_items": FEWEST_ITEMS}
    update = {k: getattr(config, k).model_copy(update=v) for k, v in sections.items()}
    return config.model_copy(update=update)


def quickstart(trials: int) -> Config:
    """Return the shipped quickstart with few candidates and only the baselines of every study."""
    config = on_cpu(
        load_config(find_config("quickstart")), search={"trials": trials, "finalists": 1}
    )
    none = BaselinesSection(lambdas=(), ties_drop_rates=(), dare_ties_drop_rates=())
    return config.model_copy(update={"baselines": none})


def smollm2(docs: int, dtype: str = "bfloat16") -> Config | None:
    """Return SmolLM2 with its Python choice task on a few documents; None without its parents."""
    path = find_config("smollm2")
    config = on_cpu(load_config(path), merge={"dtype": dtype}, splits={"search_items": docs})
    if not all(folder.is_dir() for folder in (config.base, *config.parents.values())):
        return None
    task = TaskSection(task=str(path.parent / "tasks/python_choice.yaml"))
    return config.model_copy(update={"tasks": (task,), "guard": ()})


def few_shot(config: Config, shots: int, folder: Path) -> Config:
    """Return the same search on its first task only, with few-shot examples."""
    path = with_shots(Path(config.tasks[0].task), shots, folder)
    name = f"{config.name}, {shots}-shot"
    return config.model_copy(update={"name": name, "tasks": (TaskSection(task=str(path)),)})


def merge_rows(
    config: Config, methods: Sequence[str] = QUICK_METHODS, repeats: int = 5
) -> Iterator[Row]:
    """Time `MergeEngine.load` in units of one copy, for the parents of a search."""
    yield from load_rows(build_engine(open_parts(config)), config.name, methods, repeats)


def all_rows(options: argparse.Namespace, console: Console) -> Iterator[Row]:
    """Measure and yield every row of the table."""
    small = quickstart(options.trials)
    yield from merge_rows(small, repeats=options.repeats)
    yield from shape_rows(options.repeats)
    if options.merge_only:
        return
    yield from score_rows(small, options.repeats)
    yield from generation_rows(small, options.repeats)
    yield from search_rows(small)
    if not options.smollm2:
        return
    large = smollm2(options.docs)
    if large is None:
        console.print("smollm2 skipped: its parents do not exist; see configs/smollm2/README.md")
        return
    yield from merge_rows(large, repeats=options.repeats)
    yield from generation_rows(large, options.repeats, options.docs)
    with tempfile.TemporaryDirectory() as folder:
        for config in (large, few_shot(large, SHOTS, Path(folder))):
            yield from score_rows(config, options.repeats)


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of each part of a candidate.")
    add = parser.add_argument
    add("--threads", type=positive, default=1, help="torch's CPU threads (default 1)")
    add("--repeats", type=positive, default=5, help="pairs of samples per ratio (default 5)")
    add("--trials", type=positive, default=12, help="candidates of the short search (default 12)")
    add("--smollm2", action="store_true", help="also SmolLM2-135M, if its parents exist")
    add("--docs", type=positive, default=8, help="documents scored with --smollm2 (default 8)")
    add("--merge-only", action="store_true", help="skip scoring and searching")
    add("--out", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


def quieten() -> None:
    """Silence the libraries' progress bars and log messages."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def main() -> None:
    options = parse()
    quieten()
    torch.set_num_threads(options.threads)
    console = Console(width=None if os.isatty(1) else 200)
    header, start = machine(), time.perf_counter()
    for name, value in header.items():
        console.print(f"{name}: {value}", markup=False, highlight=False)
    with quiet():
        rows = list(all_rows(options, console))
    console.print(table(rows))
    console.print(f"measured in {time.perf_counter() - start:.0f} s", highlight=False)
    if options.out:
        write_json(options.out, header, rows)


if __name__ == "__main__":
    main()
