"""Search overhead: each part of a candidate in a real search against its total time."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heterosis.evals.scores.store import ItemStore
from heterosis.search.config.config import Config
from heterosis.search.evaluate.evaluator import Evaluator
from heterosis.search.storage.journal import Journal, lock_folder
from heterosis.search.study.budget import Budget, limits_of
from heterosis.search.study.build import build_engine, make_scorer
from heterosis.search.study.parts import open_parts
from heterosis.search.study.study import Study
from timing import ZERO, Row, Seconds, now


class Clock:
    """Total seconds by label."""

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
    """A proxy that times the methods in ``labels`` and passes everything else through."""

    def __init__(self, inner: Any, clock: Clock, labels: Mapping[str, str]) -> None:
        self._inner, self._clock, self._labels = inner, clock, labels

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._clock.wrap(self._labels[name], value) if name in self._labels else value


class Laps:
    """A reporter that records the time of each candidate of the search stage."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._in_search, self._start = clock, False, ZERO
        self.laps: list[dict[str, Seconds]] = []

    def stage(self, name: str, total: int | None, done: int = 0) -> None:  # noqa: ARG002
        self._in_search = name == "search"
        self._restart()

    def finished(self, candidate: Any, items: int) -> None:  # noqa: ARG002
        if self._in_search:
            self.laps.append({"candidate": now() - self._start, **self._clock.seconds})
        self._restart()

    def forecast(self, total: int | None) -> None:
        """Ignore."""

    def known(self, candidates: Sequence[Any]) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def _restart(self) -> None:
        self._clock.seconds.clear()
        self._start = now()


def run_timed(config: Config, folder: Path) -> list[dict[str, Seconds]]:
    """Run a search in ``folder``; return the seconds of each searched candidate, total and by part.

    Every candidate is scored on every item; racing.py measures what racing saves.
    """
    section = config.search.model_copy(update={"racing": False, "dissect": False})
    parts, clock = open_parts(config), Clock()
    laps = Laps(clock)
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    scorer.self_check()

    def timed(inner: Any, **labels: str) -> Any:
        return Timed(inner, clock, labels)

    with lock_folder(folder):
        Study(
            Evaluator(timed(engine, load="load"), timed(scorer, score="score"), parts.objective),
            (replace(parts.stages[0], space=timed(parts.space, decode="decode")),),
            section,
            parts.baselines,
            timed(Journal(folder, write=True), append="journal"),
            timed(ItemStore(folder / "items"), append="item store"),
            laps,
            Budget(limits_of(section, None, ()), 0),
        ).run()
    return laps.laps


def search_rows(config: Config) -> Iterator[Row]:
    """Yield shares of a searched candidate's time: the search's overhead, then each part."""
    with tempfile.TemporaryDirectory() as folder:
        laps = run_timed(config, Path(folder))
    named = ("decode", "journal", "item store", "load", "score")
    overhead = [lap["candidate"] - lap["load"] - lap["score"] for lap in laps]
    measured = [sum((lap[part] for part in named[:3]), ZERO) for lap in laps]
    parts = {"search's own work": overhead, "  ask, tell, objective": diff(overhead, measured)}
    parts |= {
        f"  {name}" if name in named[:3] else name: [lap[name] for lap in laps] for name in named
    }
    total = tuple(lap["candidate"] for lap in laps)
    for name, seconds in parts.items():
        note = f"{len(laps)} candidates, {config.search.sampler}"
        yield Row("search", config.name, name, "candidate", tuple(seconds), total, note)


def diff(a: Sequence[Seconds], b: Sequence[Seconds]) -> list[Seconds]:
    """Subtract pairwise."""
    return [x - y for x, y in zip(a, b, strict=True)]
