"""P-values and intervals of paired differences, for many candidates at once.

Pure: arrays in, arrays out; knows no task, no model and no objective. scipy is imported inside the
tests that need it: `scipy.special` costs 0.1 s, `scipy.stats` a second of CPU time, most of what a
leaderboard takes. Legend: C candidates, n items, t tasks, B draws.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXACT_BELOW = 60
"""Most discordant items for which unequal steps are tested exactly; above it the normal
approximation is within 0.002 of the exact p-value near 0.05."""
STATES = 1_000_000
"""Most sums that the exact test keeps in memory."""
LEVEL = 0.95
"""Coverage of every interval."""
BLOCK = 2**22
"""Most numbers (of 8 bytes) in a block of draws."""
KEPT = 2**25
"""Most bytes of a task's draws that are cached for the next comparison of n items."""
_Z = 1.959963984540054  # normal quantile at (1 + LEVEL) / 2


def normal_p(z: float) -> float:
    """Return the two-sided p-value of a standard normal number."""
    return math.erfc(abs(z) / math.sqrt(2))


def binomial_p(wins: NDArray[np.int64], losses: NDArray[np.int64]) -> Floats:
    """Return p of the exact two-sided sign test, wins and losses (C,); McNemar's for 0/1 items."""
    from scipy.special import bdtr

    fewer = np.minimum(wins, losses)
    return np.minimum(2 * bdtr(fewer, wins + losses, 0.5), 1.0)


def sign_flip_p(
    wins: NDArray[np.int64], losses: NDArray[np.int64], steps: Floats
) -> tuple[float, str]:
    """Test that wins and losses (t,), each worth its task's step (t,), are equally likely.

    Returns:
        Two-sided p and its test: ``mcnemar`` if steps are equal, ``sign-flip`` (exact) if few items
        are discordant, else ``normal``.
    """
    discordant = wins + losses
    used = steps[discordant > 0]
    if used.size == 0 or np.allclose(used, used[0], rtol=1e-9):
        return float(binomial_p(wins.sum(), losses.sum())), "mcnemar"
    observed = float((steps * (wins - losses)).sum())
    if discordant.sum() <= EXACT_BELOW and np.prod(discordant + 1.0) <= STATES:
        return _exact_sign_flip(observed, discordant, steps), "sign-flip"
    return normal_p(observed / math.sqrt(float((steps**2 * discordant).sum()))), "normal"


def _exact_sign_flip(observed: float, discordant: NDArray[np.int64], steps: Floats) -> float:
    """Return the share of sign assignments whose sum is at least as far from 0 as ``observed``."""
    sums, chances = np.zeros(1), np.ones(1)
    for m, step in zip(discordant, steps, strict=True):
        k = np.arange(m + 1)
        sums = np.add.outer(sums, step * (2 * k - m)).ravel()
        halves = np.array([math.comb(int(m), i) / 2 ** int(m) for i in range(m + 1)])
        chances = np.multiply.outer(chances, halves).ravel()
    far = np.abs(sums) >= abs(observed) * (1 - 1e-9)
    return min(float(chances[far].sum()), 1.0)


def wilcoxon_p(moves: Floats, alternative: str = "two-sided") -> Floats:
    """Return p of Wilcoxon's signed-rank test of each row of differences (C, n).

    Differences of 0 are left out (scipy's ``zero_method='wilcox'``), as in McNemar's test: they say
    nothing about the direction, and without them the test of few items is exact, which Pratt's
    ranks would lose. Exact up to 50 non-zero differences without ties, else normal.

    Returns:
        p (C,); 1 if all differences are 0.
    """
    from scipy.stats import wilcoxon

    test: Any = wilcoxon
    out = np.ones(moves.shape[0])
    sizes = np.sort(np.abs(moves), axis=1)
    distinct = (sizes[:, :1] > 0).all(axis=1) & (np.diff(sizes, axis=1) > 0).all(axis=1)
    if distinct.any():
        out[distinct] = test(moves[distinct], alternative=alternative, axis=1).pvalue
    for row in np.flatnonzero(~distinct):
        some = moves[row][moves[row] != 0]
        if some.size:
            out[row] = test(some, alternative=alternative).pvalue
    return out


def resampled(n: int, draws: int, seed: int, stratum: int) -> Iterator[Floats]:
    """Yield how often each of n items occurs in each of B draws with replacement, in blocks (b, n).

    Equal arguments give equal draws, so models are resampled in pairs.
    """
    rows = max(BLOCK // n, 1)
    if n * draws <= KEPT:
        counts = _cached_counts(n, draws, seed, stratum)
        yield from (counts[i : i + rows].astype(np.float64) for i in range(0, draws, rows))
        return
    for block, start in enumerate(range(0, draws, rows)):
        yield _counts(n, min(rows, draws - start), (seed, stratum, block)).astype(np.float64)


@lru_cache(maxsize=4)
def _cached_counts(n: int, draws: int, seed: int, stratum: int) -> NDArray[np.uint8]:
    counts = _counts(n, draws, (seed, stratum)).astype(np.uint8)
    counts.setflags(write=False)
    return counts


def _counts(n: int, draws: int, entropy: tuple[int, ...]) -> NDArray[np.int64]:
    picks = np.random.default_rng(entropy).integers(0, n, size=(draws, n))
    picks += np.arange(draws)[:, None] * n
    return np.bincount(picks.ravel(), minlength=draws * n).reshape(draws, n)


def percentile(
    drawn: Floats, value: Floats, freedom: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """Return p and both ends of the expanded percentile bootstrap, each (C,).

    Draws of few items are too narrow, so the percentiles are those that give Student's interval for
    normal items. The p-value is the level at which an end is 0.

    Args:
        drawn: Differences in each draw (C, B).
        value: Differences on all items (C,).
        freedom: Degrees of freedom, items minus tasks (C,).

    Source:
        Hesterberg, What Teachers Should Know about the Bootstrap, Am. Stat. 69 (2015), sec. 4.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    freedom = np.maximum(freedom, 1)
    narrow = np.sqrt(freedom / (freedom + 1))
    p = 2 * stdtr(freedom, -np.abs(ndtri(_share_below_0(drawn))) * narrow)
    low, high = value.copy(), value.copy()
    for few in np.unique(freedom):
        of = freedom == few
        tail = ndtr(-stdtrit(few, (1 + LEVEL) / 2) * math.sqrt((few + 1) / few))
        low[of], high[of] = np.quantile(drawn[of], (tail, 1 - tail), axis=1)
    return p, np.minimum(low, value), np.maximum(high, value)


def _share_below_0(drawn: Floats) -> Floats:
    """Return the share of draws (C, B) below 0, half of the ties included; never 0 or 1."""
    near = 1e-12 * np.abs(drawn).max(axis=1, keepdims=True)
    below = (drawn < -near).sum(axis=1) + 0.5 * (np.abs(drawn) <= near).sum(axis=1)
    return np.clip(below, 0.5, drawn.shape[1] - 0.5) / drawn.shape[1]


def student_interval(
    value: Floats, se: Floats, freedom: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Return ``value`` -+ Student's t times ``se``, with n - t degrees of freedom; each (C,)."""
    from scipy.special import stdtrit

    half = stdtrit(np.maximum(freedom, 1), (1 + LEVEL) / 2) * se
    return value - half, value + half


def adjusted_wald(
    wins: NDArray[np.int64], losses: NDArray[np.int64], n: NDArray[np.int64], steps: Floats
) -> tuple[float, float]:
    """Return the interval of a difference of 0/1 items; wins, losses, items, steps per task (t,).

    One win and one loss, shared by the tasks, are added: they keep the coverage if few items are
    discordant.

    Source:
        Bonett and Price, Adjusted Wald Confidence Interval for a Difference of Binomial
        Proportions Based on Paired Data, J. Educ. Behav. Stat. 37 (2012).
    """
    extra = 1 / max(n.size, 1)
    size = n + 2 * extra
    share = (wins - losses) / size
    variance = ((wins + losses + 2 * extra) / size - share**2) / size
    weight = steps * n
    value, centre = float((steps * (wins - losses)).sum()), float((weight * share).sum())
    half = _Z * math.sqrt(float((weight**2 * variance).sum()))
    return min(centre - half, value), max(centre + half, value)
