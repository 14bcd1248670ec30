"""`heterosis reproduce`: a merge made again from its recipe.json, and compared to the bit.

Also writes `reproduce.md`, which tells a person how. Knows the merge room's stand-alone merge and
rows of a leaderboard; no study on disk.
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
    """How a merge that was made again compares with its record.

    Attributes:
        merge: As opened.
        record: What recipe.json says.
        weights: Tensor name -> SHA-256 of the bytes made here.
    """

    merge: FileMerge
    record: Record
    weights: Mapping[str, str]

    @property
    def differing(self) -> tuple[str, ...]:
        """Tensors whose bytes differ, or that one side lacks; by name."""
        names = sorted(self.weights.keys() | self.record.weights.keys())
        return tuple(n for n in names if self.weights.get(n) != self.record.weights.get(n))

    @property
    def other_versions(self) -> tuple[str, ...]:
        """Packages that are of another version here, as ``torch 2.13.0, there 2.12.0``."""
        there = self.record.versions
        return tuple(
            f"{package} {here}, there {there[package]}"
            for package, here in versions_here().items()
            if package in there and there[package] != here
        )


def open_reproduction(
    source: Path, models: Mapping[str, str], *, download: bool = False
) -> tuple[FileMerge, Record]:
    """Read a recipe.json, and open its models: their SHA-256 must be those of the record.

    Args:
        source: recipe.json, or the directory of an export.
        models: "base" or a parent -> where it is now.
        download: Fetch models from the hub that the local cache lacks.

    Raises:
        ValueError: If it cannot be read, states no digests, or a model is another.
    """
    path = source / RECIPE_FILE if source.is_dir() else source
    record = read_record(path)
    if not record.weights:
        raise ValueError(
            f"{path} states no SHA-256 of the weights, so there is nothing to compare with; "
            "`heterosis merge` makes the model from it"
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
    """Make a merge again and compare every tensor; with ``out`` also write it.

    Raises:
        ValueError: If ``out`` is taken, or a model holds NaN or infinity.
        OSError: If writing fails; ``out`` is then as it was.
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
    """What pip is asked for, and which builds of it were used: indexes list public versions only.

    Source:
        PEP 440, "Local version identifiers".
    """
    names = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    local = [f"{name} {version}" for name, version in versions.items() if "+" in version]
    return " ".join(names), f"\n\nThe build was {', '.join(local)}." if local else ""


def reproduction(board: Leaderboard, row: Row, parents: ParentSet, commands: Sequence[str]) -> str:
    """Return reproduce.md of an exported candidate.

    Args:
        board: Of its study.
        row: Its line there.
        parents: What was merged.
        commands: Shell lines by which lm-eval gives the confirm scores.
    """
    digests = parents.digests()
    models = [f"- {owner}: SHA-256 `{digest}`" for owner, digest in digests.items()]
    packages, builds = _packages(versions_here())
    options = " ".join(f"--model {owner}=DIR" for owner in digests)
    return "\n\n".join(
        [
            "# How to make this model again",
            f"Trial {row.candidate.number} (`{row.candidate.name}`) of the study `{board.name}`.",
            "These versions:\n\n```sh\n" + f"pip install {packages}\n```{builds}",
            "These models (SHA-256 of their weights):",
            "\n".join(models),
            "`recipe.json` states where they lay, all coefficients, the seed of the masks, and the "
            "SHA-256 of every tensor. This makes the weights again and compares each (exit code 0: "
            "all equal; 1: some differ, with their names):",
            f"```sh\nheterosis reproduce recipe.json {options}\n```",
            "The scores, by lm-eval's own command line on the confirm items; `$MODEL` is this "
            "directory, `$TASKS` the folder of the study's task files:",
            "```sh\n" + "\n".join(commands) + "\n```\n",
        ]
    )
