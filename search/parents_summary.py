"""Parents and their deltas in words and a table; advice on the size of the space.

Formats statistics that were computed elsewhere; reads no weights.
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
"""Trials per gene below which `check` advises a coarser space; a rule of thumb, not measured."""


def parents_line(parents: ParentSet) -> str:
    """Return that the parents match the base, and their sizes."""
    owners = ("base", *parents.names)
    sizes = ", ".join(f"{owner} {parents.bytes_of(owner) / 1e6:,.1f} MB" for owner in owners)
    return (
        f"parents: {', '.join(parents.names)} match the base: {len(parents.tensors)} tensors, "
        f"{parents.n_layers} layers, all finite ({sizes})"
    )


def delta_lines(statistics: DeltaStatistics) -> Iterator[str]:
    """Yield the delta statistics of each parent and each pair of parents."""
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
    """Return a rule from tensors to layer groups whose layer is a third of the depth: 0, 1, 2."""

    def third(tensor: str) -> LayerGroup:
        group = grouping.group(tensor)
        if group.layer is None:
            return group
        return LayerGroup(len(THIRDS) * group.layer // n_layers, group.kind)

    return third


def third_name(group: str) -> str:
    """Return ``early attn`` for ``layers.0.attn``; groups outside the layers keep their names."""
    parsed = LayerGroup.from_name(group)
    return group if parsed.layer is None else f"{THIRDS[parsed.layer]} {parsed.kind}"


def delta_table(statistics: DeltaStatistics, name_of: Callable[[str], str] = str) -> Iterator[str]:
    """Yield a table of the deltas, one line per layer group in model order.

    Args:
        statistics: Of the model; its groups are the rows.
        name_of: Layer group -> title of its row.
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
    """Return the next coarser `depth` as in a configuration; None if there is none.

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
    """Return advice if trials are few for the number of genes; None if they are enough."""
    if trials >= TRIALS_PER_GENE * genes:
        return None
    coarser = coarser_depth(depth, n_layers)
    remedy = f"use the coarser `depth: {coarser}`" if coarser else "search fewer parameters"
    return (
        f"advice: {trials} trials are few for {genes} genes; {remedy}, or at least "
        f"{TRIALS_PER_GENE * genes} trials ({TRIALS_PER_GENE} per gene)"
    )
