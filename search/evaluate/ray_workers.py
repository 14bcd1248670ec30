"""Workers on other devices and machines, by Ray: one actor per device, its model loaded once.

Knows Ray and the seam; imports Ray only when such workers are made. The driver replaces an actor
that dies and issues its candidate again. Ray's own restarts (`max_restarts`, `max_task_retries`)
are off: a restarted actor keeps its candidate while it waits for a device, though others are idle.
An actor for which there is no device yet waits for one: machines may join and leave at any time.
One that cannot be made is left out while others are at work.

A candidate goes to a worker that has just answered, so that one which died while it was idle costs
no candidate a re-issue; a call that never returns tells of a death while nothing is asked.
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
"""Times that a candidate whose worker died is begun anew."""
MAX_START_FAILURES = 5
"""Workers in a row that may die before they are ready."""
POLL_SECONDS = 0.5
"""Seconds after which `wait` looks up though nothing has come."""
WATCH = "watch"
RUNGS = "rungs"
"""Ray's names of the threads of an actor that wait beside the one which scores."""
WARN_AFTER = 60.0
"""Seconds without any worker after which a person is told, again and again."""


class _Scorer:
    """What an actor runs: builds its scoring once, then scores."""

    def __init__(self, build: Callable[[], Score]) -> None:
        self._build = build
        self._score: Score | None = None
        self._rungs: SimpleQueue[tuple[int, ItemScores]] = SimpleQueue()

    def ready(self) -> str:
        """Build, not before it is asked: what is refused then comes back as it was raised.

        Returns:
            The machine's name, and its address in the cluster.
        """
        import ray

        self._score = self._build()
        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def here(self) -> None:
        """Answer: a candidate may come."""

    def score(self, job: Job) -> Result:
        """Score one candidate."""
        assert self._score is not None
        return self._score(job, lambda *rung: self._rungs.put(rung))

    def rung(self) -> tuple[int, ItemScores]:
        """Wait for the next rung, beside all else; return its candidate's number and scores."""
        return self._rungs.get()

    def watch(self) -> None:
        """Never return, beside all else: the call fails when the actor is gone."""
        threading.Event().wait()


@dataclass
class _Worker:
    """The driver's view of an actor.

    Attributes:
        actor: Ray's handle.
        task: What it was asked last: to be ready, to answer, to score; None while it is idle.
        watch: Fails when it is gone.
        rung: Comes with the next rung; None when it is gone.
        job: The candidate that it has, or will get once it answers.
        since: When it got that; None before.
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
        section: How many, and where.
        build: Called once in every actor, pickled; returns what scores a job.
        gpus: Of each actor.
        keep: Hears of rungs.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """

    def __init__(
        self, section: WorkersSection, build: Callable[[], Score], gpus: float, keep: Keep
    ) -> None:
        self._section, self._build, self._gpus, self._keep = section, build, gpus, keep
        connect(section)
        self._again: deque[Job] = deque()
        self._deaths: dict[int, int] = {}
        self._stillbirths = 0
        self._last_seen = time.monotonic()
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

        rungs = {w.rung: w for w in self._workers if w.rung is not None}
        tasks = {task: w for w in self._workers for task in (w.task, w.watch) if task is not None}
        done, _ = ray.wait([*rungs, *tasks], num_returns=1, timeout=POLL_SECONDS)
        more, _ = ray.wait([*rungs, *tasks], num_returns=len(rungs) + len(tasks), timeout=0)
        come = {*done, *more}
        for task in come & rungs.keys():
            self._collect_rungs(rungs[task])
        heard = {id(tasks[task]): tasks[task] for task in come & tasks.keys()}
        found = [self._taken(worker) for worker in heard.values()]
        found += [self._late(w) for w in self._workers if self._is_late(w)]
        while self._again and self._free():
            self.submit(self._again.popleft())
        self._look_around()
        return [result for result in found if result is not None]

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

    def _taken(self, worker: _Worker) -> Result | None:
        """Take what a worker has sent: a result, that it is ready or there, or that it is gone."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(worker.watch if worker.task is None else worker.task)
        except RayTaskError as error:
            return self._refused(worker, error)
        except RayError as error:  # it died, or what it has sent was lost with its machine
            return self._replace_dead(worker, error)
        if worker.job is not None and worker.since is None:
            worker.since = time.monotonic()
            worker.task = worker.actor.score.remote(worker.job)
            log.info("candidate %d: begun on %s", worker.job.number, worker.place)
            return None
        worker.task, worker.job, worker.since = None, None, None
        if isinstance(answer, Result):
            return answer
        if not worker.is_ready:
            worker.place, self._stillbirths = str(answer), 0
            log.info("a worker on %s is ready", worker.place)
        return None

    def _refused(self, worker: _Worker, error: Any) -> None:
        """Take an error of ours from the worker's side: raised, unless others can go on."""
        if worker.is_ready or not self._has_others(worker):
            raise error.cause from error
        self._drop(worker, str(error.cause))

    def _has_others(self, worker: _Worker) -> bool:
        return any(w.is_ready for w in self._workers if w is not worker)

    def _drop(self, worker: _Worker, reason: str) -> None:
        """Go on without a worker that cannot be made."""
        self._kill(worker)
        self._workers.remove(worker)
        log.warning("%s; the search goes on with %d worker(s)", reason, len(self._workers))

    def _replace_dead(self, worker: _Worker, error: Exception) -> Result | None:
        """Replace a worker that is gone; its candidate is begun anew, or has failed."""
        job, reason = worker.job, " ".join(str(error).split())[:200]
        if not worker.is_ready:
            return self._retry_start(worker, reason)
        self._replace(worker)
        if job is None:
            return None
        if worker.since is None:  # it had not begun
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
        """Try again for a worker that died before it was ready, but not for ever."""
        self._stillbirths += 1
        if self._stillbirths < MAX_START_FAILURES:
            self._replace(worker)
            return
        if not self._has_others(worker):
            raise StudyError(
                f"workers must come up, {self._stillbirths} in a row died before: {reason}; look "
                "into Ray's logs (/tmp/ray/session_latest/logs), or take `engine: local`"
            )
        count, self._stillbirths = self._stillbirths, 0
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

    def _late(self, worker: _Worker) -> Result:
        """Break a candidate off: it would take as long elsewhere."""
        job, since = worker.job, worker.since
        assert job is not None
        assert since is not None
        seconds = time.monotonic() - since
        self._replace(worker)
        reason = f"took longer than workers.timeout, {self._section.timeout:g} s"
        return Result(job.number, Failure(FailureKind.TIMEOUT, reason), seconds)

    def _look_around(self) -> None:
        """Say when there is no worker at all."""
        now = time.monotonic()
        if any(w.is_ready for w in self._workers):
            self._last_seen = now
        elif now - self._last_seen > WARN_AFTER:
            self._last_seen = now
            log.warning(
                "no worker is there: waiting for %d with %g CPU(s) and %g GPU(s) each; add a "
                "machine by `ray start --address=...`, or lower workers.num",
                *(self._section.num, self._section.cpus_per_worker, self._gpus),
            )

    def close(self) -> None:
        """See `Workers`; a cluster that was started here ends."""
        for worker in self._workers:
            self._kill(worker)
        self._workers = []
        disconnect()


def _next_rung(actor: Any) -> Any:
    return actor.rung.options(concurrency_group=RUNGS).remote()
