"""A descent in the genes: Adam within their bounds, and averages of its iterates.

The tasks of a merge pull in opposite directions along the sum of its weights, so iterates zigzag
across while they progress along the rest; their average keeps the progress (Polyak and Juditsky,
SIAM J. Control Optim. 1992; measured in docs/experiments.md). Pure: knows no models and no losses,
and its state is plain JSON.

Source:
    Kingma and Ba, arXiv:1412.6980, Algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RATE = 0.05
"""Largest change of a gene in the first step, as a share of its interval."""
AVERAGED = 5
"""Iterates that are averaged."""
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-12


class Descent:
    """A descent from one genotype.

    Args:
        bounds: Gene -> (low, high), of the genes that have a slope.
        start: Gene -> number; others are ignored.
        rate: Share of a gene's interval that a step changes at most, at first.

    Attributes:
        steps: Number of steps taken.
    """

    def __init__(
        self,
        bounds: Mapping[str, tuple[float, float]],
        start: Mapping[str, float],
        rate: float = RATE,
    ) -> None:
        self._genes = tuple(bounds)
        self._low, self._high = np.array([bounds[gene] for gene in self._genes]).reshape(-1, 2).T
        self._rates = rate * (self._high - self._low)
        self._at = np.clip([start[gene] for gene in self._genes], self._low, self._high)
        self._mean = np.zeros_like(self._at)
        self._square = np.zeros_like(self._at)
        self._recent: deque[Floats] = deque(maxlen=AVERAGED)
        self.steps = 0

    @property
    def genotype(self) -> dict[str, float]:
        """The present iterate: gene -> number."""
        return self._named(self._at)

    @property
    def average(self) -> dict[str, float]:
        """The mean of the last iterates, at most `AVERAGED`; the start before the first step."""
        return self._named(np.mean(self._recent, axis=0) if self._recent else self._at)

    def step(self, slopes: Mapping[str, float]) -> None:
        """Take one step against the slopes of the loss.

        Args:
            slopes: Gene -> derivative of the loss; a missing one is 0.

        Raises:
            ValueError: If a slope is not finite.
        """
        gradient = np.array([slopes.get(gene, 0.0) for gene in self._genes])
        if not np.isfinite(gradient).all():
            worst = self._genes[int(np.flatnonzero(~np.isfinite(gradient))[0])]
            raise ValueError(
                f"slopes must be finite, got {slopes[worst]} for {worst}; the merged weights "
                "overflow, narrow the bounds of `space.weight`"
            )
        self.steps += 1
        self._mean = _FIRST * self._mean + (1 - _FIRST) * gradient
        self._square = _SECOND * self._square + (1 - _SECOND) * gradient**2
        mean = self._mean / (1 - _FIRST**self.steps)
        size = np.sqrt(self._square / (1 - _SECOND**self.steps))
        self._at = np.clip(self._at - self._rates * mean / (size + _TINY), self._low, self._high)
        self._recent.append(self._at)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values, numbers to the bit."""
        return {
            "steps": self.steps,
            "at": self._at.tolist(),
            "mean": self._mean.tolist(),
            "square": self._square.tolist(),
            "recent": [each.tolist() for each in self._recent],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `to_dict` of a descent in the same genes."""
        self.steps = int(state["steps"])
        self._at, self._mean, self._square = (
            np.array(state[name], dtype=float) for name in ("at", "mean", "square")
        )
        self._recent.clear()
        self._recent.extend(np.array(each, dtype=float) for each in state["recent"])

    def _named(self, numbers: Floats) -> dict[str, float]:
        return dict(zip(self._genes, numbers.tolist(), strict=True))
