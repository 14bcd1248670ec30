"""`heterosis search --continue`: the configuration by which a study goes on. Knows journals."""

from __future__ import annotations

from pathlib import Path

from .config import Config
from .record import read_record
from .sections import ENDS


def continued(study: Path, more: int | None) -> Config:
    """Return the configuration by which a study goes on.

    Args:
        study: The study's results folder, which is kept.
        more: Candidates to propose beside those it has, whatever else ended it; None: go on to the
            end that its configuration names.

    Raises:
        StudyError: If there is no study, or it has not begun.
    """
    record = read_record(study)
    config = Config.model_validate(record.manifest["config"])
    config = config.model_copy(update={"results": study.absolute()})
    if more is None:
        return config
    known = sum(candidate.is_searched for candidate in record.candidates)
    ends = dict.fromkeys(ENDS) | {"trials": known + more}
    return config.model_copy(update={"search": config.search.model_copy(update=ends)})
