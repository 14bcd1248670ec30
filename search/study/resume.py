"""Resume a study: check that its identity is unchanged; the configuration of `--continue`."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...evals.scores.fingerprint import tokenizer_digest
from ..config.config import Config
from ..config.search import ENDS
from ..storage.journal import StudyError
from ..storage.read import read_record
from .parts import Parts, choose_device

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "optuna", "cmaes")
"""Packages whose versions determine a study's results."""


def identity(parts: Parts) -> dict[str, Any]:
    """Return everything that must be unchanged for a study to be resumed.

    The parts of the scorer's fingerprint (``requests``) are added once there is a scorer.
    """
    config = parts.config
    return {
        "parents": parts.parents.digests(),
        "tokenizer": config.merge.tokenizer,
        "tokenizer_digest": tokenizer_digest(parts.tokenizer),
        "chat": config.eval.chat | {"template_sha256": parts.chat.template_sha256},
        "space": parts.space.to_dict(),
        "stages": [stage.to_dict() for stage in parts.stages if stage.name] or None,
        "baselines": [[b.name, b.recipe.digest] for b in parts.baselines],
        "tasks": {task.name: task.fingerprint for task in parts.tasks},
        "guard": {task.name: task.fingerprint for task in parts.guard},
        "objective": parts.objective.to_dict(),
        "racing": config.search.racing and config.search.racing.model_dump(),
        "sampler": [config.search.sampler, config.search.sampler_args, config.search.run_seed],
        "warm_start": config.search.warm_start and str(config.search.warm_start),
        "generation": config.workers and asdict(parts.stages[-1].pace),
        "dtype": config.merge.dtype,
        "device": torch.device(choose_device(config)).type,
        "batch_size": config.eval.batch_size,
        "batch_tokens": config.eval.batch_tokens,
        "architecture": dict(parts.parents.config),
        "versions": versions(),
    }


def check_identity(
    known: Mapping[str, Any], now: Mapping[str, Any], folder: Path, but: tuple[str, ...] = ()
) -> None:
    """Check that a study is resumed with its own ingredients.

    Args:
        known: The identity in the study's manifest.
        now: The identity now, or part of it.
        folder: The study's folder, for the message.
        but: Keys that may differ.

    Raises:
        StudyError: If a key differs.
    """
    plain = json.loads(json.dumps(now))  # as read from the journal: tuples are lists
    different = [key for key in now if key not in but and known.get(key) != plain[key]]
    if different:
        key = different[0]
        raise StudyError(
            f"{folder}: {', '.join(different)} must not change within a study; "
            f"{_change(known.get(key), plain[key], key)}; restore the old value, or search in "
            "another folder with --results"
        )


def _change(was: Any, now: Any, where: str) -> str:
    """Describe the first change, with the full path of its key."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(k for k in [*was, *now] if was.get(k) != now.get(k))
        return _change(was.get(key), now.get(key), f"{where}.{key}")
    return f"{where} was {_short(was)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def versions() -> dict[str, str]:
    """Return the versions of PACKAGES."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def continued(study: Path, more: int | None) -> Config:
    """Return the configuration with which `search --continue` resumes a study.

    Args:
        study: The study's results folder.
        more: Number of candidates to add, whatever ended the search; None: search up to the budget
            of its configuration.

    Raises:
        StudyError: If there is no study, or it has not begun.
    """
    record = read_record(study)
    config = Config.model_validate(record.manifest["config"])
    config = config.model_copy(update={"results": study.absolute()})
    if more is None:
        return config
    searched = sum(candidate.is_searched for candidate in record.candidates)
    ends = dict.fromkeys(ENDS) | {"trials": searched + more}
    return config.model_copy(update={"search": config.search.model_copy(update=ends)})
