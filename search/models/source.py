"""Where a model comes from that is to be evaluated: a directory, or a trial of a study.

What can be told without weights is checked when it is opened: folders, files, tokenizer, the
study's record and its parents. Only safetensors are read, and no code of a model is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ...evals.tasks.task_files import did_you_mean
from ...merge.engine.engine import MergeEngine
from ...merge.engine.resident import resident_dtype
from ...merge.parents.headers import read_tensors
from ..config.config import Config, ConfigError
from ..leaderboard.board import read_leaderboard
from ..storage.journal import JOURNAL, Journal
from ..study.parts import choose_device, load_tokenizer, open_parents
from ..study.resume import check_identity
from .export import choose_row

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model that has been found and not been loaded.

    Attributes:
        name: What results call it: the directory as given, or ``STUDY:TRIAL``.
        tokenizer: Its tokenizer.
        load: Load it, in eval mode, where it shall run.
    """

    name: str
    tokenizer: Any
    load: Callable[[], Any]


def open_source(given: str, *, device: str = "auto", dtype: str = "auto") -> ModelSource:
    """Find a model directory, or a trial of a study.

    Args:
        given: A Hugging Face directory; a study's folder, which stands for its winner; or
            ``STUDY:TRIAL``. A folder that exists wins over the reading as a trial.
        device: As torch names it; ``auto``: CUDA if it is there, or what the study says.
        dtype: float32, bfloat16, float16; ``auto``: as the files, or the study, have it.

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
    """A directory in the form of Hugging Face."""
    folder = Path(given)
    if not (folder / "config.json").is_file():
        what = "is an adapter, no model; merge it into its base first"
        if not (folder / ADAPTER).is_file():
            what = "holds no model (config.json is missing) and no study (study.journal is missing)"
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
            f"{given}: its configuration or tokenizer cannot be loaded ({_line(error)}); copy the "
            "tokenizer's files there; code that a model brings is never run"
        ) from error

    def load() -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else resident_dtype(dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        return model.to(place).eval()

    return ModelSource(given, tokenizer, load)


def _open_trial(study: Path, trial: int | None, device: str, dtype: str) -> ModelSource:
    """A candidate, merged again in memory when it is loaded; its export has the same weights."""
    row = choose_row(read_leaderboard(study), trial)
    manifest = Journal(study).begun
    config = Config.model_validate(manifest["config"])
    parents = open_parents(config)
    now = {"parents": parents.digests(), "architecture": dict(parents.config)}
    check_identity(manifest["identity"], now, study)
    tokenizer, recipe = load_tokenizer(parents), row.candidate.recipe
    place = choose_device(config) if device == "auto" else str(_device(device))

    def load() -> Any:
        engine = MergeEngine(
            parents,
            dtype=config.merge.dtype,
            device=place,
            device_map=config.merge.device_map,
            placement=config.merge.placement,
            compile=config.merge.compile,
            needs=frozenset().union(*(method.needs for method in recipe.methods)),
        )
        model: Any = engine.load(recipe).eval()
        return model if dtype == "auto" else model.to(resident_dtype(dtype))

    return ModelSource(f"{study}:{row.candidate.number}", tokenizer, load)


def _device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: If it is not here.
    """
    cards = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if cards else "cpu")
    try:
        found = torch.device(name)
        there = found.type != "cuda" or (found.index or 0) < cards
        if there:
            torch.empty(0, device=found)
            return found
        reason = f"this machine has {cards} CUDA devices"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = _line(error)
    raise ConfigError(f"`device` must be there, got `{name}` ({reason}); use `auto` or `cpu`")


def _line(error: BaseException) -> str:
    """The first line of an exception."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
