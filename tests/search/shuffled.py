"""Workers that hand back results in any order."""

import io
import random

from heterosis.search.config.load import load_config
from heterosis.search.evaluate.workers import score_job
from heterosis.search.run import run_search
from heterosis.search.study.progress import PlainReporter
from rich.console import Console


class Shuffled:
    """Real workers as far as a study can tell: jobs overlap and end in any order."""

    def __init__(self, bench, race, keep, count: int, seed: int) -> None:
        self._bench, self._race, self._keep, self._count = bench, race, keep, count
        self._chance, self._jobs, self.most = random.Random(seed), [], 0

    @property
    def idle(self) -> int:
        return self._count - len(self._jobs)

    def submit(self, job) -> None:
        assert self.idle
        self._jobs.append(job)
        self.most = max(self.most, len(self._jobs))

    def wait(self):
        job = self._jobs.pop(self._chance.randrange(len(self._jobs)))
        return [score_job(self._bench, self._race, job, self._keep)]

    def close(self) -> None:
        self._jobs.clear()


def run_shuffled(path, results, count: int, seed: int = 0, should_stop=lambda: False):
    """Run a search with several workers; return its outcome and the workers."""
    config = load_config(path).model_copy(update={"results": results})
    made = []

    def make_workers(bench, race, keep):
        made.append(Shuffled(bench, race, keep, count, seed))
        return made[-1]

    reporter = PlainReporter(Console(file=io.StringIO()))
    return run_search(config, reporter, should_stop, make_workers), made


def raced(small_search, **changes):
    """A search of which half of the candidates lose their races."""
    given = {"trials": 14, "racing": {"first": 10, "alpha": 0.3}} | changes
    return small_search.write(search=given, workers={"engine": "local"})
