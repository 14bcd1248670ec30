"""What base and parents are to each other, in lines and a table for a person.

Knows delta statistics and layer groups by their names; computes none and reads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean

from ..merge.parents.parent_set import ParentSet
from ..merge.recipe.groups import Grouping, LayerGroup
from ..merge.statistics.gram import SMALL_DELTA, DeltaStatistics
from .config.space import Depth

THIRDS = ("early", "middle", "late")
"""Names of the thirds of the depth, by layers."""
TRIALS_PER_GENE = 5
"""Fewest trials a gene before `check` advises a coarser space; a rule of thumb, not measured."""


def parents_line(parents: ParentSet) -> str:
    """Say that the parents fit, and how large they are."""
    owners = ("base", *parents.names)
    sizes = ", ".join(f"{owner} {parents.bytes_of(owner) / 1e6:,.1f} MB" for owner in owners)
    return (
        f"parents: {', '.join(parents.names)} match the base: {len(parents.tensors)} tensors, "
        f"{parents.n_layers} layers, all finite ({sizes})"
    )


def delta_lines(statistics: DeltaStatistics) -> Iterator[str]:
    """Say how far each parent is from the base, and each pair from each other."""
    for name, norm in statistics.relative_norm.items():
        yield (
            f"delta {name}: relative norm {norm:.2%} of the base, mean |delta| "
            f"{statistics.mean_abs_delta[name]:.1e}, {statistics.changed_share[name]:.0%} of the "
            f"entries changed, {statistics.small_share[name]:.0%} below {SMALL_DELTA:g}; "
            f"DARE is safe to drop rate {statistics.safe_drop_rate[name]:.2f}"
        )
    for pair, cosine in statistics.cosine.items():
        yield (
            f"deltas {' and '.join(pair)}: cosine {cosine:.2f}, "
            f"sign conflict {statistics.sign_conflict[pair]:.0%}"
        )


def by_thirds(grouping: Grouping, n_layers: int) -> Callable[[str], LayerGroup]:
    """Return a rule that puts the layers of one kind together by thirds of the depth.

    The layer of what it returns is the third: 0, 1 or 2.
    """

    def group(tensor: str) -> LayerGroup:
        place = grouping.group(tensor)
        if place.layer is None:
            return place
        return LayerGroup(len(THIRDS) * place.layer // n_layers, place.kind)

    return group


def third_name(group: str) -> str:
    """Return ``early attn`` for ``layers.0.attn``; groups outside the layers keep their names."""
    place = LayerGroup.from_name(group)
    return group if place.layer is None else f"{THIRDS[place.layer]} {place.kind}"


def delta_table(statistics: DeltaStatistics, name_of: Callable[[str], str] = str) -> Iterator[str]:
    """Yield a table of the deltas, one line per layer group in model order.

    Args:
        statistics: Of the model; its groups are the rows.
        name_of: Layer group -> what the row is called.
    """
    parents = list(statistics.relative_norm)
    pairs = "mean of pairs" if len(parents) > 2 else "pair"
    header = ["layer group"]
    for parent in parents:
        header += [f"{parent}: norm", "safe drop"]
    header += [f"cosine ({pairs})", "sign conflict"] if len(parents) > 1 else []
    order = sorted(statistics.groups, key=lambda name: LayerGroup.from_name(name).order)
    rows = [[name_of(name), *_cells(statistics.groups[name])] for name in order]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        first, *rest = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(["  " + first, *rest])


def _cells(group: DeltaStatistics) -> Iterator[str]:
    for parent, norm in group.relative_norm.items():
        yield f"{norm:.2%}"
        yield f"{group.safe_drop_rate[parent]:.2f}"
    if group.cosine:
        yield f"{fmean(group.cosine.values()):.2f}"
        yield f"{fmean(group.sign_conflict.values()):.0%}"


def coarser_depth(depth: Depth, n_layers: int) -> str | None:
    """Return the next coarser `depth` as it is written in a configuration; None if there is none.

    The number of control points or blocks is halved; free layers become at most five points.
    """
    if depth.shape == "constant":
        return None
    if depth.shape == "layers":
        shape, count = "control_points", min(5, n_layers // 2)
    else:
        shape, count = depth.shape, min(depth.count, n_layers) // 2
    return f"{{{shape}: {count}}}" if count > 1 else "constant"


def budget_advice(trials: int, genes: int, depth: Depth, n_layers: int) -> str | None:
    """Advise where trials are few for the dimension of the space; None where they are enough."""
    if trials >= TRIALS_PER_GENE * genes:
        return None
    coarser = coarser_depth(depth, n_layers)
    remedy = f"take the coarser `depth: {coarser}`" if coarser else "search fewer parameters"
    return (
        f"advice: {trials} trials are few for {genes} genes; {remedy}, or at least "
        f"{TRIALS_PER_GENE * genes} trials ({TRIALS_PER_GENE} a gene)"
    )
