"""A former study's best recipes as the first candidates of a new one.

Knows journals, item stores and what a study's parts are. Recipes alone are taken, never scores:
they are measured anew. What was taken is kept in the new study's record, so that it goes on
without the former one's folder.
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
"""Recipes that are taken: as many as a search confirms at its end."""


@dataclass(frozen=True)
class WarmStart:
    """What was taken of a former study.

    Attributes:
        study: Its folder.
        recipes: Whose recipe, and the recipe, the best first; parents by the new study's names.
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
    """What a search begins with: settled once, so that a resumed one needs the former no more.

    Args:
        parts: Of the search.
        known: Manifest of the study so far; empty at the start.

    Raises:
        StudyError: As `read_warm_start`.
    """
    if parts.config.search.warm_start is None:
        return None
    if known:
        return WarmStart.from_dict(known[KEY])
    return read_warm_start(parts.config.search.warm_start, parts)


def read_warm_start(former: Path, parts: Parts) -> WarmStart:
    """Take the best recipes of a former study.

    By its search scores alone: its confirm scores may be of this study's items. Those that its race
    has stopped, and those that lie outside this study's space, are left out.

    Raises:
        StudyError: If there is no such study, it is this one, its parents are others, none of its
            recipes lies in the space, or its search has seen items that this study confirms on.
    """
    if former.resolve() == parts.config.results_folder.resolve():
        raise StudyError(
            f"`search.{KEY}` must be another study than this one, got {former}; leave it out, or "
            f"go on with that study: heterosis search --continue {former}"
        )
    if not (former / JOURNAL).is_file():
        raise StudyError(
            f"`search.{KEY}` must be the folder of a study, got {former}, which holds none "
            f"({JOURNAL} is missing); give the folder that a search printed, as results/NAME"
        )
    record = read_record(former)
    names = _names(record.manifest["identity"]["parents"], parts.parents.digests(), former)
    ranked = [c for c in finalists(record.candidates, len(record.candidates)) if not c.raced]
    if not ranked:
        raise StudyError(
            f"`search.{KEY}`: {former} has no searched candidate that was scored on all items; "
            "leave it out, or let that search go on"
        )
    _refuse_seen_items(former, ranked[0], parts)
    found = _expressed(ranked, names, parts.space)
    if not found:
        raise StudyError(
            f"`search.{KEY}`: none of the {len(ranked)} candidates of {former} lies in this space; "
            "leave it out, or take a `space` that holds them (its methods, `depth`, `modules`, "
            "bounds and `merge.layer_groups`)"
        )
    study = record.manifest["config"]["name"]
    return WarmStart(str(former), tuple((f"{c.name} of {study}", r) for c, r in found))


def _names(was: Mapping[str, str], now: Mapping[str, str], former: Path) -> dict[str, str]:
    """Former name of base and each parent -> its name now, by what they hold.

    Raises:
        StudyError: If they are not the same models.
    """
    left, names = dict(now), {}
    for name, held in was.items():
        same = [m for m, h in left.items() if h == held and (m == BASE) == (name == BASE)]
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
    """Raise StudyError if the former search has seen what this study keeps to confirm."""
    scores = ItemStore(former / "items").read(candidate.number, SEARCH)
    if scores is None:
        raise StudyError(
            f"`search.{KEY}`: {former} has lost the items of {candidate.name}, so that nobody "
            "knows what its search has seen; the search command there scores them again"
        )
    for task in (*parts.tasks, *parts.guard):
        kept = {*task.doc_ids.get(CONFIRM, ()), *task.doc_ids.get(GUARD, ())}
        seen = set(_docs(scores, task.name)) & kept
        if seen:
            raise StudyError(
                f"`search.{KEY}`: the search of {former} has seen {len(seen)} of the {len(kept)} "
                f"items of {task.name} that this study keeps to confirm, whose scores would be "
                "flattered; take the `splits` and tasks of that study, or leave it out"
            )


def _docs(scores: ItemScores, task: str) -> Iterator[int]:
    if task in scores.tasks:
        index = scores.tasks.index(task)
        yield from (int(doc) for doc in scores.doc_id[scores.task_index == index])


def _expressed(
    ranked: Sequence[Candidate], names: Mapping[str, str], space: Space
) -> list[tuple[Candidate, Recipe]]:
    """Those that a space can express, each recipe once."""
    found: dict[str, tuple[Candidate, Recipe]] = {}
    for candidate in ranked:
        recipe = candidate.recipe
        recipe = replace(recipe, parents=tuple(names[parent] for parent in recipe.parents))
        if len(found) < TAKEN and expressed(space, recipe) is not None:
            found.setdefault(recipe.digest, (candidate, recipe))
    return list(found.values())
