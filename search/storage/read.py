"""A study's journal, read for looking at it: its manifest and candidates, at one go.

Optuna's own reader builds every trial, with its distributions and whatever a sampler has kept: what
a search needs that goes on, and seconds of work for thousands of trials. This one knows how Optuna
writes a line, and takes from it what a leaderboard shows. It changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from pydantic import TypeAdapter, ValidationError

from ...merge.recipe.recipe import Recipe
from .candidate import ATTRIBUTE, Candidate, Kept
from .journal import JOURNAL, MANIFEST, StudyError, damaged, not_begun

_STUDY_ATTRIBUTE, _TRIAL = 2, 4
"""Operations of Optuna's journal that are looked at: a study's attribute is set, a trial added."""


@dataclass(frozen=True)
class StudyRecord:
    """What a journal says.

    Attributes:
        manifest: What was searched, with what; empty before the study has begun.
        candidates: All that are finished, in order of number; recipes are decoded when asked for.
    """

    manifest: Mapping[str, Any]
    candidates: tuple[Candidate, ...]


@dataclass
class _Attributes:
    candidate: Kept


@dataclass
class _Line:
    """A line of the journal; what is not named here is not read."""

    op_code: int
    user_attr: dict[str, Any] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    values: tuple[float, ...] | None = None
    user_attrs: _Attributes | None = None

    @property
    def told(self) -> tuple[float, ...]:
        """What the sampler was told of a trial."""
        if self.state != TrialState.COMPLETE:
            return ()
        return self.values or (() if self.value is None else (self.value,))


_LINE = TypeAdapter(_Line)


def read_record(folder: Path) -> StudyRecord:
    """Read the study in a folder; a last line that is not written whole does not count.

    Raises:
        StudyError: If there is none, it has not begun, or its journal is damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise StudyError(f"{folder}: holds no study ({JOURNAL} is missing)")
    manifest: Mapping[str, Any] = {}
    candidates: list[Candidate] = []
    *whole, _ = path.read_bytes().split(b"\n")
    for place, text in enumerate(whole, 1):
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            if place == len(whole):
                break
            reason = error.errors(include_url=False)[0]["msg"]
            raise damaged(path, f"line {place}: {reason}") from error
        if line.op_code == _STUDY_ATTRIBUTE:
            manifest = line.user_attr.get(MANIFEST, manifest)
        elif line.op_code == _TRIAL and line.user_attrs is not None:
            kept = line.user_attrs.candidate
            candidates.append(kept.candidate(len(candidates), line.told, _recipe_of(text)))
    if not manifest:
        raise not_begun(folder)
    return StudyRecord(manifest, tuple(candidates))


def _recipe_of(text: bytes) -> Callable[[], Recipe]:
    """What decodes the recipe of a trial's line."""
    return lambda: Recipe.from_dict(json.loads(text)["user_attrs"][ATTRIBUTE]["recipe"])
