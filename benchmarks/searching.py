"""A search's own share: each part of a real search's candidate against the whole."""

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

    def stage(self, name: str, total: int | None, done: int = 0) -> None:  # noqa: ARG002
        self._in_search = name == "search"
        self._restart()

    def finished(self, candidate: Any, items: int) -> None:  # noqa: ARG002
        if self._in_search:
            self.laps.append({"candidate": now() - self._start, **self._clock.seconds})
        self._restart()

    def forecast(self, total: int | None) -> None:
        """Leave it."""

    def known(self, candidates: Sequence[Any]) -> None:
        """Nothing was finished before."""

    def note(self, message: str) -> None:
        """Say nothing."""

    def _restart(self) -> None:
        self._clock.seconds.clear()
        self._start = now()


def run_timed(config: Config, folder: Path) -> list[dict[str, Seconds]]:
    """Run a search in ``folder``; seconds of each searched candidate, by part and as a whole.

    Every candidate meets every item: how much a race saves is another matter (racing.py).
    """
    section = config.search.model_copy(update={"racing": False, "dissect": False})
    parts, clock = open_parts(config), Clock()
    laps = Laps(clock)
    engine = build_engine(parts)
    scorer = make_scorer(parts, engine.model)
    scorer.self_check()

    def stand_in(inner: Any, **labels: str) -> Any:
        return Timed(inner, clock, labels)

    with lock_folder(folder):
        Study(
            Evaluator(
                stand_in(engine, load="load"), stand_in(scorer, score="score"), parts.objective
            ),
            (replace(parts.stages[0], space=stand_in(parts.space, decode="decode")),),
            section,
            parts.baselines,
            stand_in(Journal(folder, write=True), append="journal"),
            stand_in(ItemStore(folder / "items"), append="item store"),
            laps,
            Budget(limits_of(section, None, ()), 0),
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
