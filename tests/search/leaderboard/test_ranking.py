"""How much of the best search score is luck: the estimate against simulated searches."""

import numpy as np
import pytest
from heterosis.search.leaderboard.ranking import selection_bias

SEARCHES, CANDIDATES, NOISE = 400, 100, 0.02


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.04])
def test_it_is_what_simulated_searches_lose_on_new_items(spread):
    chance = np.random.default_rng(7)
    true = chance.normal(0.6, spread, (SEARCHES, CANDIDATES))
    seen = true + chance.normal(0.0, NOISE, true.shape)
    best = seen.argmax(axis=1)
    lost = seen.max(axis=1) - true[np.arange(SEARCHES), best]
    said = [selection_bias(row.tolist(), NOISE) for row in seen]
    assert np.mean(said) == pytest.approx(lost.mean(), rel=0.1)
    assert lost.mean() > 0.01, "without it a leaderboard sells luck"


def test_without_noise_or_rivals_there_is_none():
    assert selection_bias([0.4, 0.5, 0.6], 0.0) == 0.0
    assert selection_bias([0.5], 0.1) == 0.0
    assert selection_bias([0.5, 0.5, 0.5], 0.1) == 0.0
