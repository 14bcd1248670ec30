"""How much of the best search score is luck: the best of many is best partly by chance.

Pure. Legend: K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, variance


def expected_inflation(values: Sequence[float], noise: float) -> float:
    """By how much the best of K search scores is expected to be above its own true value.

    Scores are taken for true values, normal over the candidates, plus independent normal noise; the
    best one is shrunken towards the mean by the noise's share of the variance: by nothing without
    noise, to the mean where noise explains all that they differ.

    Args:
        values: Search scores (K,) of all candidates that were scored on the same items.
        noise: Standard error of one candidate's score against the others on the same items.

    Source:
        Morris, JASA 78 (1983), pp. 47-55 (parametric empirical Bayes); as a remedy for the bias of
        a maximum, Efron, JASA 106 (2011), pp. 1602-1614.
    """
    if len(values) < 2 or noise <= 0:
        return 0.0
    spread = variance(values)
    share = 1.0 if spread <= noise**2 else noise**2 / spread
    return share * (max(values) - fmean(values))
