"""Generations: what the sampler knows when it proposes a candidate, by the candidate's place alone.

With several workers it depends on the clock which results are in; a study must not. So candidates
come in blocks of `generation` + `ahead`. The first `ahead` of a block are proposed while the block
before is still being scored, so that no worker waits for its last ones; the others wait for it.
They all are raced against the best that their proposal knew. One worker or many: the same set.

CMA-ES moves on by the `generation` candidates that were drawn from its newest distribution; those
`ahead` are draws of the distribution before, and stand in for failed ones.

Many workers need more in flight, so both numbers follow from `workers.most`, which a study keeps,
and never from how many workers there are: `docs/workers.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.scoring import WorkersSection
from ..config.search import SearchSection
from ..storage.candidate import Candidate

GENERATION = 16
"""Candidates of a generation for samplers that have none of their own."""
GENETIC = 50
"""Optuna's default of `population_size`."""
AHEAD = 0.25
"""Share of a generation that is proposed ahead: what fills the workers while the last are scored,
at the price of a fifth of the candidates that CMA-ES does not learn from."""
FED = 4
"""Workers that a sampler's own generation and such a share ahead keep busy."""
ROUNDS_AHEAD = {False: 1, True: 2}
"""Candidates ahead for each of more workers, by whether candidates are raced: then the slowest
takes some three times as long as one does on average, and the others go on meanwhile."""
POPULATIONS = {
    "CmaEsSampler": "popsize",
    "NSGAIISampler": "population_size",
    "NSGAIIISampler": "population_size",
}
"""Samplers with generations of their own, and their argument of that size."""


@dataclass(frozen=True)
class Pace:
    """How proposals and results alternate.

    Attributes:
        generation: Candidates that are proposed from all results so far.
        ahead: Candidates proposed before these without the results of the block before.
    """

    generation: int = 1
    ahead: int = 0

    def n_known(self, place: int) -> int:
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
        workers: May give another, or more workers than that keeps busy.
        genes: Numbers that the space varies.
    """
    if workers is None:
        return SEQUENTIAL
    most = most_workers(workers)
    size = workers.generation or _own_generation(section, genes)
    if workers.generation is None and not _population(section) and most > FED:
        size = max(size, most)
    rounds = ROUNDS_AHEAD[bool(section.racing)] if most > FED else 0
    ahead = max(math.ceil(AHEAD * size), rounds * most)
    return Pace(size, ahead if workers.ahead is None else workers.ahead)


def most_workers(workers: WorkersSection) -> int:
    """How many workers generations are laid out for."""
    return workers.most or max(workers.num, FED)


def lay_out(
    section: SearchSection,
    workers: WorkersSection | None,
    genes: int,
    begun: Mapping[str, Any] | None = None,
) -> tuple[SearchSection, WorkersSection | None]:
    """Both sections with what follows from the number of workers written out, to be kept.

    Args:
        section: The sampler; is given a population as large as a generation, unless it has one.
        workers: As configured.
        genes: Numbers that the space varies.
        begun: The configuration that the study was begun with: it is laid out as it was then.
    """
    if workers is None:
        return section, None
    if workers.most is None:
        before = (begun or {}).get("workers")
        most = most_workers(workers) if before is None else before.get("most") or FED
        workers = workers.model_copy(update={"most": most})
    key, size = POPULATIONS.get(section.sampler), pace_of(section, workers, genes).generation
    if key and workers.generation is None and size > _own_generation(section, genes):
        arguments = section.sampler_args | {key: size}
        section = section.model_copy(update={"sampler_args": arguments})
    return section, workers


def _own_generation(section: SearchSection, genes: int) -> int:
    if given := _population(section):
        return given
    if section.sampler == "CmaEsSampler":
        # Hansen, arXiv:1604.00772, Eq. 48: the default that cmaes takes.
        return 4 + math.floor(3 * math.log(max(genes, 1)))
    return GENETIC if section.sampler in POPULATIONS else GENERATION


def _population(section: SearchSection) -> int | None:
    """What `sampler_args` says of it."""
    return section.sampler_args.get(POPULATIONS.get(section.sampler, ""))


def first_searched(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """All candidates but the searched ones after the first ``count``, in their order."""
    found, seen = [], 0
    for candidate in candidates:
        seen += candidate.is_searched
        if not candidate.is_searched or seen <= count:
            found.append(candidate)
    return found
