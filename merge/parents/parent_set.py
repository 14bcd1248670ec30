"""The base and its fine-tunes on disk: checked by name, read by memory map.

Opening reads headers, config.json and tokenizer files only, so that a mismatch is refused in
milliseconds. Weights are read on request. Combines hub.py (where models are), checkpoint.py and
adapters.py (their tensors), compatibility.py and vocabulary.py (whether they fit). Knows nothing of
recipes.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..recipe.groups import Grouping, layer_group
from .adapters import Adapter, is_adapter
from .checkpoint import Checkpoint, LowRank, Source
from .compatibility import check_config, check_tensors, read_config
from .headers import BASE, ParentError, TensorInfo, read_json, who_is
from .hub import Place, locate
from .tokens import check_same, tokenizer_paths
from .vocabulary import plan_vocabulary, resized

__all__ = ["BASE", "ParentError", "ParentSet", "TensorInfo"]


class ParentSet:
    """A base and P named fine-tunes that fit together. Create it with `open`."""

    def __init__(
        self,
        places: Mapping[str, Place],
        sources: Mapping[str, Source],
        config: Mapping[str, Any],
        tokenizer_files: Mapping[str, bytes | Path],
    ) -> None:
        """Take what `open` has checked; the mappings hold "base" first, then the parents."""
        self.places: Mapping[str, Place] = MappingProxyType(dict(places))
        """Where each model is, and its name as given by the user."""
        self.folders: Mapping[str, Path] = MappingProxyType(
            {owner: place.folder for owner, place in places.items()}
        )
        self.config: Mapping[str, Any] = MappingProxyType(dict(config))
        """The base's settings, with the number of rows of the output vocabulary."""
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(sources[BASE].tensors))
        """Every tensor of the base: name -> shape, dtype, file."""
        self._sources = sources
        self._tokenizer_files = tokenizer_files
        self._groups: dict[Grouping, tuple[str, ...]] = {}

    @classmethod
    def open(
        cls,
        base: Path | str,
        parents: Mapping[str, Path | str],
        *,
        tokenizer: str | None = None,
        download: bool = False,
        architecture_required: bool = True,
    ) -> "ParentSet":
        """Check a base and its parents against each other, reading headers and settings only.

        Args:
            base: Hugging Face model directory with safetensors, or hub id.
            parents: Name -> directory or hub id of a fine-tune of ``base``, or of a LoRA adapter
                made on it. The name enters random masks.
            tokenizer: Policy for different vocabularies: "base" or "union" put all rows in one
                order (see vocabulary.py), None refuses them.
            download: Download from the hub what the local cache lacks; safetensors and text only.
            architecture_required: Refuse architectures unknown to transformers, which cannot be
                loaded, although their files can be merged.

        Raises:
            ParentError: The first mismatch, in one line: which parent, which tensor or file, and
                the remedy.
        """
        _check_names(parents)
        given = {BASE: base, **parents}
        places = {o: locate(who_is(o), place, download=download) for o, place in given.items()}
        read = partial(read_config, architecture_required=architecture_required)
        base_model = _open_base(places[BASE].folder)
        config = read(BASE, places[BASE].folder)
        sources = {BASE: base_model, **_open_parents(places, base_model, config)}
        for owner, source in sources.items():
            if owner != BASE and isinstance(source, Checkpoint):
                theirs = read(who_is(owner), places[owner].folder)
                check_config(
                    who_is(owner), theirs, config, is_vocabulary_free=tokenizer is not None
                )
        return cls._with_vocabulary(places, sources, config, tokenizer)

    @classmethod
    def _with_vocabulary(
        cls,
        places: Mapping[str, Place],
        sources: dict[str, Source],
        config: dict[str, Any],
        tokenizer: str | None,
    ) -> "ParentSet":
        folders = {owner: place.folder for owner, place in places.items()}
        if tokenizer is None:
            for owner in list(folders)[1:]:
                check_same(who_is(owner), folders[owner], folders[BASE])
            files = tokenizer_paths(folders[BASE])
        else:
            vocabulary = plan_vocabulary(tokenizer, folders, sources, config)
            sources, files = vocabulary.mapped(sources), vocabulary.files
            config = resized(config, vocabulary.size)
        for owner in list(folders)[1:]:
            check_tensors(who_is(owner), sources[owner].tensors, sources[BASE].tensors)
        opened = cls(places, sources, config, files)
        opened._check_whole_tensors()
        return opened

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the parents, in the order given."""
        return tuple(name for name in self.folders if name != BASE)

    @property
    def floating(self) -> tuple[str, ...]:
        """Return the names of the floating tensors, which are merged."""
        return tuple(name for name, info in self.tensors.items() if info.is_floating)

    def groups(self, grouping: Grouping = Grouping()) -> tuple[str, ...]:  # noqa: B008 - a value
        """Return the names of the layer groups with floating tensors, in model order."""
        if grouping not in self._groups:
            self._groups[grouping] = grouping.names(self.floating)
        return self._groups[grouping]

    @property
    def n_layers(self) -> int:
        """Return the number of transformer blocks: the highest layer index plus one, or 0."""
        layers = [layer_group(name).layer for name in self.tensors]
        return max((layer + 1 for layer in layers if layer is not None), default=0)

    def infos(self, owner: str) -> Mapping[str, TensorInfo]:
        """Return the tensors of "base" or a parent, as `tensor` returns them."""
        return self._sources[owner].tensors

    def bytes_of(self, owner: str, tensor: str | None = None) -> int:
        """Return the bytes that a model, or one tensor of it, takes in addition to the base.

        For an adapter these are its factors; 0 for a tensor that it does not change.
        """
        source = self._sources[owner]
        return sum(map(source.bytes_of, source.tensors if tensor is None else [tensor]))

    def tensor(self, owner: str, name: str) -> Tensor:
        """Read a tensor of "base" or a parent, memory-mapped if it is as saved; read-only.

        For an adapter: float32 base + scale * B @ A if it has factors, else the base's tensor.
        """
        return self._sources[owner].read(name)

    def low_rank(self, parent: str, name: str) -> LowRank | None:
        """Return the factors of a tensor that is the base's plus a product; None for any other.

        ``low_rank(...).added_to(tensor(BASE, name))`` is the parent's tensor, without reading the
        base again; an accelerator should hold the factors.
        """
        return self._sources[parent].low_rank(name)

    def is_base(self, parent: str, name: str) -> bool:
        """Return whether a tensor of a parent is known, without reading it, to be the base's."""
        return self._sources[parent].is_base(name)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256, hex, of the weights of the base and of each parent.

        One file: its SHA-256. Shards: SHA-256 over lines of shard name and shard SHA-256; adapters:
        the same over settings and weights. If a tokenizer policy reorders rows, the digest includes
        the order and the source of missing rows. A file is read again only if its path, size
        or modification time changes.
        """
        return {owner: source.digest() for owner, source in self._sources.items()}

    def tokenizer_files(self) -> Mapping[str, bytes | Path]:
        """Return the output's tokenizer: name in its directory -> file of the base or contents."""
        return self._tokenizer_files

    def check_tied(self, owner: str, alias: str) -> None:
        """Refuse parents with two values of a weight that is tied in the base.

        Args:
            owner: The tensor that is merged.
            alias: The tensor that takes its value, equal in the base.

        Raises:
            ParentError: Naming the first parent in which they differ.
        """
        for parent in self.names:
            if not torch.equal(self.tensor(parent, owner), self.tensor(parent, alias)):
                raise ParentError(
                    f"parent {parent}: tensors {owner} and {alias} differ, in the base they are "
                    f"one (tied); use a fine-tune that kept the embeddings tied"
                )

    def _check_whole_tensors(self) -> None:
        whole = [name for name, info in self.tensors.items() if not info.is_floating]
        for parent, name in itertools.product(self.names, whole):
            if not torch.equal(self.tensor(BASE, name), self.tensor(parent, name)):
                raise ParentError(
                    f"parent {parent}: tensor {name} holds whole numbers that differ from the "
                    f"base's and cannot be merged; use a fine-tune that kept them"
                )


def _open_base(folder: Path) -> Checkpoint:
    if is_adapter(BASE, folder):
        raise ParentError(
            f"base: {folder} holds an adapter, not a model; give the model that it was made on"
        )
    return Checkpoint(BASE, folder)


def _open_parents(
    places: Mapping[str, Place], base: Checkpoint, config: Mapping[str, Any]
) -> dict[str, Source]:
    home = places[BASE]
    base_names = [home.name, *_names_in_config(home.folder)]
    sources: dict[str, Source] = {}
    for owner, place in places.items():
        who, folder = who_is(owner), place.folder
        if owner == BASE:
            continue
        if is_adapter(who, folder):
            sources[owner] = Adapter.open(who, folder, base, home.folder, base_names, config)
        else:
            sources[owner] = Checkpoint(who, folder)
    return sources


def _names_in_config(folder: Path) -> list[str]:
    # The name of the model in config.json.
    stated = read_json(BASE, folder / "config.json").get("_name_or_path")
    return [Path(stated).name] if isinstance(stated, str) and stated else []


def _check_names(parents: Mapping[str, Any]) -> None:
    if not parents:
        raise ParentError("a merge needs at least one parent, got none; name the fine-tunes")
    for name in parents:
        if not name or name == BASE or "\0" in name:
            raise ParentError(
                f"a parent's name must be non-empty and not `{BASE}`, got {name!r}; rename it"
            )
