"""Workers on other devices and machines, by Ray: one actor per device, its model loaded once.

Knows Ray and the interface of workers; imports Ray only when such workers are made. The driver
replaces an actor that dies and submits its candidate again. Ray's own restarts (`max_restarts`,
`max_task_retries`) are off: a restarted actor keeps its candidate while it waits for a device, even
if others are idle. An actor without a device waits for one, so machines may join and leave at any
time. One that cannot be made is dropped while others work.

A candidate is sent to a worker that has just answered, so that a worker that died while it was idle
costs the candidate none of its attempts; a call that never returns shows a death at any other time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from ...evals.scores.scores import ItemScores
from ..config.scoring import WorkersSection
from ..storage.journal import StudyError
from .evaluator import Failure, FailureKind
from .ray_cluster import connect, disconnect
from .workers import Job, Keep, Result, Score

log = logging.getLogger(__name__)
REISSUES = 2
"""Number of new attempts for a candidate whose worker died."""
MAX_START_FAILURES = 5
"""Number of workers in a row that may die before they are ready."""
POLL_SECONDS = 0.5
"""Seconds after which `wait` returns even without a result."""
WATCH = "watch"
RUNGS = "rungs"
"""Concurrency groups of an actor: threads that wait beside the one that scores."""
WARN_AFTER = 60.0
"""Seconds without any ready worker after which a warning is logged, repeatedly."""


class _Scorer:
    """The class of the actors: builds what scores once, then scores jobs."""

    def __init__(self, build: Callable[[], Score]) -> None:
        self._build = build
        self._score: Score | None = None
        self._rungs: SimpleQueue[tuple[int, ItemScores]] = SimpleQueue()

    def ready(self) -> str:
        """Build; not in the constructor, so that the driver gets an error as it was raised.

        Returns:
            The machine's name, and its address in the cluster.
        """
        import ray

        self._score = self._build()
        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def here(self) -> None:
        """Answer that the worker is alive."""

    def score(self, job: Job) -> Result:
        """Score a candidate."""
        assert self._score is not None
        return self._score(job, lambda *rung: self._rungs.put(rung))

    def rung(self) -> tuple[int, ItemScores]:
        """Wait for the next rung, in its own thread; return its candidate's number and scores."""
        return self._rungs.get()

    def watch(self) -> None:
        """Never return, in its own thread: the call fails when the actor dies."""
        threading.Event().wait()


@dataclass
class _Worker:
    """The driver's view of an actor.

    Attributes:
        actor: Ray's handle.
        task: Its pending call of `ready`, `here` or `score`; None while it is idle.
        watch: Its pending call of `watch`, which fails when it dies.
        rung: Its pending call of `rung`; None when it is dead.
        job: The candidate that it scores, or will score once it answers.
        since: When scoring began; None before.
        place: Its machine; empty until its model is loaded.
    """

    actor: Any
    task: Any
    watch: Any
    rung: Any
    job: Job | None = None
    since: float | None = None
    place: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether its model is loaded."""
        return bool(self.place)


class RayWorkers:
    """Scores jobs on Ray actors.

    Args:
        section: Number of workers, cluster and time limit.
        build: Returns what scores a job; pickled, and called once in every actor.
        gpus: Number of GPUs of each actor.
        keep: Keeps partial scores.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """

    def __init__(
        self, section: WorkersSection, build: Callable[[], Score], gpus: float, keep: Keep
    ) -> None:
        self._section, self._build, self._gpus, self._keep = section, build, gpus, keep
        connect(section)
        self._again: deque[Job] = deque()  # candidates whose worker died
        self._deaths: dict[int, int] = {}  # by candidate
        self._failed_starts = 0  # in a row
        self._last_ready = time.monotonic()
        self._workers = [self._start_worker() for _ in range(section.num)]

    def _start_worker(self) -> _Worker:
        import ray

        options: dict[str, Any] = {
            "num_cpus": self._section.cpus_per_worker,
            "num_gpus": self._gpus,
        }
        options |= {"max_restarts": 0, "max_task_retries": 0}
        options["concurrency_groups"] = {WATCH: 1, RUNGS: 1}
        actor_class: Any = ray.remote(**options)(_Scorer)
        actor = actor_class.remote(self._build)
        watch = actor.watch.options(concurrency_group=WATCH).remote()
        return _Worker(actor, actor.ready.remote(), watch, _next_rung(actor))

    @property
    def idle(self) -> int:
        """See `Workers`."""
        return len(self._free()) - len(self._again)

    def _free(self) -> list[_Worker]:
        return [w for w in self._workers if w.is_ready and w.job is None]

    def submit(self, job: Job) -> None:
        """See `Workers`."""
        worker = self._free()[0]
        worker.job, worker.since = job, None
        worker.task = worker.actor.here.remote()

    def wait(self) -> list[Result]:
        """See `Workers`."""
        import ray

        # Wait until any call returns or POLL_SECONDS are over; then take all that have returned.
        rungs = {w.rung: w for w in self._workers if w.rung is not None}
        tasks = {task: w for w in self._workers for task in (w.task, w.watch) if task is not None}
        first, _ = ray.wait([*rungs, *tasks], num_returns=1, timeout=POLL_SECONDS)
        more, _ = ray.wait([*rungs, *tasks], num_returns=len(rungs) + len(tasks), timeout=0)
        returned = {*first, *more}
        # Rungs first: if their worker has died, its candidate's next attempt goes on from them.
        for call in returned & rungs.keys():
            self._collect_rungs(rungs[call])
        # Then what workers answered, each once: its `task` and its `watch` both fail when it dies.
        answered = {id(tasks[call]): tasks[call] for call in returned & tasks.keys()}
        results = [self._take_answer(worker) for worker in answered.values()]
        # Break off candidates that take too long.
        results += [self._time_out(w) for w in self._workers if self._is_late(w)]
        # Candidates of dead workers come before new ones.
        while self._again and self._free():
            self.submit(self._again.popleft())
        self._warn_without_workers()
        return [result for result in results if result is not None]

    def _collect_rungs(self, worker: _Worker) -> None:
        """Keep partial scores: if the worker dies, the next one goes on from there."""
        import ray
        from ray.exceptions import RayError

        try:
            number, partial = ray.get(worker.rung)
        except RayError:
            worker.rung = None
            return
        worker.rung = _next_rung(worker.actor)
        if worker.job is not None and worker.job.number == number:
            worker.job = replace(worker.job, partial=partial)
            self._keep(number, partial)

    def _take_answer(self, worker: _Worker) -> Result | None:
        """Take the answer of a worker's call; return the result if it was `score`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(worker.watch if worker.task is None else worker.task)
        except RayTaskError as error:  # an exception of our code there
            return self._take_error(worker, error)
        except RayError as error:  # it died, or its answer was lost with its machine
            return self._replace_dead(worker, error)
        # `here`: it is alive, so the candidate can begin.
        if worker.job is not None and worker.since is None:
            worker.since = time.monotonic()
            worker.task = worker.actor.score.remote(worker.job)
            log.info("candidate %d: begun on %s", worker.job.number, worker.place)
            return None
        # `score` or `ready`: it is idle now.
        worker.task, worker.job, worker.since = None, None, None
        if isinstance(answer, Result):
            return answer
        if not worker.is_ready:
            worker.place, self._failed_starts = str(answer), 0
            log.info("a worker on %s is ready", worker.place)
        return None

    def _take_error(self, worker: _Worker, error: Any) -> None:
        """Raise an exception of a worker, or drop a worker that cannot start if others work."""
        if worker.is_ready or not self._has_others(worker):
            raise error.cause from error
        self._drop(worker, str(error.cause))

    def _has_others(self, worker: _Worker) -> bool:
        return any(w.is_ready for w in self._workers if w is not worker)

    def _drop(self, worker: _Worker, reason: str) -> None:
        """Go on without a worker that cannot start."""
        self._kill(worker)
        self._workers.remove(worker)
        log.warning("%s; the search goes on with %d worker(s)", reason, len(self._workers))

    def _replace_dead(self, worker: _Worker, error: Exception) -> Result | None:
        """Replace a dead worker; its candidate gets a new attempt, or fails after REISSUES."""
        job, reason = worker.job, " ".join(str(error).split())[:200]
        if not worker.is_ready:
            return self._retry_start(worker, reason)
        self._replace(worker)
        if job is None:
            return None
        if worker.since is None:  # it had not begun: not an attempt
            self._again.append(job)
            return None
        deaths = self._deaths[job.number] = self._deaths.get(job.number, 0) + 1
        log.warning("candidate %d: its worker on %s died (%s)", job.number, worker.place, reason)
        if deaths <= REISSUES:
            self._again.append(job)
            return None
        seconds = time.monotonic() - worker.since
        failure = Failure(FailureKind.DEATH, f"its worker died {deaths} times: {reason}")
        return Result(job.number, failure, seconds)

    def _retry_start(self, worker: _Worker, reason: str) -> None:
        """Replace a worker that died before it was ready, or drop it after MAX_START_FAILURES."""
        self._failed_starts += 1
        if self._failed_starts < MAX_START_FAILURES:
            self._replace(worker)
            return
        if not self._has_others(worker):
            raise StudyError(
                f"workers must start, {self._failed_starts} in a row died before: {reason}; look "
                "into Ray's logs (/tmp/ray/session_latest/logs), or use `engine: local`"
            )
        count, self._failed_starts = self._failed_starts, 0
        self._drop(worker, f"{count} workers in a row died before they were ready: {reason}")

    def _replace(self, worker: _Worker) -> None:
        self._kill(worker)
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _kill(self, worker: _Worker) -> None:
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.kill(worker.actor)

    def _is_late(self, worker: _Worker) -> bool:
        limit, since = self._section.timeout, worker.since
        return limit is not None and since is not None and time.monotonic() - since > limit

    def _time_out(self, worker: _Worker) -> Result:
        """Break off a candidate, without a new attempt: it would take as long elsewhere."""
        job, since = worker.job, worker.since
        assert job is not None
        assert since is not None
        seconds = time.monotonic() - since
        self._replace(worker)
        reason = f"took longer than workers.timeout, {self._section.timeout:g} s"
        return Result(job.number, Failure(FailureKind.TIMEOUT, reason), seconds)

    def _warn_without_workers(self) -> None:
        """Warn if no worker is ready for long."""
        now = time.monotonic()
        if any(w.is_ready for w in self._workers):
            self._last_ready = now
        elif now - self._last_ready > WARN_AFTER:
            self._last_ready = now
            log.warning(
                "no worker is ready: waiting for %d with %g CPU(s) and %g GPU(s) each; add a "
                "machine by `ray start --address=...`, or lower workers.num",
                *(self._section.num, self._section.cpus_per_worker, self._gpus),
            )

    def close(self) -> None:
        """See `Workers`; a cluster that was started here is shut down."""
        for worker in self._workers:
            self._kill(worker)
        self._workers = []
        disconnect()


def _next_rung(actor: Any) -> Any:
    return actor.rung.options(concurrency_group=RUNGS).remote()
