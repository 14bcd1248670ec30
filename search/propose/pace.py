"""The pace of a search: the number of results that a proposal knows, by its place alone.

With several workers, which results are in depends on the clock; the candidates of a study must not.
So candidates come in blocks of `generation` + `ahead`. The first `ahead` of a block are proposed
while the block before is still being scored, so that no worker waits for its last candidates; the
others wait for all of it. Each is raced against the incumbents that its proposal knew. The
candidates are the same for any number of workers.

CMA-ES learns from the `generation` candidates of its newest distribution; those `ahead` are drawn
from the distribution before, and replace failed ones.

Many workers need more pending candidates, so both numbers follow from `workers.most`, which a study
keeps, and not from the number of workers at the time (measurements: `docs/workers.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.scoring import WorkersSection
from ..config.search import SearchSection
from ..storage.candidate import Candidate
from .samplers import SAMPLERS

GENERATION = 16
"""Candidates of a generation, for samplers without generations."""
AHEAD = 0.25
"""Share of a generation that is proposed ahead: it keeps the workers busy while the last candidates
are scored, but CMA-ES does not learn from it (a fifth of all)."""
FED = 4
"""Number of workers that a sampler's default generation and this share ahead keep busy."""
ROUNDS_AHEAD = {False: 1, True: 2}
"""Candidates ahead per worker if there are more workers, by whether candidates are raced: then the
slowest takes about three times the average, and the others go on meanwhile."""


@dataclass(frozen=True)
class Pace:
    """The pace of proposals.

    Attributes:
        generation: Candidates of a block that are proposed from all results of the blocks before.
        ahead: Candidates of a block that are proposed first, without results of the block before.
    """

    generation: int = 1
    ahead: int = 0

    def n_known(self, place: int) -> int:
        """Return the number of searched candidates that a proposal knows.

        Args:
            place: Its place among the searched candidates, from 0.
        """
        size = self.generation + self.ahead
        block, within = divmod(place, size)
        return max(block - (within < self.ahead), 0) * size


SEQUENTIAL = Pace()
"""One candidate after another, each proposed from all results before it."""


def pace_of(section: SearchSection, workers: WorkersSection | None, genes: int) -> Pace:
    """Return the pace of a search: generations if `workers` is configured, else one by one.

    Args:
        section: Names the sampler, whose generation is the default.
        workers: May give another generation, or more workers than that keeps busy.
        genes: Number of genes of the space.
    """
    if workers is None:
        return SEQUENTIAL
    most = most_workers(workers)
    size = workers.generation or _default_generation(section, genes)
    if workers.generation is None and not _given_population(section) and most > FED:
        size = max(size, most)
    rounds = ROUNDS_AHEAD[bool(section.racing)] if most > FED else 0
    ahead = max(math.ceil(AHEAD * size), rounds * most)
    return Pace(size, ahead if workers.ahead is None else workers.ahead)


def most_workers(workers: WorkersSection) -> int:
    """Return the number of workers for which generations are planned."""
    return workers.most or max(workers.num, FED)


def lay_out(
    section: SearchSection,
    workers: WorkersSection | None,
    genes: int,
    begun: Mapping[str, Any] | None = None,
) -> tuple[SearchSection, WorkersSection | None]:
    """Return both sections with the consequences of the number of workers written out.

    Args:
        section: Names the sampler; its population becomes a generation, unless it is given.
        workers: As configured.
        genes: Number of genes of the space.
        begun: Configuration with which the study began, whose number of workers is kept.
    """
    if workers is None:
        return section, None
    if workers.most is None:
        before = (begun or {}).get("workers")
        most = most_workers(workers) if before is None else before.get("most") or FED
        workers = workers.model_copy(update={"most": most})
    key, size = _population(section), pace_of(section, workers, genes).generation
    if key and workers.generation is None and size > _default_generation(section, genes):
        arguments = section.sampler_args | {key: size}
        section = section.model_copy(update={"sampler_args": arguments})
    return section, workers


def _default_generation(section: SearchSection, genes: int) -> int:
    row = SAMPLERS.get(section.sampler)
    if given := _given_population(section):
        return given
    return row.default_population(genes) if row and row.default_population else GENERATION


def _population(section: SearchSection) -> str | None:
    """Return the argument for the sampler's population; an unknown sampler is refused later."""
    row = SAMPLERS.get(section.sampler)
    return row and row.population


def _given_population(section: SearchSection) -> int | None:
    return section.sampler_args.get(_population(section) or "")


def first_searched(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return all candidates without the searched ones after the first ``count``, in order."""
    first, n_searched = [], 0
    for candidate in candidates:
        n_searched += candidate.is_searched
        if not candidate.is_searched or n_searched <= count:
            first.append(candidate)
    return first
