"""The model card of an export: what it is, how well it does, and how to check that.

Knows leaderboard rows; writes Markdown with the front matter of a Hugging Face model card.
"""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from .config import Config
from .format import p_value, recipe_line, score, signed
from .leaderboard import Leaderboard, Row
from .views import verdict_sentence


def model_card(board: Leaderboard, row: Row, config: Config, commands: Sequence[str]) -> str:
    """Return README.md of an exported candidate."""
    front = {
        "library_name": "transformers",
        "tags": ["merge", "heterosis"],
        "base_model": [config.base.name, *(path.name for path in config.parents.values())],
    }
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {board.name}: {row.candidate.name}",
        f"A merge found by heterosis in the study "
        f"`{board.name}`: `{recipe_line(row.candidate.recipe)}`. The full recipe is in "
        "`recipe.json`.",
        "## Parents",
        _parents(config),
        "## Scores",
        _scores(board, row),
        _comparison(board, row),
        "## How to check",
        "lm-eval's own command line, on the confirm items (which the search never saw); `$MODEL` "
        "is this directory, `$TASKS` the folder of the study's task files:",
        "```sh\n" + "\n".join(commands) + "\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _parents(config: Config) -> str:
    lines = [f"- base: `{config.base.name}`"]
    lines += [f"- {name}: `{path.name}`" for name, path in config.parents.items()]
    return "\n".join(lines)


def _scores(board: Leaderboard, row: Row) -> str:
    lines = ["| task | search ± SE | confirm ± SE |", "| --- | --- | --- |"]
    for task in board.tasks:
        search, confirm = row.candidate.scores.get(task), row.confirm_tasks.get(task)
        lines.append(
            f"| {task} | {score(search.value, search.se) if search else '-'} "
            f"| {score(confirm.value, confirm.se) if confirm else '-'} |"
        )
    for task, guard in row.guard.items():
        lines.append(f"| {task} (guard) | - | {score(guard.value, guard.se)} |")
    return "\n".join(lines)


def _comparison(board: Leaderboard, row: Row) -> str:
    lines = [verdict_sentence(board)] if row is board.winner else []
    for other, difference in (
        (board.best_parent, row.to_parent),
        ("the uniform merge", row.to_uniform),
    ):
        if difference is not None:
            lines.append(
                f"Paired difference to {other} on {difference.n} confirm items: "
                f"{signed(difference.value)} ± {difference.se:.4f} (p {p_value(difference.p)})."
            )
    return "\n".join(lines)
