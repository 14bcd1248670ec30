"""Warm start: a former study's best recipes as the first candidates of a new one.

Knows journals, item stores and a study's parts. Only recipes are taken; they are scored again. They
are written into the new study's manifest, so it resumes without the former folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...evals.scores.scores import ItemScores
from ...evals.scores.store import ItemStore
from ...evals.tasks.splits import CONFIRM, GUARD, SEARCH
from ...merge.parents.parent_set import BASE
from ...merge.recipe.recipe import Recipe
from ..propose.encode import expressed
from ..propose.space import Space
from ..propose.stages import KEY
from ..storage.candidate import Candidate
from ..storage.journal import JOURNAL, StudyError
from ..storage.read import read_record
from .finalists import finalists
from .parts import Parts

TAKEN = 5
"""Largest number of recipes taken; the default number of finalists."""


@dataclass(frozen=True)
class WarmStart:
    """Recipes of a former study.

    Attributes:
        study: Its folder.
        recipes: Candidate's name and recipe, the best first; parents by the new study's names.
    """

    study: str
    recipes: tuple[tuple[str, Recipe], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values for the manifest."""
        recipes = [[name, recipe.to_dict()] for name, recipe in self.recipes]
        return {"study": self.study, "recipes": recipes}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> WarmStart:
        """Read `to_dict` back."""
        recipes = ((name, Recipe.from_dict(recipe)) for name, recipe in kept["recipes"])
        return cls(kept["study"], tuple(recipes))


def settle_warm_start(parts: Parts, known: Mapping[str, Any]) -> WarmStart | None:
    """Return a search's warm start: read once, then taken from the study's own manifest.

    Args:
        parts: The parts of the search.
        known: The study's manifest; empty at the start.

    Raises:
        StudyError: As `read_warm_start`.
    """
    if parts.config.search.warm_start is None:
        return None
    if known:
        return WarmStart.from_dict(known[KEY])
    return read_warm_start(parts.config.search.warm_start, parts)


def read_warm_start(former: Path, parts: Parts) -> WarmStart:
    """Read the best recipes of a former study.

    By search scores alone, as its confirm scores may be of this study's search items. Raced
    candidates and recipes outside this study's space are left out.

    Raises:
        StudyError: If the study does not exist, is this one, has other parents or no recipe in the
            space, or its search has seen items that this study confirms on.
    """
    if former.resolve() == parts.config.results_folder.resolve():
        raise StudyError(
            f"`search.{KEY}` must be another study than this one, got {former}; leave it out, or "
            f"continue that study: heterosis search --continue {former}"
        )
    if not (former / JOURNAL).is_file():
        raise StudyError(
            f"`search.{KEY}` must be the folder of a study, got {former}, which holds none "
            f"({JOURNAL} is missing); give the folder that a search printed, such as results/NAME"
        )
    record = read_record(former)
    names = _names(record.manifest["identity"]["parents"], parts.parents.digests(), former)
    ranked = [c for c in finalists(record.candidates, len(record.candidates)) if not c.raced]
    if not ranked:
        raise StudyError(
            f"`search.{KEY}`: {former} has no searched candidate that was scored on all items; "
            "leave it out, or continue that search"
        )
    _refuse_seen_items(former, ranked[0], parts)
    recipes = _expressed(ranked, names, parts.space)
    if not recipes:
        raise StudyError(
            f"`search.{KEY}`: `space` includes none of the {len(ranked)} candidates of {former}; "
            "leave it out, or change `space` (methods, `depth`, `modules`, bounds) or "
            "`merge.layer_groups` so that it does"
        )
    study = record.manifest["config"]["name"]
    return WarmStart(str(former), tuple((f"{c.name} of {study}", r) for c, r in recipes))


def _names(was: Mapping[str, str], now: Mapping[str, str], former: Path) -> dict[str, str]:
    """Return former name -> name now of base and parents, matched by the digests of their files.

    Raises:
        StudyError: If they are not the same models.
    """
    left, names = dict(now), {}
    for name, digest in was.items():
        same = [m for m, d in left.items() if d == digest and (m == BASE) == (name == BASE)]
        if not same:
            raise StudyError(
                f"`search.{KEY}` must be a study of the same base and parents, but `{name}` of "
                f"{former} is none of {', '.join(now)} here; leave it out, or search with the "
                "models of that study"
            )
        names[name] = name if name in same else same[0]
        del left[names[name]]
    if left:
        raise StudyError(
            f"`search.{KEY}` must be a study of the same base and parents, but {former} has no "
            f"`{next(iter(left))}`; leave it out, or search with the models of that study"
        )
    return names


def _refuse_seen_items(former: Path, candidate: Candidate, parts: Parts) -> None:
    """Raise StudyError if the former search has seen confirm or guard items of this study."""
    scores = ItemStore(former / "items").read(candidate.number, SEARCH)
    if scores is None:
        raise StudyError(
            f"`search.{KEY}`: {former} has lost the items of {candidate.name}, so it is unknown "
            "which items its search has seen; the search command there scores them again"
        )
    for task in (*parts.tasks, *parts.guard):
        held_out = {*task.doc_ids.get(CONFIRM, ()), *task.doc_ids.get(GUARD, ())}
        seen = set(_docs(scores, task.name)) & held_out
        if seen:
            raise StudyError(
                f"`search.{KEY}`: the search of {former} has seen {len(seen)} of the "
                f"{len(held_out)} items of {task.name} that this study keeps to confirm, so their "
                "scores would be biased; take the `splits` and tasks of that study, or leave it out"
            )


def _docs(scores: ItemScores, task: str) -> Iterator[int]:
    if task in scores.tasks:
        index = scores.tasks.index(task)
        yield from (int(doc) for doc in scores.doc_id[scores.task_index == index])


def _expressed(
    ranked: Sequence[Candidate], names: Mapping[str, str], space: Space
) -> list[tuple[Candidate, Recipe]]:
    """Return the first TAKEN candidates that a space can express, each recipe once."""
    recipes: dict[str, tuple[Candidate, Recipe]] = {}
    for candidate in ranked:
        recipe = candidate.recipe
        recipe = replace(recipe, parents=tuple(names[parent] for parent in recipe.parents))
        if len(recipes) < TAKEN and expressed(space, recipe) is not None:
            recipes.setdefault(recipe.digest, (candidate, recipe))
    return list(recipes.values())
