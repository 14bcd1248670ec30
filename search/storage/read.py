"""Read a study's journal for viewing: its manifest and candidates, in one pass.

Optuna's own reader builds every trial with its distributions and the sampler's state: a search that
continues needs them, at seconds of work for thousands of trials. This reader knows Optuna's line
format and takes only what a leaderboard shows. It writes nothing.
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
from .candidate import ATTRIBUTE, Candidate, with_trial
from .journal import JOURNAL, MANIFEST, damaged, no_study, not_begun
from .optuna_internals import CREATE_TRIAL, SET_STUDY_ATTRIBUTE


@dataclass(frozen=True)
class StudyRecord:
    """Contents of a journal.

    Attributes:
        manifest: The study's configuration, identity and machine.
        candidates: Finished candidates in order of number; recipes are decoded on first use.
    """

    manifest: Mapping[str, Any]
    candidates: tuple[Candidate, ...]


@dataclass
class _Attributes:
    candidate: Candidate


@dataclass
class _Line:
    """A line of the journal; fields that are not named here are ignored."""

    op_code: int
    user_attr: dict[str, Any] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    values: tuple[float, ...] | None = None
    user_attrs: _Attributes | None = None

    @property
    def sampler_values(self) -> tuple[float, ...]:
        """Values of the trial, as the sampler got them; none if it failed."""
        if self.state != TrialState.COMPLETE:
            return ()
        return self.values or (() if self.value is None else (self.value,))


_LINE = TypeAdapter(_Line)


def read_record(folder: Path) -> StudyRecord:
    """Read the study in a folder; an incomplete last line does not count.

    Raises:
        StudyError: If there is no study, it has not begun, or its journal is damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise no_study(folder)
    manifest: Mapping[str, Any] = {}
    candidates: list[Candidate] = []
    *lines, _ = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines, 1):
        try:
            line = _LINE.validate_json(text)
        except ValidationError as error:
            if number == len(lines):
                break
            reason = error.errors(include_url=False)[0]["msg"]
            raise damaged(path, f"line {number}: {reason}") from error
        if line.op_code == SET_STUDY_ATTRIBUTE:
            manifest = line.user_attr.get(MANIFEST, manifest)
        elif line.op_code == CREATE_TRIAL and line.user_attrs is not None:
            candidate = line.user_attrs.candidate
            place = len(candidates)
            candidates.append(with_trial(candidate, place, line.sampler_values, _decoder(text)))
    if not manifest:
        raise not_begun(folder)
    return StudyRecord(manifest, tuple(candidates))


def _decoder(text: bytes) -> Callable[[], Recipe]:
    """Return what decodes the recipe of a trial's line."""
    return lambda: Recipe.from_dict(json.loads(text)["user_attrs"][ATTRIBUTE]["recipe"])
