"""Speeds of a candidate's three parts, each as a ratio of two things measured in one run.

Knows the rooms by their public names and wraps their objects from outside. `make bench` runs it:
prints hardware, versions and date, then one table; ``--out FILE`` also writes every sample as JSON.

Parts: `merge`, materialising a recipe against copying the weights once; `score`, lm-eval against
the scorer on the same documents; `search`, each part of a real search's candidate against the
whole. A and B alternate (A B A B); a ratio is the median over the pairs, so that a neighbour who
comes or goes weighs on both. Where others hold the cores, read the CPU column; on an idle machine
with one thread the two agree, but for waits on the disk.
"""

# The rooms are imported as the installed package, which an editable install builds at run time.
from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import io
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import transformers
from heterosis.evals.quiet import quiet
from heterosis.evals.scorer import Scorer
from heterosis.evals.splits import SEARCH
from heterosis.evals.store import ItemStore
from heterosis.merge.engine import MergeEngine
from heterosis.merge.methods import METHODS
from heterosis.merge.recipe import Recipe
from heterosis.search.assembly import (
    Parts,
    build_engine,
    load_tokenizer,
    make_scorer,
    open_parts,
    versions,
)
from heterosis.search.config import BaselinesSection, Config, TaskSection, find_config, load_config
from heterosis.search.journal import Journal, lock_folder
from heterosis.search.study import Bench, Study
from rich.console import Console
from rich.table import Table

MERGE_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
DROP_RATE = 0.5  # of every method that has one: both branches of a mask are taken equally often
WEIGHTS = (0.45, 0.55)  # of every parent, in turn: no tensor keeps its coefficients
SAMPLE_SECONDS = 0.1  # shorter work is called several times per sample, up to MOST_CALLS: a few
MOST_CALLS = 300  # time slices of a busy system, so that a sample holds its share of waiting
FEWEST_ITEMS = 2  # `splits.confirm_items` accepts no fewer; a benchmark confirms nothing


@dataclass(frozen=True)
class Seconds:
    """One sample: time on the wall and on the CPU, all threads."""

    wall: float
    cpu: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __truediv__(self, number: float) -> Seconds:
        return Seconds(self.wall / number, self.cpu / number)


ZERO = Seconds(0.0, 0.0)


@dataclass(frozen=True)
class Row:
    """A ratio A / B with its samples; samples of equal index were taken one after the other."""

    part: str
    model: str
    a_name: str
    b_name: str
    a: tuple[Seconds, ...]
    b: tuple[Seconds, ...]
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Wall(A) / wall(B) of each pair."""
        return [a.wall / b.wall for a, b in zip(self.a, self.b, strict=True)]

    @property
    def ratio(self) -> float:
        """Median over the pairs, by the wall."""
        return statistics.median(self.ratios)

    @property
    def cpu_ratio(self) -> float:
        """Median over the pairs, by the CPU's clock."""
        return statistics.median(a.cpu / b.cpu for a, b in zip(self.a, self.b, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: names, both ratios, every sample."""
        return asdict(self) | {"ratio": self.ratio, "cpu_ratio": self.cpu_ratio}


def now() -> Seconds:
    return Seconds(time.perf_counter(), time.process_time())


def timed(run: Callable[[], object], calls: int = 1) -> Seconds:
    """Seconds of one call, averaged over ``calls`` in a row."""
    start = now()
    for _ in range(calls):
        run()
    return (now() - start) / calls


def calls_per_sample(run: Callable[[], object]) -> int:
    """How often to call short work so that a sample lasts; the first call warms up."""
    if (seconds := timed(run).wall) < SAMPLE_SECONDS:
        seconds = timed(run).wall
    return min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)))


def interleave(
    a: Callable[[], object], b: Callable[[], object], repeats: int
) -> tuple[tuple[Seconds, ...], tuple[Seconds, ...]]:
    """Samples of A and of B, taken in turns after a call or two of each."""
    calls_a, calls_b = calls_per_sample(a), calls_per_sample(b)
    pairs = [(timed(a, calls_a), timed(b, calls_b)) for _ in range(repeats)]
    first, second = zip(*pairs, strict=True)
    return first, second


# Materialising a candidate


def recipe(parts: Parts, method: str, weight: float) -> Recipe:
    """The same weight in every layer group: two of these share no tensor's coefficients."""
    rate = DROP_RATE if METHODS[method].uses_drop_rate else 0.0
    return Recipe.uniform(method, parts.parents.names, parts.parents.groups, weight, rate)


def copier(engine: MergeEngine) -> Callable[[], None]:
    """One in-place copy of the resident model's weights, from a clone beside it."""
    targets = list(engine.model.parameters())  # tied weights once
    sources = [target.detach().clone() for target in targets]

    @torch.no_grad()
    def run() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return run


def loader(engine: MergeEngine, parts: Parts, method: str) -> Callable[[], None]:
    """Load the next of two recipes that differ in every tensor."""
    recipes = itertools.cycle([recipe(parts, method, weight) for weight in WEIGHTS])
    return lambda: void(engine.load(next(recipes)))


def void(_: object) -> None:
    """Forget a result."""


def merge_rows(
    config: Config, methods: Sequence[str] = MERGE_METHODS, repeats: int = 5
) -> Iterator[Row]:
    """`MergeEngine.load` in units of one copy, per method, in one engine."""
    parts = open_parts(config)
    engine = build_engine(parts)
    copy_weights = copier(engine)
    entries = sum(target.numel() for target in engine.model.parameters())
    for method in methods:
        load = loader(engine, parts, method)
        first = timed(load).wall  # the first use of a parent's magnitudes sorts them
        a, b = interleave(load, copy_weights, repeats)
        share = f"first load {first / statistics.median(s.wall for s in b):.0f}"
        note = f"{share}; {entries / 1e6:.1f} M {config.merge.dtype}"
        yield Row("merge", config.name, f"load {method}", "copy of weights", a, b, note)


# Scoring a candidate


def lm_eval_model(parts: Parts, engine: MergeEngine) -> Any:
    """lm-eval's HFLM around the resident model, with the scorer's batch size and precision."""
    with quiet():
        from lm_eval.models import huggingface

        make: Any = huggingface.HFLM  # its decorator hides the signature from pyright
        return make(
            pretrained=engine.model,
            tokenizer=load_tokenizer(parts.config),
            backend="causal",
            batch_size=parts.config.eval.batch_size,
            softmax_dtype="float32",
        )


def unanswered(scorer: Scorer) -> list[Any]:
    """Copies of the frozen requests of the search split, without answers."""
    frozen = [i for task in scorer.tasks for own in task.instances(SEARCH) for i in own]
    requests = [copy.copy(instance) for instance in frozen]
    for request in requests:
        request.resps, request.filtered_resps = [], {}
    return requests


def lm_eval_tasks(parts: Parts) -> dict[str, Any]:
    """The tasks as lm-eval itself loads them: its paths are relative to the working directory."""
    from lm_eval.tasks import TaskManager

    loaded: dict[str, Any] = {}
    for task in parts.tasks:
        assert task.source is not None
        with quiet(), contextlib.chdir(task.source.parent):
            found = TaskManager(include_defaults=False).load([task.source.name])["tasks"]
        loaded |= found
    return loaded


def evaluator(parts: Parts, lm: Any) -> Callable[[], Any]:
    """lm-eval's `evaluate()` of the search documents: builds requests, runs, scores."""
    from lm_eval.evaluator import evaluate

    run: Any = evaluate
    tasks = lm_eval_tasks(parts)
    rows = {name: ids for task in parts.tasks for name, ids in task.samples(SEARCH).items()}

    def call() -> Any:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return run(lm, tasks, samples=rows, bootstrap_iters=0, log_samples=False)

    return call


def score_rows(config: Config, repeats: int = 5) -> Iterator[Row]:
    """lm-eval in units of one `Scorer.score`, on the same documents and batch size."""
    parts = open_parts(config)
    engine = build_engine(parts)
    engine.load(recipe(parts, "linear", 0.5))
    scorer = make_scorer(parts, engine.model)
    path = scorer.self_check().path
    lm, requests = lm_eval_model(parts, engine), unanswered(scorer)
    evaluate = evaluator(parts, lm)
    same = f"{agreement(scorer, lm, requests, evaluate())}; {path} path"
    others = {
        "HFLM.loglikelihood": lambda: lm.loglikelihood(requests, disable_tqdm=True),
        "lm-eval evaluate()": evaluate,
    }
    for name, other in others.items():
        a, b = interleave(other, lambda: scorer.score(SEARCH), repeats)
        yield Row("score", config.name, name, "Scorer.score", a, b, same)


def agreement(scorer: Scorer, lm: Any, requests: Sequence[Any], results: Any) -> str:
    """Say how far the answers agree: a faster way to other answers would be no gain."""
    scores = scorer.score(SEARCH)
    ours = [i.resps[0] for task in scorer.tasks for own in task.instances(SEARCH) for i in own]
    theirs = lm.loglikelihood(requests, disable_tqdm=True)
    worst = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    off = max(
        abs(scores.task_score(task.name).value - results["results"][task.name][task.metric.key])
        for task in scorer.tasks
    )
    return f"{len(ours)} requests, within {worst:.1g} nats and {off:.1g} of score"


# A search's own share


class Clock:
    """Adds up seconds by label."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, Seconds] = defaultdict(lambda: ZERO)

    def wrap(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = now()
            try:
                return function(*args, **options)
            finally:
                self.seconds[label] += now() - start

        return call


class Timed:
    """Stands for an object whose methods in ``labels`` are timed; all else passes through."""

    def __init__(self, inner: Any, clock: Clock, labels: Mapping[str, str]) -> None:
        self._inner, self._clock, self._labels = inner, clock, labels

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._clock.wrap(self._labels[name], value) if name in self._labels else value


class Laps:
    """A reporter that cuts the clock at the end of each candidate of the search stage."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._in_search, self._start = clock, False, ZERO
        self.laps: list[dict[str, Seconds]] = []

    def stage(self, name: str, total: int, done: int = 0) -> None:  # noqa: ARG002
        self._in_search = name == "search"
        self._restart()

    def finished(self, candidate: Any, items: int) -> None:  # noqa: ARG002
        if self._in_search:
            self.laps.append({"candidate": now() - self._start, **self._clock.seconds})
        self._restart()

    def known(self, candidates: Sequence[Any]) -> None:
        """Nothing was finished before."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def _restart(self) -> None:
        self._clock.seconds.clear()
        self._start = now()


def run_timed(config: Config, folder: Path) -> list[dict[str, Seconds]]:
    """Run a search in ``folder``; seconds of each searched candidate, by part and as a whole."""
    parts, clock = open_parts(config), Clock()
    laps = Laps(clock)
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    scorer.self_check()

    def stand_in(inner: Any, **labels: str) -> Any:
        return Timed(inner, clock, labels)

    with lock_folder(folder):
        Study(
            Bench(stand_in(engine, load="load"), stand_in(scorer, score="score"), parts.objective),
            stand_in(parts.space, decode="decode"),
            config.search,
            parts.baselines,
            stand_in(Journal(folder, write=True), append="journal"),
            stand_in(ItemStore(folder / "items"), append="item store"),
            laps,
        ).run()
    return laps.laps


def search_rows(config: Config) -> Iterator[Row]:
    """Shares of a searched candidate's time: the search's own work, then each part."""
    with tempfile.TemporaryDirectory() as folder:
        laps = run_timed(config, Path(folder))
    named = ("decode", "journal", "item store", "load", "score")
    own = [lap["candidate"] - lap["load"] - lap["score"] for lap in laps]
    inside = [sum((lap[part] for part in named[:3]), ZERO) for lap in laps]
    parts = {"search's own work": own, "  ask, tell, objective": diff(own, inside)}
    parts |= {
        f"  {name}" if name in named[:3] else name: [lap[name] for lap in laps] for name in named
    }
    whole = tuple(lap["candidate"] for lap in laps)
    for name, seconds in parts.items():
        note = f"{len(laps)} candidates, {config.search.sampler}"
        yield Row("search", config.name, name, "candidate", tuple(seconds), whole, note)


def diff(a: Sequence[Seconds], b: Sequence[Seconds]) -> list[Seconds]:
    return [x - y for x, y in zip(a, b, strict=True)]


# What is measured, and how it is shown


def on_cpu(config: Config, **sections: dict[str, Any]) -> Config:
    """A configuration on the CPU that confirms next to nothing, with sections overlaid."""
    sections = {"merge": {}, "splits": {}, **sections}
    sections["merge"] |= {"device": "cpu"}
    sections["splits"] |= {"confirm_items": FEWEST_ITEMS}
    update = {k: getattr(config, k).model_copy(update=v) for k, v in sections.items()}
    return config.model_copy(update=update)


def quickstart(trials: int) -> Config:
    """The shipped quickstart with few candidates and the baselines that every study has."""
    config = on_cpu(
        load_config(find_config("quickstart")), search={"trials": trials, "finalists": 1}
    )
    none = BaselinesSection(lambdas=(), ties_drop_rates=(), dare_ties_drop_rates=())
    return config.model_copy(update={"baselines": none})


def smollm2(docs: int) -> Config | None:
    """SmolLM2 with its four-choice Python task on a few documents; None if it is not made."""
    path = find_config("smollm2")
    config = on_cpu(load_config(path), splits={"search_items": docs})
    if not all(folder.is_dir() for folder in (config.base, *config.parents.values())):
        return None
    task = TaskSection(task=str(path.parent / "tasks/python_choice.yaml"))
    return config.model_copy(update={"tasks": (task,), "guard": ()})


def all_rows(options: argparse.Namespace, console: Console) -> Iterator[Row]:
    """Every row of the table, as it is measured."""
    small = quickstart(options.trials)
    yield from merge_rows(small, repeats=options.repeats)
    yield from score_rows(small, options.repeats)
    yield from search_rows(small)
    if not options.smollm2:
        return
    large = smollm2(options.docs)
    if large is None:
        console.print("smollm2 skipped: its parents are not made; see configs/smollm2/README.md")
        return
    yield from merge_rows(large, repeats=options.repeats)
    yield from score_rows(large, options.repeats)


def processor() -> str:
    """Name of the CPU, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Where, when and with what this run measures."""
    can_ask = hasattr(os, "sched_getaffinity")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cores usable": len(os.sched_getaffinity(0)) if can_ask else os.cpu_count(),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        **versions(),
    }


def table(rows: Sequence[Row]) -> Table:
    """The result, one ratio per line."""
    shown = Table(title="A / B: median over pairs of samples taken in turns")
    for title in ("part", "model", "A", "B"):
        shown.add_column(title, no_wrap=True)
    for title in ("A, ms", "B, ms", "A / B", "lowest", "highest", "CPU A / B"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("note")
    for row in rows:
        wall = [f"{1e3 * statistics.median(s.wall for s in x):.3g}" for x in (row.a, row.b)]
        ratios = (row.ratio, min(row.ratios), max(row.ratios), row.cpu_ratio)
        figures = [*wall, *(f"{ratio:.3g}" for ratio in ratios)]
        shown.add_row(row.part, row.model, row.a_name, row.b_name, *figures, row.note)
    return shown


def write_json(path: Path, header: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write header, ratios and every sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": dict(header), "rows": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speeds of a candidate, as ratios.")
    add = parser.add_argument
    add("--threads", type=positive, default=1, help="torch's CPU threads (default 1)")
    add("--repeats", type=positive, default=5, help="pairs of samples per ratio (default 5)")
    add("--trials", type=positive, default=12, help="candidates of the short search (default 12)")
    add("--smollm2", action="store_true", help="also SmolLM2-135M, if its parents are made")
    add("--docs", type=positive, default=8, help="documents scored with --smollm2 (default 8)")
    add("--out", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


def quieten() -> None:
    """Leave the terminal to the table: no bars, no announcements of the libraries."""
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
