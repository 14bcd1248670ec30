"""State in sentences what a study found. Knows a leaderboard; draws no table."""

from __future__ import annotations

from collections.abc import Iterator

from ..format import score, signed
from ..study.variants import shows_loss
from .board import Leaderboard

TOP_GENES = 5
"""Genes that are named, of those that matter."""


def verdict_sentence(board: Leaderboard) -> str:
    """Say in one sentence what the search has found, on items that it never saw."""
    winner, baseline = board.winner, board.best_baseline
    if winner is None:
        best = f"; the best is {baseline.candidate.name}" if baseline else ""
        return f"No candidate has been scored yet, only baselines{best}."
    if winner.confirm is None or baseline is None or baseline.confirm is None:
        return f"{winner.candidate.name} leads the search items; nothing is confirmed yet."
    facts = (
        f"{score(winner.confirm.value)} against {score(baseline.confirm.value)} of the best "
        f"baseline ({baseline.candidate.name}) on {winner.confirm.n} items the search never saw"
    )
    name = winner.candidate.name
    if winner.verdict == "better":
        return f"{name} beats every baseline: {facts}."
    if winner.verdict == "worse":
        return f"{name} is worse than the best baseline: {facts}."
    return f"{name} is not shown to beat every baseline (not {winner.unbeaten}): {facts}."


def summary_lines(board: Leaderboard) -> Iterator[str]:
    """Say what the search has found, and how much of it to believe."""
    yield verdict_sentence(board)
    yield from caveat_lines(board)


def caveat_lines(board: Leaderboard) -> Iterator[str]:
    """Say how much of the winner is luck, which genes matter, and what it can do without."""
    winner = board.winner
    if winner is None or winner.search is None:
        return
    if board.selection_bias is not None:
        tried = sum(row.candidate.is_searched and row.search is not None for row in board.rows)
        yield (
            f"The best search score of {tried} candidates is expected to be {board.selection_bias:.4f} "
            "too high, by luck; confirm scores are free of that."
        )
    if board.reroll_scores and winner.confirm:
        values = [mask.value for mask in board.reroll_scores]
        yield (
            f"Under {len(values)} other masks {winner.candidate.name} has confirm scores of "
            f"{min(values):.4f} to {max(values):.4f} (its own: {score(winner.confirm.value)})."
        )
    yield from _gene_lines(board)


def _gene_lines(board: Leaderboard) -> Iterator[str]:
    ablation = board.ablation
    if ablation is None or not ablation.effects:
        return
    order = sorted(ablation.effects, key=lambda group: ablation.effects[group].value)
    matter = [group for group in order if shows_loss(ablation.effects[group])]
    worst = ", ".join(f"{g} ({signed(ablation.effects[g].value)})" for g in matter[:TOP_GENES])
    more = f" and {len(matter) - TOP_GENES} more" if len(matter) > TOP_GENES else ""
    yield (
        f"Of {len(order)} genes, set to the uniform merge's one at a time on the search items, "
        + (f"{len(matter)} matter: {worst}{more}." if matter else "none is shown to matter.")
    )
    if ablation.simplest is not None:
        yield (
            f"{len(ablation.simplest.reset)} of them can go together without a loss shown: "
            f"trial {ablation.simplest.number}."
        )
