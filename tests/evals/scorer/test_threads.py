"""The number of threads is chosen by timing, and torch's number is left unchanged."""

import pytest
import torch
from heterosis.evals.scorer.threads import choose_threads


def chosen(seconds: dict[int, float]) -> int:
    """The choice when a call takes ``seconds[threads]``; no real time passes."""
    now = [0.0]

    def run() -> None:
        now[0] += seconds[torch.get_num_threads()]

    return choose_threads(run, list(seconds), clock=lambda: now[0])


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.5}, 2),
        ({1: 1.0, 2: 3.0}, 1),
        ({1: 1.0, 2: 0.97}, 1),  # not worth a core
        ({1: 1.0, 2: 0.8, 4: 0.79}, 2),
        ({2: 1.0, 1: 1.0}, 1),
    ],
)
def test_fastest_wins_and_fewer_wins_ties(seconds, best):
    assert chosen(seconds) == best


def test_torchs_count_is_put_back_also_after_an_error():
    before = torch.get_num_threads()
    chosen({1: 1.0, 2: 1.0})
    with pytest.raises(ZeroDivisionError):
        choose_threads(lambda: 1 // 0, [before + 1])  # type: ignore[arg-type,return-value]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("candidates", [[], [0, 1]])
def test_useless_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match="`candidates` must name counts of at least 1, got"):
        choose_threads(lambda: None, candidates)
