"""How many threads a scoring pass should use: measured, never assumed. Knows torch only.

On a shared machine a second thread can make small models several times slower, so the count is
chosen by running the real work.
"""

import logging
import time
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)
# A larger count must win by this share: below it, spare cores are worth more than the gain.
_WORTHWHILE = 0.05


def choose_threads(
    run: Callable[[], None],
    candidates: Sequence[int],
    *,
    repeats: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return the torch thread count that runs the work fastest, preferring fewer.

    Args:
        run: The work, such as one scoring pass over a few batches; called ``repeats`` times per
            candidate after one warm-up call.
        candidates: Thread counts to try, each at least 1.
        repeats: Timed calls per candidate; the fastest counts.
        clock: Seconds; a test may bring its own.

    Returns:
        One of ``candidates``. Torch's thread count is left as it was: the caller sets it.

    Raises:
        ValueError: If there is no candidate, or one below 1.
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
    """Seconds of the fastest of ``repeats`` calls, after one that is not timed."""
    run()
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def _choose(seconds: dict[int, float]) -> int:
    """The smallest count that no larger one beats by a worthwhile share."""
    best = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < seconds[best] * (1 - _WORTHWHILE):
            best = count
    return best
