"""`heterosis reproduce`: a merge repeated from its recipe.json and compared bit by bit.

Also writes `reproduce.md` with instructions. Knows merges from files and rows of a leaderboard; no
study on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...merge.files.export import RECIPE_FILE, Record, read_record, versions_here
from ...merge.files.file_merge import FileMerge, merge_files, merged_digests, open_merge
from ...merge.parents.parent_set import ParentSet
from ..leaderboard.board import Leaderboard, Row
from .card import licence_texts, merge_card

REPRODUCE_FILE = "reproduce.md"


@dataclass(frozen=True)
class Reproduction:
    """A repeated merge and its record.

    Attributes:
        merge: The opened merge.
        record: Content of recipe.json.
        weights: Tensor name -> SHA-256 of the repeated bytes.
    """

    merge: FileMerge
    record: Record
    weights: Mapping[str, str]

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the tensors whose bytes differ, or that only one side has."""
        names = sorted(self.weights.keys() | self.record.weights.keys())
        return tuple(n for n in names if self.weights.get(n) != self.record.weights.get(n))

    @property
    def other_versions(self) -> tuple[str, ...]:
        """Packages whose version differs, as ``torch 2.13.0, there 2.12.0``."""
        there = self.record.versions
        return tuple(
            f"{package} {here}, there {there[package]}"
            for package, here in versions_here().items()
            if package in there and there[package] != here
        )


def open_reproduction(
    source: Path, models: Mapping[str, str], *, download: bool = False
) -> tuple[FileMerge, Record]:
    """Read a recipe.json and open its models; their SHA-256 must match the record.

    Args:
        source: recipe.json, or the directory of an export.
        models: "base" or a parent -> its path here.
        download: Download models that are not in the local cache.

    Raises:
        ValueError: If it cannot be read, has no digests, or a model differs.
    """
    path = source / RECIPE_FILE if source.is_dir() else source
    record = read_record(path)
    if not record.weights:
        raise ValueError(
            f"{path} has no SHA-256 of the weights to compare with; `heterosis merge` makes the "
            "model from it"
        )
    return open_merge(path, models=models, download=download), record


def reproduce(
    merge: FileMerge,
    record: Record,
    out: Path | None = None,
    *,
    device: str = "cpu",
    max_shard_size: str = "5GB",
    on_tensor: Callable[[int, int], None] | None = None,
) -> Reproduction:
    """Repeat a merge and compare every tensor; with ``out`` also write it.

    Raises:
        ValueError: If ``out`` is not empty, or a model contains NaN or infinity.
        OSError: If writing fails; ``out`` is then unchanged.
    """
    if out is None:
        return Reproduction(
            merge, record, merged_digests(merge, device=device, on_tensor=on_tensor)
        )
    folder = write_merge(
        merge, out, device=device, max_shard_size=max_shard_size, on_tensor=on_tensor
    )
    return Reproduction(merge, record, read_record(folder).weights)


def write_merge(
    merge: FileMerge,
    out: Path,
    *,
    device: str,
    max_shard_size: str,
    on_tensor: Callable[[int, int], None] | None,
) -> Path:
    """Write a merge as a model directory with its card and the parents' licences.

    Raises:
        ValueError: If ``out`` is taken, or a model holds NaN or infinity.
        OSError: If writing fails; ``out`` is then as it was.
    """
    return merge_files(
        merge,
        out,
        card=merge_card(merge, out.absolute().name),
        device=device,
        max_shard_size=max_shard_size,
        extra_files=licence_texts(merge.parents),
        provenance={"source": merge.source.name},
        on_tensor=on_tensor,
    )


def _packages(versions: Mapping[str, str]) -> tuple[str, str]:
    """Requirements for pip, and the builds that were used: indexes list public versions only.

    Source:
        PEP 440, "Local version identifiers".
    """
    names = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    local = [f"{name} {version}" for name, version in versions.items() if "+" in version]
    return " ".join(names), f"\n\nBuilds used: {', '.join(local)}." if local else ""


def reproduction(board: Leaderboard, row: Row, parents: ParentSet, commands: Sequence[str]) -> str:
    """Return reproduce.md of an exported candidate.

    Args:
        board: The study's leaderboard.
        row: The candidate's row.
        parents: Base and parents.
        commands: Shell lines with which lm-eval reproduces the confirm scores.
    """
    digests = parents.digests()
    models = [f"- {owner}: SHA-256 `{digest}`" for owner, digest in digests.items()]
    packages, builds = _packages(versions_here())
    options = " ".join(f"--model {owner}=DIR" for owner in digests)
    return "\n\n".join(
        [
            "# How to reproduce this model",
            f"Trial {row.candidate.number} (`{row.candidate.name}`) of the study `{board.name}`.",
            "Install these versions:\n\n```sh\n" + f"pip install {packages}\n```{builds}",
            "Get these models (SHA-256 of their weights):",
            "\n".join(models),
            "`recipe.json` contains their paths, all coefficients, the mask seed, and the SHA-256 "
            "of every tensor. This command repeats the merge and compares every tensor (exit code "
            "0: all are equal; 1: some differ, and it names them):",
            f"```sh\nheterosis reproduce recipe.json {options}\n```",
            "Reproduce the scores with lm-eval's command line, on the confirm items; `$MODEL` is "
            "this directory, `$TASKS` the folder of the study's task files:",
            "```sh\n" + "\n".join(commands) + "\n```\n",
        ]
    )
