"""`heterosis export`: a candidate as a model directory, re-scored from its files.

Knows the study's record and how to rebuild engine and scorer from it. The saved files must
reproduce the candidate's scores exactly, or they are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ...evals.scorer.scorer import Scorer
from ...evals.scores.fingerprint import differing
from ...evals.scores.scores import ItemScores
from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import CONFIRM, SEARCH
from ...merge.engine.resident import resident_dtype
from ...merge.files.export import export_model
from ...merge.files.writer import check_goal, shard_bytes
from ..config.config import Config
from ..evaluate.racing import open_race, rungs_up_to
from ..leaderboard.board import Leaderboard, Row, read_leaderboard
from ..storage.journal import StudyError
from ..storage.read import read_record
from ..study.build import build_engine, make_scorer, set_threads
from ..study.finalists import search_items
from ..study.parts import Parts, choose_device, open_parts
from ..study.resume import PACKAGES, check_identity, identity
from .card import licence_texts, model_card
from .lm_eval_command import CONFIRM_SAMPLES, confirm_commands, confirm_samples, portable_commands
from .reproduce import REPRODUCE_FILE, reproduction


class ExportMismatchError(RuntimeError):
    """The saved files do not reproduce the candidate's scores; nothing is kept."""


@dataclass(frozen=True)
class Exported:
    """An exported candidate.

    Attributes:
        folder: The model directory.
        row: The candidate's row.
        splits: Splits on which the saved files reproduced the stored scores exactly.
        commands: Shell lines with which lm-eval reproduces the confirm scores.
    """

    folder: Path
    row: Row
    splits: tuple[str, ...]
    commands: tuple[str, ...]


def export(
    study: Path, out: Path, trial: int | None = None, max_shard_size: str = "5GB"
) -> Exported:
    """Export the winner, or one trial, of a study.

    Args:
        study: The study's results folder.
        out: Directory to write; must not exist, or be empty.
        trial: Trial number; default: the leaderboard's best searched candidate.
        max_shard_size: Largest file, as in transformers.

    Raises:
        ValueError: If the trial cannot be exported, ``out`` is taken, or the parents changed.
        ExportMismatchError: If the saved files give different scores.
    """
    check_goal(out)
    shard_bytes(max_shard_size)
    board = read_leaderboard(study)
    row = choose_row(board, trial)
    manifest = read_record(study).manifest
    config = Config.model_validate(manifest["config"])
    parts = open_parts(config, manifest["config"])
    check_identity(manifest["identity"], identity(parts), study, but=("versions",))
    stored = _stored(study, row)
    commands = confirm_commands(parts, out.resolve())
    machine = manifest["machine"]
    recipe = row.candidate.recipe
    metrics = {task.name: task.metric.key for task in parts.tasks}
    engine = build_engine(parts)
    engine.load(recipe)
    folder = export_model(
        engine.targets,
        recipe,
        parts.parents,
        out,
        card=model_card(
            board,
            row,
            parts.parents,
            portable_commands(parts),
            metrics,
            config.merge.dtype,
            config.merge.tokenizer,
        ),
        tokenizer=config.merge.tokenizer,
        extra_files={
            **licence_texts(parts.parents),
            CONFIRM_SAMPLES: confirm_samples(parts),
            REPRODUCE_FILE: reproduction(board, row, parts.parents, portable_commands(parts)),
        },
        max_shard_size=max_shard_size,
        provenance={"study": board.name, "trial": row.candidate.number},
        verify=lambda saved: _verify(parts, engine.model, saved, stored, machine, study, row),
    )
    return Exported(folder, row, tuple(stored), commands)


def choose_row(board: Leaderboard, trial: int | None) -> Row:
    """Return the row of a trial, or the winner's.

    Raises:
        StudyError: If there is no such trial, or it has no scores.
    """
    if trial is None:
        if board.winner is None:
            raise StudyError(f"{board.folder}: no candidate is scored yet; run the search first")
        return board.winner
    rows = {row.candidate.number: row for row in board.rows}
    if trial not in rows:
        raise StudyError(
            f"{board.folder}: there is no trial {trial}; numbers are 0 to {len(rows) - 1}"
        )
    if rows[trial].search is None:
        raise StudyError(f"trial {trial} has no scores: {rows[trial].candidate.failure}")
    return rows[trial]


def _stored(study: Path, row: Row) -> dict[str, ItemScores]:
    store = ItemStore(study / "items")
    number, stored = row.candidate.number, {}
    for split in (SEARCH, CONFIRM) if row.confirm else (SEARCH,):
        is_search = split == SEARCH
        scores = search_items(store, row.candidate) if is_search else store.read(number, split)
        if scores is None:
            raise StudyError(
                f"{study}: the {split} items of trial {number} are not in the item store, so the "
                "export could not be verified; the search command scores them again"
            )
        stored[split] = scores
    return stored


def _verify(
    parts: Parts,
    scored: PreTrainedModel,
    saved: Path,
    stored: dict[str, ItemScores],
    machine: dict[str, Any],
    study: Path,
    row: Row,
) -> None:
    """Load the saved files and score them: every item score must equal the stored one."""
    model: PreTrainedModel = type(scored).from_pretrained(
        saved, dtype=resident_dtype(parts.config.merge.dtype), local_files_only=True
    )
    model.to(torch.device(choose_device(parts.config)))  # pyright: ignore[reportArgumentType]
    scorer = make_scorer(parts, model)
    set_threads(parts, scorer, machine["threads"])
    scorer.path = machine["path"]
    is_raced = not row.candidate.is_baseline and _opens_race(parts, scorer, study)
    for split, expected in stored.items():
        in_rungs = is_raced and split == SEARCH
        scores = rungs_up_to(scorer, expected.n) if in_rungs else scorer.score(split)
        _refuse_other_scorer(expected, scores)
        if not np.array_equal(scores.value, expected.value):
            wrong = int((scores.value != expected.value).sum())
            raise ExportMismatchError(
                f"the saved files must reproduce the candidate's scores, but {wrong} of "
                f"{expected.n} {split} items differ; was the study made on another machine or with "
                "other versions (see recipe.json)?"
            )


def _opens_race(parts: Parts, scorer: Scorer, study: Path) -> bool:
    """Plan the rungs of the study's race; False if it has none."""
    candidates = read_record(study).candidates
    store, section = ItemStore(study / "items"), parts.config.search
    return open_race(scorer, store, candidates, section, parts.objective) is not None


def _refuse_other_scorer(stored: ItemScores, scores: ItemScores) -> None:
    """Raise ExportMismatchError if the fingerprints differ in more than versions."""
    changes = differing(stored.fingerprint, scores.fingerprint)
    names = [name for name in changes if name not in PACKAGES] if stored.fingerprint else []
    if names:
        raise ExportMismatchError(
            f"the saved files must be scored as the candidate was, but {', '.join(names)} differ; "
            "restore what the study was started with"
        )
