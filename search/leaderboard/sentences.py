"""What a study shows, in sentences. Knows a leaderboard; draws no table."""

from __future__ import annotations

from collections.abc import Iterator

from ..format import score, signed
from ..study.variants import shows_loss
from .board import Leaderboard

TOP_GENES = 5
"""Most genes that are named."""


def verdict_sentence(board: Leaderboard) -> str:
    """Return the verdict on the winner in one sentence, from items that the search never saw."""
    winner, baseline = board.winner, board.best_baseline
    if winner is None:
        best = f"; the best is {baseline.candidate.name}" if baseline else ""
        return f"No candidate has been scored yet, only baselines{best}."
    name = winner.candidate.name
    if winner.confirm is None or baseline is None or baseline.confirm is None:
        return f"{name} leads on the search items; nothing is confirmed yet."
    scores = (
        f"{score(winner.confirm.value)} against {score(baseline.confirm.value)} for the best "
        f"baseline ({baseline.candidate.name}) on {winner.confirm.n} items the search never saw"
    )
    if winner.verdict == "better":
        return f"{name} beats every baseline: {scores}."
    if winner.verdict == "worse":
        return f"{name} is worse than the best baseline: {scores}."
    return f"{name} is not shown to beat every baseline (not {winner.unbeaten}): {scores}."


def summary_lines(board: Leaderboard) -> Iterator[str]:
    """Return the verdict and its caveats, a sentence each."""
    yield verdict_sentence(board)
    yield from caveat_lines(board)


def caveat_lines(board: Leaderboard) -> Iterator[str]:
    """Return the selection bias, the effect of other masks, and the ablation, a sentence each."""
    winner = board.winner
    if winner is None or winner.search is None:
        return
    if board.selection_bias is not None:
        scored = sum(row.candidate.is_searched and row.search is not None for row in board.rows)
        yield (
            f"Selection bias (winner's curse): the best of {scored} search scores is expected to "
            f"be {board.selection_bias:.4f} too high; confirm scores are free of it."
        )
    if board.reroll_scores and winner.confirm:
        values = [other.value for other in board.reroll_scores]
        yield (
            f"With {len(values)} other masks {winner.candidate.name} has confirm scores from "
            f"{min(values):.4f} to {max(values):.4f} (with its own: {score(winner.confirm.value)})."
        )
    yield from _ablation_lines(board)


def _ablation_lines(board: Leaderboard) -> Iterator[str]:
    if board.ablation is None or not board.ablation.effects:
        return
    effects, simplest = board.ablation.effects, board.ablation.simplest
    losses = [group for group in effects if shows_loss(effects[group])]
    losses.sort(key=lambda group: effects[group].value)
    worst = ", ".join(f"{group} ({signed(effects[group].value)})" for group in losses[:TOP_GENES])
    more = f" and {len(losses) - TOP_GENES} more" if len(losses) > TOP_GENES else ""
    verb = "matters" if len(losses) == 1 else "matter"
    yield (
        f"Ablation: {len(effects)} genes were reset to the uniform merge one at a time and scored "
        "on the search items; "
        + (f"{len(losses)} {verb}: {worst}{more}." if losses else "none is shown to matter.")
    )
    if simplest is not None:
        yield (
            f"{len(simplest.reset)} of them can be reset together without a significant loss: "
            f"trial {simplest.number}."
        )
