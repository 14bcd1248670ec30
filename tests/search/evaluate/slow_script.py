"""The command line with workers that take their time: `slow_script.py SECONDS FILE ARGUMENTS...`.

Until the file is there each worker sleeps so long before each candidate: a search on tiny models
lasts until machines have come and gone, and costs the processor nothing.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from heterosis.search import run
from heterosis.search.cli.main import main
from heterosis.search.evaluate.workers import Job, Keep, Result, Score
from heterosis.search.study.worker import WorkerSetup

SECONDS, HURRY = float(sys.argv.pop(1)), Path(sys.argv.pop(1))


@dataclass(frozen=True)
class SlowSetup:
    """Builds what the product's setup builds, and sleeps before each use of it."""

    setup: WorkerSetup
    seconds: float
    hurry: Path

    def __call__(self) -> Score:
        score = self.setup()

        def slowly(job: Job, keep: Keep) -> Result:
            if not self.hurry.exists():
                time.sleep(self.seconds)
            return score(job, keep)

        return slowly


run.WorkerSetup = lambda *given: SlowSetup(WorkerSetup(*given), SECONDS, HURRY)  # type: ignore[misc]
main()
