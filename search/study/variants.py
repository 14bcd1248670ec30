"""Variants of a winner, and what they show: which of its genes and masks matter.

Pure: scores nothing, and imports no torch (ablation.py scores them; a leaderboard reads them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...evals.stats.comparison import Difference
from ...merge.recipe.recipe import Recipe
from ..propose.samplers import trial_seed
from ..propose.space import Params, Space
from ..storage.candidate import REROLL, RESET, SIMPLIFIED, VARIANTS, Candidate

LEVEL = 0.05
"""One-sided level at which a variant counts as worse than the winner."""
MOST_RESETS = 40
"""Largest number of genes that are reset one at a time; above it, curves are reset as a whole."""


@dataclass(frozen=True)
class Variant:
    """A recipe that differs from the winner's in its mask or in some genes.

    Attributes:
        kind: One of `candidate.VARIANTS`.
        name: Names the difference.
        recipe: The variant's recipe.
        reset: Groups of genes set as in the uniform merge.
    """

    kind: str
    name: str
    recipe: Recipe
    reset: tuple[str, ...] = ()


def rerolls(winner: Candidate, count: int) -> list[Variant]:
    """Return the winner with other masks; none if its masks drop nothing."""
    recipe = winner.recipe
    rates = [rate for c in recipe.coefficients.values() for rate in c.drop_rates]
    if not any(method.is_random for method in recipe.methods) or not any(rates):
        return []
    seeds = [trial_seed(recipe.mask_seed, -1 - roll) for roll in range(count)]
    return [
        Variant(REROLL, f"{winner.name}, mask {roll}", replace(recipe, mask_seed=seed))
        for roll, seed in enumerate(seeds, 1)
    ]


@dataclass(frozen=True)
class Ablation:
    """Results of a winner's variants.

    Attributes:
        of: The winner.
        rerolls: The winner with other masks.
        effects: Group of genes -> paired difference, on the search items, of the winner with it
            reset to the winner; negative if the group matters.
        simplest: The variant with most genes reset that is not significantly worse than the winner;
            None if there is none.
    """

    of: Candidate
    rerolls: tuple[Candidate, ...] = ()
    effects: Mapping[str, Difference] = field(default_factory=dict)
    simplest: Candidate | None = None


def gene_groups(space: Space) -> dict[str, tuple[str, ...]]:
    """Return the groups of genes and choices that are reset together, as `curves`."""
    return curves([*space.genes, *space.choices])


def curves(genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return name -> genes: each gene alone, or curve by curve if there are over MOST_RESETS."""
    genes = list(genes)
    if len(genes) <= MOST_RESETS:
        return {gene: (gene,) for gene in genes}
    groups: dict[str, tuple[str, ...]] = {}
    for gene in genes:
        head, _, point = gene.rpartition(".")
        curve = head if point.isdigit() else gene
        groups[curve] = (*groups.get(curve, ()), gene)
    return groups


def resets(winner: Candidate, params: Params, space: Space) -> list[Variant]:
    """Return the winner with each group of genes, in turn, reset to the uniform merge.

    Groups that have the uniform merge's values already are left out.
    """
    variants = []
    for group in gene_groups(space):
        recipe = without(params, [group], space)
        if recipe != winner.recipe:
            variants.append(Variant(RESET, f"{winner.name} without {group}", recipe, (group,)))
    return variants


def without(params: Params, groups: Sequence[str], space: Space) -> Recipe:
    """Return the recipe of a genotype with groups of genes reset to the uniform merge."""
    members = gene_groups(space)
    names = {gene for group in groups for gene in members[group]}
    plain = plain_params(space)
    return space.decode({gene: plain[gene] if gene in names else v for gene, v in params.items()})


def plain_params(space: Space) -> dict[str, float | str]:
    """Return the uniform merge's genotype, or the nearest to it in the space.

    Weights of 1/P, no slope, lambda 1, every parent kept, the first method; all other genes at
    their lower bounds.
    """
    shares = dict.fromkeys(space.parents, 1.0 / len(space.parents))
    exact = space.constant(shares, space.methods[0])
    if exact is not None:
        return exact
    values: dict[str, float | str] = {name: names[0] for name, names in space.choices.items()}
    for gene, (low, high) in space.genes.items():
        head = gene.partition(".")[0]
        wanted = {"weight": shares[space.parents[0]], "lambda": 1.0, "slope": 0.0, "keep": 1.0}
        value = wanted.get("weight" if head == "alpha" else head, low)
        values[gene] = min(max(value, low), high)
    return values


def simplify(
    effects: Mapping[str, Difference], is_fine: Callable[[Sequence[str]], bool | None]
) -> tuple[str, ...]:
    """Return as many groups as can be reset together without a loss shown, least harmful first.

    Bisection over their number: it tries about log2 of the number of groups.

    Args:
        effects: Group -> difference of the winner with it reset to the winner.
        is_fine: Whether the winner with groups reset shows no loss; None ends the bisection.
    """
    order = sorted(effects, key=lambda group: (-effects[group].value, group))
    fine, worse = 0, len(order) + 1
    tried = sum(not shows_loss(effects[group]) for group in order)
    while worse - fine > 1:
        tried = tried if fine < tried < worse else (fine + worse) // 2
        answer = is_fine(order[:tried])
        if answer is None:
            break
        fine, worse = (tried, worse) if answer else (fine, tried)
        tried = (fine + worse) // 2
    return tuple(order[:fine])


def ablation_of(
    winner: Candidate,
    candidates: Sequence[Candidate],
    compare: Callable[[Candidate], Difference],
) -> Ablation:
    """Return the results of the winner's variants among the finished candidates.

    Args:
        winner: The winner.
        candidates: All finished candidates.
        compare: Returns the paired difference of a variant to the winner.
    """
    scored = [c for c in candidates if c.of == winner.number and c.value is not None]
    kinds = {kind: [c for c in scored if c.kind == kind] for kind in VARIANTS}
    fine = [c for c in kinds[SIMPLIFIED] if not shows_loss(compare(c))]
    return Ablation(
        winner,
        rerolls=tuple(kinds[REROLL]),
        effects={c.reset[0]: compare(c) for c in kinds[RESET]},
        simplest=max(fine, key=lambda c: len(c.reset), default=None),
    )


def shows_loss(difference: Difference) -> bool:
    """Return whether a variant is significantly worse than the winner, one-sided at LEVEL."""
    return difference.value < 0 and difference.p / 2 < LEVEL
