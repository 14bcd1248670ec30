"""Choose the number of threads by measuring scoring passes. Knows torch only.

On a shared machine a second thread can make small models several times slower, so the real work is
timed with each number.
"""

import logging
import time
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)
# A larger count must be faster by this share; below it, spare cores are worth more.
_WORTHWHILE = 0.05


def choose_threads(
    run: Callable[[], None],
    candidates: Sequence[int],
    *,
    repeats: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return the number of torch threads that runs the work fastest, preferring fewer.

    Args:
        run: Work to time, such as a scoring pass over a few batches; called ``repeats`` times per
            candidate after a warm-up call.
        candidates: Thread counts to try, each at least 1.
        repeats: Timed calls per candidate; the fastest counts.
        clock: Function that returns seconds.

    Returns:
        One of ``candidates``; torch's number of threads is left unchanged.

    Raises:
        ValueError: If there are no candidates, or one is below 1.
    """
    if not candidates or min(candidates) < 1:
        raise ValueError(f"`candidates` must name counts of at least 1, got {list(candidates)}")
    import torch

    before = torch.get_num_threads()
    seconds: dict[int, float] = {}
    try:
        for count in sorted(set(candidates)):
            torch.set_num_threads(count)
            seconds[count] = _fastest(run, repeats, clock)
    finally:
        torch.set_num_threads(before)
    best = _choose(seconds)
    log.debug("threads: %s seconds, chosen %d", seconds, best)
    return best


def _fastest(run: Callable[[], None], repeats: int, clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of ``repeats`` calls after a warm-up call."""
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def _choose(seconds: dict[int, float]) -> int:
    """Return the smallest count that no larger one beats by a worthwhile share."""
    best = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < seconds[best] * (1 - _WORTHWHILE):
            best = count
    return best
