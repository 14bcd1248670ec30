"""Ablate the winner: which of its genes, masks and parents matter."""

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
"""Genes that are reset one at a time; where there are more, curves are reset as a whole."""


@dataclass(frozen=True)
class Variant:
    """A recipe that differs from the winner's in what is asked about.

    Attributes:
        kind: One of `candidate.VARIANTS`.
        name: Says what differs.
        recipe: What is merged.
        reset: Groups of genes that are as in the uniform merge.
    """

    kind: str
    name: str
    recipe: Recipe
    reset: tuple[str, ...] = ()


def rerolls(winner: Candidate, count: int) -> list[Variant]:
    """The winner with other masks; none where it draws none."""
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
    """What is known of a winner's variants.

    Attributes:
        of: The winner.
        rerolls: The winner under other masks.
        effects: Group of genes -> paired difference, on the search items, of the winner without
            it to the winner: negative where the group matters.
        simplest: The smallest recipe that is not shown to be worse than the winner; None where
            nothing can be reset, or it is not known.
    """

    of: Candidate
    rerolls: tuple[Candidate, ...] = ()
    effects: Mapping[str, Difference] = field(default_factory=dict)
    simplest: Candidate | None = None


def gene_groups(space: Space) -> dict[str, tuple[str, ...]]:
    """What is reset together: each gene and choice alone, or whole curves where they are many."""
    return curves([*space.genes, *space.choices])


def curves(genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Genes by themselves, or by curve where they are more than MOST_RESETS: name -> genes."""
    genes = list(genes)
    if len(genes) <= MOST_RESETS:
        return {gene: (gene,) for gene in genes}
    found: dict[str, tuple[str, ...]] = {}
    for gene in genes:
        head, _, point = gene.rpartition(".")
        curve = head if point.isdigit() else gene
        found[curve] = (*found.get(curve, ()), gene)
    return found


def resets(winner: Candidate, params: Params, space: Space) -> list[Variant]:
    """The winner with each group of genes, in turn, as it is in the uniform merge.

    Groups that are there already are left out.
    """
    found = []
    for group in gene_groups(space):
        recipe = without(params, [group], space)
        if recipe != winner.recipe:
            found.append(Variant(RESET, f"{winner.name} without {group}", recipe, (group,)))
    return found


def without(params: Params, groups: Sequence[str], space: Space) -> Recipe:
    """The recipe of a genotype with groups of genes reset."""
    members = gene_groups(space)
    names = {gene for group in groups for gene in members[group]}
    plain = plain_params(space)
    return space.decode({gene: plain[gene] if gene in names else v for gene, v in params.items()})


def plain_params(space: Space) -> dict[str, float | str]:
    """The uniform merge's genotype, or what is nearest to it in the space.

    Weights of 1/P in the middle, no slope, lambda 1, no parent left out, all else at its lowest;
    the first method.
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


def dissect(
    winner: Candidate,
    params: Params,
    space: Space,
    count: int,
    score: Callable[[Variant], Candidate | None],
    compare: Callable[[Candidate], Difference],
) -> None:
    """Score a winner's variants: other masks, genes reset one at a time, then the most together.

    Args:
        winner: Whom to take apart.
        params: Its genotype.
        space: Where that lies.
        count: Masks to try.
        score: Scores a variant, or finds its scores; None: it is time to end.
        compare: Difference of a variant to the winner on the search items.
    """
    effects = {}
    first = [*rerolls(winner, count), *resets(winner, params, space)]
    for variant in first:
        candidate = score(variant)
        if candidate is None:
            return
        if variant.kind == RESET and candidate.value is not None:
            effects[variant.reset[0]] = compare(candidate)

    def is_fine(groups: Sequence[str]) -> bool | None:
        name = f"{winner.name}, {len(groups)} of {len(gene_groups(space))} genes reset"
        recipe = without(params, groups, space)
        candidate = score(Variant(SIMPLIFIED, name, recipe, tuple(groups)))
        if candidate is None:
            return None
        return candidate.value is not None and not shows_loss(compare(candidate))

    simplify(effects, is_fine)


def simplify(
    effects: Mapping[str, Difference], is_fine: Callable[[Sequence[str]], bool | None]
) -> tuple[str, ...]:
    """The most groups, least harmful first, that can be reset together without a loss shown.

    Bisection over how many: as many trials as the number of groups has bits.

    Args:
        effects: Group -> difference of the winner without it to the winner.
        is_fine: Whether the winner without these groups is not shown to be worse; None ends it.
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
    """Read back what the variants of a winner say."""
    own = [c for c in candidates if c.of == winner.number and c.value is not None]
    kinds = {kind: [c for c in own if c.kind == kind] for kind in VARIANTS}
    fine = [c for c in kinds[SIMPLIFIED] if not shows_loss(compare(c))]
    return Ablation(
        winner,
        rerolls=tuple(kinds[REROLL]),
        effects={c.reset[0]: compare(c) for c in kinds[RESET]},
        simplest=max(fine, key=lambda c: len(c.reset), default=None),
    )


def shows_loss(difference: Difference) -> bool:
    """Whether a variant is shown to be worse than the winner, one-sided at LEVEL."""
    return difference.value < 0 and difference.p / 2 < LEVEL
