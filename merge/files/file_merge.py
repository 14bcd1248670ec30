"""Merge files to files, tensor by tensor: one tensor of each model is in memory at a time.

Reads the merge from mergekit's YAML or from recipe.json, opens its models, and writes a directory
with writer.py. There is no resident model, so that architectures unknown to transformers can be
merged too. Prints nothing: remarks for the user are in `notes`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.engine import MergeFailure, check_fit
from ..engine.resident import resident_dtype
from ..hints import hint, reason
from ..kernels.launcher import Launcher, merge_tensors
from ..mergekit.file import MergekitFile, ModelRef, parse
from ..mergekit.parameters import MergekitError
from ..mergekit.read import models_of, translate
from ..parents.compatibility import is_tied
from ..parents.parent_set import BASE, ParentError, ParentSet
from ..recipe.groups import EMBED, HEAD, layer_group
from ..recipe.recipe import Recipe
from ..statistics.parent_statistics import UncachedStatistics, largest_value
from .chat_template import choose_template, template_of
from .export import MERGEKIT_FILE, RECIPE_FILE, Record, model_files, read_record
from .writer import FLOATS, Weight, check_goal, shard_bytes, tensor_digest, write_model

__all__ = ["FileMerge", "merge_files", "merged_digests", "open_merge"]


@dataclass(frozen=True)
class FileMerge:
    """A merge as requested by a file, checked against its models.

    ``dtype`` is that of the weights to write, None keeps the base's. ``template`` is the text of a
    chat template other than the base's. ``source`` is the file, ``notes`` are differences from it,
    one line each.
    """

    source: Path
    recipe: Recipe
    parents: ParentSet
    dtype: torch.dtype | None = None
    tokenizer: str | None = None
    template: str | None = None
    notes: tuple[str, ...] = ()


class _Options(NamedTuple):
    """Arguments of `open_merge` that override the file."""

    mask_seed: int | None
    dtype: torch.dtype | None
    tokenizer: str | None
    download: bool


def open_merge(
    source: Path | str,
    *,
    mask_seed: int | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    download: bool = False,
    models: Mapping[str, str] | None = None,
) -> FileMerge:
    """Read the file of a merge, and open its models.

    Relative paths of models are relative to the file's directory or, if they do not exist there,
    to the working directory (as in mergekit).

    Args:
        source: mergekit's YAML, a recipe.json, or a directory with one of them.
        mask_seed: Seed of random masks; default: the recipe's, 0 for YAML.
        dtype: Dtype of the weights to write; default: the file's, else the base's.
        tokenizer: "base" or "union" if vocabularies differ; default: the file's.
        download: Download models from the hub that the local cache lacks.
        models: For a recipe.json: "base" or a parent -> its path now.

    Raises:
        ValueError: If it cannot be read or opened, or is not supported; one line with the remedy.
    """
    path = _file_of(Path(source))
    given = None if dtype is None else resident_dtype(dtype)
    options = _Options(mask_seed, given, tokenizer, download)
    if path.suffix == ".json":
        record = _moved(path, read_record(path), models or {})
        return _from_record(path, record, options)
    file = parse(path)
    try:
        return _from_mergekit(path, file, options)
    except MergekitError as error:
        raise MergekitError(f"{path}: {error}") from None


def _moved(path: Path, record: Record, models: Mapping[str, str]) -> Record:
    """Return the record with other paths of some models."""
    for owner in models:
        if owner not in record.models:
            raise MergekitError(f"{path} names no model `{owner}`; {hint(owner, record.models)}")
    places = {o: (models.get(o, text), digest) for o, (text, digest) in record.models.items()}
    return replace(record, models=places)


def _file_of(source: Path) -> Path:
    if source.is_dir():
        files = [
            source / name for name in (RECIPE_FILE, MERGEKIT_FILE) if (source / name).is_file()
        ]
        if not files:
            raise MergekitError(
                f"no {RECIPE_FILE} nor {MERGEKIT_FILE} in {source}; give the file of a merge"
            )
        return files[0]
    if not source.is_file():
        raise MergekitError(f"no such file: {source}; give mergekit's YAML or a {RECIPE_FILE}")
    return source


def _from_record(path: Path, record: Record, options: _Options) -> FileMerge:
    if not record.models:
        raise MergekitError(
            f"{path} has only a recipe and names no models; give the {RECIPE_FILE} of an export"
        )
    tokenizer = options.tokenizer or record.tokenizer
    notes: list[str] = []
    folders = {
        owner: _locate(owner, ModelRef(text), path.parent, notes)
        for owner, (text, _) in record.models.items()
    }
    base = folders.pop(BASE)
    parents = _open(base, folders, tokenizer, options.download)
    for owner, digest in parents.digests().items():
        if digest != record.models[owner][1]:
            raise ParentError(
                f"{owner}: the weights in {parents.folders[owner]} are not those of {path} "
                f"(SHA-256 {digest[:12]}, there {record.models[owner][1][:12]}); restore "
                f"them, or correct the path there"
            )
    recipe = record.recipe
    check_fit(recipe, parents)
    if options.mask_seed is not None:
        recipe = replace(recipe, mask_seed=options.mask_seed)
    dtype = options.dtype or (resident_dtype(record.dtype) if record.dtype else None)
    return FileMerge(path, recipe, parents, dtype, tokenizer, record.template, tuple(notes))


def _from_mergekit(path: Path, file: MergekitFile, options: _Options) -> FileMerge:
    models = models_of(file)
    notes: list[str] = []
    tokenizer = options.tokenizer or file.tokenizer
    base = _locate("base_model", models.base, path.parent, notes)
    folders = {
        name: _locate(name, ref.lora or ref, path.parent, notes)
        for name, ref in models.parents.items()
    }
    named = file.out_dtype or file.dtype
    dtype = options.dtype or (
        None if named is None else resident_dtype(named.removeprefix("torch."))
    )
    parents = _open(base, folders, tokenizer, options.download)
    floating = [name for name, info in parents.tensors.items() if info.is_floating]
    read = translate(file, floating, mask_seed=options.mask_seed or 0)
    template = None
    if file.chat_template:
        template = choose_template(file.chat_template, list(parents.folders.values()))
        template = None if template == template_of(parents.folders[BASE]) else template
    return FileMerge(path, read.recipe, parents, dtype, tokenizer, template, (*notes, *read.notes))


def _locate(owner: str, ref: ModelRef, folder: Path, notes: list[str]) -> Path | str:
    """Return the directory of a model, else its id on the hub."""
    path = Path(os.path.expanduser(ref.path))  # noqa: PTH111 - an unknown ~user is left as it is
    for root in (folder, Path.cwd()):
        if (root / path).is_dir():
            if ref.revision is not None:
                notes.append(f"{ref} is a directory, its revision is ignored")
            if root != folder and not path.is_absolute():
                notes.append(f"{ref.path} is relative to the working directory, {root}")
            return root / path
    if path.is_absolute() or ref.path.startswith("~"):
        raise ParentError(f"{owner}: no directory {path}; give the path of a model, or a hub id")
    if len(path.parts) == 2:
        return str(ref)  # organisation/name
    raise ParentError(
        f"{owner}: no directory {ref.path} in {folder.absolute()} nor in {Path.cwd()}; give the "
        f"path of a model, or a hub id"
    )


def _open(
    base: Path | str, parents: Mapping[str, Path | str], tokenizer: str | None, download: bool
) -> ParentSet:
    return ParentSet.open(
        base, parents, tokenizer=tokenizer, download=download, architecture_required=False
    )


def merge_files(
    merge: FileMerge,
    out: Path | str,
    *,
    card: str,
    device: str = "cpu",
    max_shard_size: str = "5GB",
    extra_files: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Path:
    """Merge, and write a model directory atomically.

    Args:
        merge: The opened merge.
        out: The directory to create; it may exist if it is empty.
        card: The text of README.md.
        device: Device on which tensors are merged, one at a time.
        max_shard_size: Largest weight file, as in transformers ("5GB").
        extra_files: File name -> text, written beside the weights.
        provenance: Additions to recipe.json; JSON values.
        on_tensor: Called before each tensor with the finished bytes and the total.

    Returns:
        The directory, absolute.

    Raises:
        ValueError: If `out` is taken, or a model holds NaN or infinity.
        OSError: If writing fails; `out` is then as it was.
    """
    check_goal(out)
    shard_bytes(max_shard_size)
    place = _device(device)
    weights = _weights(merge, place)
    if on_tensor is not None:
        weights = _announced(weights, on_tensor)
    dtype = None if merge.dtype is None else str(merge.dtype).removeprefix("torch.")
    texts, record = model_files(
        merge.recipe,
        merge.parents,
        card,
        dtype=dtype,
        tokenizer=merge.tokenizer,
        template=merge.template,
        extra_files=extra_files,
        provenance=provenance,
    )
    return write_model(
        out,
        weights,
        merge.parents,
        dtype=merge.dtype,
        max_shard_size=max_shard_size,
        texts=texts,
        record=record,
    )


def merged_digests(
    merge: FileMerge,
    *,
    device: str = "cpu",
    on_tensor: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Merge without writing: return tensor name -> SHA-256, hex, of its bytes in a file.

    Args:
        merge: The opened merge.
        device: Device on which tensors are merged, one at a time.
        on_tensor: As in `merge_files`.

    Raises:
        ValueError: If a model holds NaN or infinity.
    """
    weights = _weights(merge, _device(device))
    if on_tensor is not None:
        weights = _announced(weights, on_tensor)
    return {weight.name: tensor_digest(weight) for weight in weights}


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` must be cpu or a device that torch supports here, got {name!r} "
            f"({reason(error)}); use cpu"
        ) from None
    return device


def _announced(weights: list[Weight], on_tensor: Callable[[int, int], None]) -> list[Weight]:
    """Return the weights with a callback before each is made."""
    total = sum(weight.n_bytes for weight in weights)

    def make(weight: Weight, done: int) -> Tensor:
        on_tensor(done, total)
        return weight.make()

    done, result = 0, []
    for weight in weights:
        result.append(replace(weight, make=partial(make, weight, done)))
        done += weight.n_bytes
    return result


def _weights(merge: FileMerge, device: torch.device) -> list[Weight]:
    parents, launcher = merge.parents, Launcher()
    left_out = _tied_heads(parents)
    weights = []
    for name, info in parents.tensors.items():
        if name in left_out:
            continue
        if info.is_floating:
            dtype = merge.dtype or FLOATS[info.dtype]
            make = partial(_merged, merge, launcher, name, dtype, device)
        else:
            make = partial(parents.tensor, BASE, name)
            dtype = make().dtype
        weights.append(Weight(name, info.shape, dtype, make))
    return weights


def _tied_heads(parents: ParentSet) -> frozenset[str]:
    """Return heads that are equal to their model's input embeddings (tied)."""
    if not is_tied(parents.config):
        return frozenset()
    tables = {
        kind: [
            name
            for name, info in parents.tensors.items()
            if layer_group(name).kind == kind and len(info.shape) == 2
        ]
        for kind in (EMBED, HEAD)
    }
    heads = set()
    for head in tables[HEAD]:
        for table in tables[EMBED]:
            if parents.tensors[head].shape == parents.tensors[table].shape and torch.equal(
                parents.tensor(BASE, head), parents.tensor(BASE, table)
            ):
                parents.check_tied(table, head)
                heads.add(head)
    return frozenset(heads)


def _merged(
    merge: FileMerge, launcher: Launcher, name: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    recipe, parents = merge.recipe, merge.parents
    active = recipe.setting(recipe.grouping.group(name).name).parents
    base = parents.tensor(BASE, name).to(device)
    tensors = {parent: parents.tensor(parent, name).to(device) for parent in active}
    statistics = UncachedStatistics(name, base, tensors)
    for owner in (BASE, *tensors):
        statistics.largest(owner)  # refuses NaN and infinity
    out = merge_tensors(
        recipe, name, base, tensors, dtype=dtype, statistics=statistics, launcher=launcher
    )
    if not bool(largest_value(out).isfinite()):
        raise MergeFailure(
            f"merged tensor {name} holds NaN or infinity in {str(dtype).removeprefix('torch.')}; "
            f"use smaller weights or lambda, or write float32"
        )
    return out
