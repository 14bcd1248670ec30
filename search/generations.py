"""Generations: what the sampler knows when it proposes a candidate, by the candidate's place alone.

With several workers it depends on the clock which results are in; a study must not. So candidates
come in blocks of `generation` + `ahead`. The first `ahead` of a block are proposed while the block
before is still being scored, so that no worker waits for its last ones; the others wait for it.
They all are raced against the best that their proposal knew. One worker or many: the same set.

CMA-ES moves on by the `generation` candidates that were drawn from its newest distribution; those
`ahead` are draws of the distribution before, and stand in for failed ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .candidate import Candidate
from .scoring_sections import WorkersSection
from .sections import SearchSection

GENERATION = 16
"""Candidates of a generation for samplers that have none of their own."""

GENETIC = 50
"""Optuna's default of `population_size`."""

AHEAD = 0.25
"""Share of a generation that is proposed ahead: what fills the workers while the last are scored,
at the price of a fifth of the candidates that CMA-ES does not learn from."""


@dataclass(frozen=True)
class Pace:
    """How proposals and results alternate.

    Attributes:
        generation: Candidates that are proposed from all results so far.
        ahead: Candidates proposed before these without the results of the block before.
    """

    generation: int = 1
    ahead: int = 0

    def known(self, place: int) -> int:
        """How many searched candidates the sampler knows when it proposes one.

        Args:
            place: The one's place among the searched candidates, from 0.
        """
        size = self.generation + self.ahead
        block, within = divmod(place, size)
        return max(block - (within < self.ahead), 0) * size


SEQUENTIAL = Pace()
"""One candidate after another, each proposed from the results of all before it."""


def pace_of(section: SearchSection, workers: WorkersSection | None, genes: int) -> Pace:
    """One candidate after another; in generations where workers are configured.

    Args:
        section: The sampler, whose generation is taken.
        workers: May give another.
        genes: Numbers that the space varies.
    """
    if workers is None:
        return SEQUENTIAL
    size = workers.generation or _own_generation(section, genes)
    ahead = math.ceil(AHEAD * size) if workers.ahead is None else workers.ahead
    return Pace(size, ahead)


def _own_generation(section: SearchSection, genes: int) -> int:
    arguments = section.sampler_args
    if section.sampler == "CmaEsSampler":
        # Hansen, arXiv:1604.00772, Eq. 48: the default that cmaes takes.
        return arguments.get("popsize") or 4 + math.floor(3 * math.log(max(genes, 1)))
    if section.sampler.startswith("NSGA"):
        return arguments.get("population_size", GENETIC)
    return GENERATION


def first_searched(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """All candidates but the searched ones after the first ``count``, in their order."""
    found, seen = [], 0
    for candidate in candidates:
        seen += candidate.is_searched
        if not candidate.is_searched or seen <= count:
            found.append(candidate)
    return found
