"""Timed samples, ratios of them, and their table; independent of what is measured.

A and B alternate (A B A B) and a ratio is the median over the pairs, so that other load affects
both. On a busy machine read the CPU column; on an idle one with one thread the columns agree,
except for disk waits.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from heterosis.search.study.resume import versions
from rich.table import Table

SAMPLE_SECONDS = 0.1  # shorter work is called several times per sample, so that a sample spans a
MOST_CALLS = 300  # few time slices of a busy system


@dataclass(frozen=True)
class Seconds:
    """One sample: wall time and CPU time of all threads."""

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
    """A ratio A / B with its samples; samples of equal index form a pair."""

    part: str
    model: str
    a_name: str
    b_name: str
    a: tuple[Seconds, ...]
    b: tuple[Seconds, ...]
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Wall-time ratio of each pair."""
        return [a.wall / b.wall for a, b in zip(self.a, self.b, strict=True)]

    @property
    def ratio(self) -> float:
        """Median wall-time ratio."""
        return statistics.median(self.ratios)

    @property
    def cpu_ratio(self) -> float:
        """Median CPU-time ratio."""
        return statistics.median(a.cpu / b.cpu for a, b in zip(self.a, self.b, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return names, both ratios and every sample as JSON values."""
        return asdict(self) | {"ratio": self.ratio, "cpu_ratio": self.cpu_ratio}


def now() -> Seconds:
    """Read both clocks."""
    return Seconds(time.perf_counter(), time.process_time())


def timed(run: Callable[[], object], calls: int = 1) -> Seconds:
    """Return the seconds of one call, averaged over ``calls`` calls."""
    start = now()
    for _ in range(calls):
        run()
    return (now() - start) / calls


def calls_per_sample(run: Callable[[], object]) -> int:
    """Return the calls that fill SAMPLE_SECONDS; the first call warms up."""
    if (seconds := timed(run).wall) < SAMPLE_SECONDS:
        seconds = timed(run).wall
    return min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)))


def interleave(
    a: Callable[[], object], b: Callable[[], object], repeats: int
) -> tuple[tuple[Seconds, ...], tuple[Seconds, ...]]:
    """Return alternating samples of A and B, after a warm-up of each."""
    calls_a, calls_b = calls_per_sample(a), calls_per_sample(b)
    pairs = [(timed(a, calls_a), timed(b, calls_b)) for _ in range(repeats)]
    first, second = zip(*pairs, strict=True)
    return first, second


def processor() -> str:
    """Return the CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return date, hardware and versions of this run."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "cores usable": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "load average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        **versions(),
    }


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table, one ratio per line."""
    shown = Table(title="A / B: median over pairs of alternating samples")
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
    """Write header, ratios and every sample as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": dict(header), "rows": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
