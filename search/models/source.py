"""The model to evaluate or chat with: a directory, or a trial of a study.

All that needs no weights is checked on opening: folders, files, tokenizer, the study's record and
its parents. Only safetensors files are read, and a model's own code is never run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ...evals.tasks.task_files import did_you_mean
from ...merge.engine.engine import MergeEngine
from ...merge.engine.resident import resident_dtype
from ...merge.hints import reason
from ...merge.parents.headers import read_tensors
from ...merge.parents.parent_set import ParentSet
from ...merge.recipe.recipe import Recipe
from ..config.config import Config, ConfigError
from ..config.merge import MergeSection
from ..leaderboard.board import read_leaderboard
from ..storage.journal import JOURNAL, Journal
from ..study.parts import choose_device, load_tokenizer, open_parents
from ..study.resume import check_identity
from .export import choose_row

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model that is not loaded yet.

    Attributes:
        name: Its name in results: the directory as given, or ``STUDY:TRIAL``.
        tokenizer: Its tokenizer.
        load: Loads it in eval mode on its device.
    """

    name: str
    tokenizer: Any
    load: Callable[[], Any]


def open_source(given: str, *, device: str = "auto", dtype: str = "auto") -> ModelSource:
    """Open a model directory, or a trial of a study.

    Args:
        given: A Hugging Face directory; a study's folder, for its winner; or ``STUDY:TRIAL``. An
            existing folder of that name takes precedence over a trial.
        device: A torch device; ``auto``: the study's, or CUDA if there is any.
        dtype: float32, bfloat16, float16; ``auto``: that of the files or the study.

    Raises:
        ValueError: If there is no such model, it cannot be read, or its parents have changed.
    """
    if dtype != "auto":
        resident_dtype(dtype)
    study, _, trial = given.rpartition(":")
    if not Path(given).exists() and trial.isdigit() and study:
        _refuse_missing(study)
        return _open_trial(Path(study), int(trial), device, dtype)
    _refuse_missing(given)
    if (Path(given) / JOURNAL).is_file():
        return _open_trial(Path(given), None, device, dtype)
    return _open_folder(given, device, dtype)


def _refuse_missing(given: str) -> None:
    """Raise ConfigError if there is no such folder."""
    path = Path(given)
    if path.is_dir():
        return
    if path.exists():
        raise ConfigError(f"a model is a directory, got the file {given}; give its folder")
    near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise ConfigError(
        f"no such directory: {given}{did_you_mean(path.name, near) or ';'} give a Hugging Face "
        "directory, a study's results folder, or STUDY:TRIAL"
    )


def _open_folder(given: str, device: str, dtype: str) -> ModelSource:
    """Open a Hugging Face directory."""
    folder = Path(given)
    if not (folder / "config.json").is_file():
        what = "is an adapter, not a model; merge it into its base first"
        if not (folder / ADAPTER).is_file():
            what = "has neither a model (config.json) nor a study (study.journal)"
        raise ConfigError(f"{given} {what}; give a Hugging Face directory or a study's folder")
    read_tensors("model", folder)
    place = _device(device)
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{given}: its configuration or tokenizer cannot be loaded ({reason(error)}); copy the "
            "tokenizer's files there; a model's own code is never run"
        ) from error

    return ModelSource(given, tokenizer, partial(_load_folder, folder, place, dtype))


def _load_folder(folder: Path, place: torch.device, dtype: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype if dtype == "auto" else resident_dtype(dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model.to(place).eval()


def _open_trial(study: Path, trial: int | None, device: str, dtype: str) -> ModelSource:
    """Open a candidate; it is merged in memory on loading, with the same weights as its export."""
    row = choose_row(read_leaderboard(study), trial)
    manifest = Journal(study).begun
    config = Config.model_validate(manifest["config"])
    parents = open_parents(config)
    now = {"parents": parents.digests(), "architecture": dict(parents.config)}
    check_identity(manifest["identity"], now, study)
    place = choose_device(config) if device == "auto" else str(_device(device))
    load = partial(_load_candidate, config.merge, parents, row.candidate.recipe, place, dtype)
    return ModelSource(f"{study}:{row.candidate.number}", load_tokenizer(parents), load)


def _load_candidate(
    section: MergeSection, parents: ParentSet, recipe: Recipe, place: str, dtype: str
) -> Any:
    engine = MergeEngine(
        parents,
        dtype=section.dtype,
        device=place,
        device_map=section.device_map,
        placement=section.placement,
        compile=section.compile,
        needs=frozenset().union(*(method.needs for method in recipe.methods)),
    )
    model: Any = engine.load(recipe).eval()
    return model if dtype == "auto" else model.to(resident_dtype(dtype))


def _device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: If this machine does not have it.
    """
    cards = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if cards else "cpu")
    why = f"this machine has {cards} CUDA devices"
    try:
        device = torch.device(name)
        if device.type != "cuda" or (device.index or 0) < cards:
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = reason(error)
    raise ConfigError(f"`device` must exist, got `{name}` ({why}); use `auto` or `cpu`")
