"""Vocabularies: equal in base and parents, or brought into one order by a policy.

By default, every difference is refused. Policy `base`: the rows of every parent's embeddings and
head are put in the order of the base's ids, by token. Policy `union`: the base's ids first, then
the tokens that parents added. A row that a parent lacks is the base's, so that its delta is 0; a
row that the base lacks is the mean over the parents that have it.

Only tokens that were added (or left out) are mapped; tokenizers with different cores, which split
the same text differently, are refused. Knows nothing of recipes.

Shapes: V rows of the output vocabulary, W rows of one model.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hints import near
from ..recipe.groups import layer_group
from .checkpoint import LowRank, Source
from .headers import ParentError, TensorInfo, who_is
from .tokens import FAST, Tokens, add_tokens, check_core, read_tokens, tokenizer_paths

log = logging.getLogger(__name__)
# Outside the layers, with rows that are not tokens.
_NOT_TOKENS = re.compile(r"pos|wpe|norm|token_type|type_embed")


@dataclass(frozen=True)
class Vocabulary:
    """The output vocabulary: V rows, the map from each model's rows, and its tokenizer's files.

    ``names`` are the tensors with one row per token. ``rows`` has, per model whose rows are not
    already in the order of the output, the model's row of each output row, -1 for none. ``files``
    are those of the output's tokenizer: paths, or contents if they are new.
    """

    size: int
    names: frozenset[str]
    rows: Mapping[str, Tensor] = field(repr=False)
    files: Mapping[str, bytes | Path] = field(repr=False)

    def mapped(self, sources: Mapping[str, Source]) -> dict[str, Source]:
        """Return the models with rows in the order of the output; the first source is the base."""
        base, *parents = sources
        donors = {p: (sources[p], self.rows.get(p)) for p in sorted(parents)}
        served: dict[str, Source] = {base: sources[base]}
        if base in self.rows:
            served[base] = _GrownBase(sources[base], self.rows[base], self.names, donors)
        for parent in parents:
            served[parent] = sources[parent]
            if parent in self.rows:
                rows = self.rows[parent]
                served[parent] = _Mapped(sources[parent], rows, self.names, served[base])
        return served


def plan_vocabulary(
    policy: str,
    folders: Mapping[str, Path],
    sources: Mapping[str, Source],
    config: Mapping[str, Any],
) -> Vocabulary:
    """Determine the output vocabulary under a policy.

    Args:
        policy: "base" or "union".
        folders: Model -> directory with its tokenizer, the base first.
        sources: Model -> its tensors as saved, the base first.
        config: The base's settings.

    Raises:
        ParentError: A missing tokenizer, one with another core, or embeddings whose rows do not
            fit it.
    """
    if policy not in ("base", "union"):
        meant = near(policy, ("base", "union"))
        raise ParentError(f"`tokenizer` must be base, union or left out, got {policy!r}{meant}")
    base, *parents = folders
    stated = vocabulary_size(config)
    names = vocabulary_tensors(sources[base].tensors, stated)
    if not names:
        raise ParentError(
            f"base: no tensor outside the layers has one row for each of the {stated} tokens of "
            f"config.json's vocab_size; correct config.json, or leave `tokenizer` out"
        )
    sizes = {owner: _n_rows(who_is(owner), sources[owner], names) for owner in folders}
    tokens = {base: _base_tokens(folders[base])}
    for parent in parents:
        tokens[parent] = _parent_tokens(parent, folders[parent], tokens[base], sizes, base)
    paths = tokenizer_paths(folders[base])
    new = _new_tokens(tokens, sizes, base) if policy == "union" else {}
    ids, files = add_tokens(folders[base], new, paths) if new else ({}, paths)
    size = max(sizes[base], 1 + max(ids.values(), default=-1))
    _check_reach(tokens[base], sizes[base], size)
    order = {i: token for token, i in reversed({**tokens[base].ids, **ids}.items())}
    rows = {o: _row_map(size, order, tokens[o].ids, sizes[o]) for o in folders}
    same = torch.arange(size)
    changed = {o: r for o, r in rows.items() if sizes[o] != size or not torch.equal(r, same)}
    return Vocabulary(size, names, changed, files)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the number of embedding rows in the settings or in a multimodal part, or None."""
    if isinstance(config.get("vocab_size"), int):
        return config["vocab_size"]
    parts = [config[key] for key in sorted(config) if key.endswith("_config")]
    sizes = [vocabulary_size(part) for part in parts if isinstance(part, Mapping)]
    return next((size for size in sizes if size is not None), None)


def resized(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return settings with another number of embedding rows in place of the old one."""
    old = vocabulary_size(config)

    def replaced(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: size
            if key == "vocab_size" and value == old
            else replaced(value)
            if key.endswith("_config") and isinstance(value, Mapping)
            else value
            for key, value in part.items()
        }

    return replaced(config)


def vocabulary_tensors(tensors: Mapping[str, TensorInfo], size: int | None) -> frozenset[str]:
    """Return the tensors with one row for each of ``size`` tokens: embeddings, head, its bias."""
    return frozenset(
        name
        for name, info in tensors.items()
        if len(info.shape) in (1, 2)
        and info.shape[0] == size
        and layer_group(name).name in ("embed", "head")
        and not _NOT_TOKENS.search(name)
    )


def _n_rows(who: str, source: Source, names: frozenset[str]) -> int:
    found = {name: source.tensors[name].shape for name in sorted(names) if name in source.tensors}
    rows = {shape[0] if shape else 0: name for name, shape in found.items()}
    if len(rows) != 1:
        detail = (
            ", ".join(f"{name} has {n}" for n, name in sorted(rows.items())) or "there are none"
        )
        raise ParentError(
            f"{who}: the tensors with one row per token must have the same number of rows, but "
            f"{detail}; "
            f"resize embeddings and head together and save the model again"
        )
    return next(iter(rows))


def _base_tokens(folder: Path) -> Tokens:
    tokens = read_tokens("base", folder)
    if tokens is None:
        raise ParentError(
            f"base: no {FAST} in {folder}, by which a tokenizer policy maps rows; save it there "
            f"with AutoTokenizer.from_pretrained(...).save_pretrained"
        )
    return tokens


def _parent_tokens(
    parent: str, folder: Path, theirs: Tokens, sizes: Mapping[str, int], base: str
) -> Tokens:
    who = f"parent {parent}"
    ours = read_tokens(who, folder)
    if ours is not None:
        check_core(who, ours, theirs)
        return ours
    if tokenizer_paths(folder) or sizes[parent] != sizes[base]:
        raise ParentError(
            f"{who}: no {FAST} in {folder}, by which a tokenizer policy maps its {sizes[parent]} "
            f"rows onto the base's {sizes[base]}; save it there with "
            f"AutoTokenizer.from_pretrained(...).save_pretrained"
        )
    return theirs


def _new_tokens(
    tokens: Mapping[str, Tokens], sizes: Mapping[str, int], base: str
) -> dict[str, Mapping[str, Any]]:
    # Tokens that the base lacks and some parent has a row for: parents by name, then by id.
    new: dict[str, Mapping[str, Any]] = {}
    for parent in sorted(owner for owner in tokens if owner != base):
        ids = tokens[parent].ids
        for token in sorted(ids.keys() - tokens[base].ids.keys() - new.keys(), key=ids.__getitem__):
            if ids[token] < sizes[parent]:
                new[token] = tokens[parent].added[token]
            else:
                log.warning(
                    "parent %s: token %r has id %d, its embeddings have %d rows; left out",
                    *(parent, token, ids[token], sizes[parent]),
                )
    return new


def _check_reach(tokens: Tokens, n_rows: int, size: int) -> None:
    beyond = [token for token, i in tokens.ids.items() if n_rows <= i < size]
    if beyond:
        raise ParentError(
            f"base: token {beyond[0]!r} has id {tokens.ids[beyond[0]]}, but the embeddings have "
            f"{n_rows} rows, so no token can be added behind it; resize the base's embeddings"
        )


def _row_map(size: int, order: Mapping[int, str], ids: Mapping[str, int], n_rows: int) -> Tensor:
    # (V,): the model's row of each output row. Rows beyond the tokenizer, which pad the embeddings
    # to a round number, keep their place if both models have them.
    taken = set(ids.values())
    rows = []
    for i in range(size):
        row = ids.get(order[i], n_rows) if i in order else (n_rows if i in taken else i)
        rows.append(row if row < n_rows else -1)
    return torch.tensor(rows)


class _Mapped:
    """A parent with its rows in the order of the output; missing rows are the base's."""

    def __init__(self, source: Source, rows: Tensor, names: frozenset[str], base: Source) -> None:
        self._source, self._rows, self._names, self._base = source, rows, names, base
        self._is_partial = bool((rows < 0).any())
        self.tensors = {
            name: self._info(name) if name in names else info
            for name, info in source.tensors.items()
        }

    def _info(self, name: str) -> TensorInfo:
        info = self._source.tensors[name]
        dtypes = {info.dtype, self._base.tensors[name].dtype} if self._is_partial else {info.dtype}
        dtype = info.dtype if len(dtypes) == 1 else ("F64" if "F64" in dtypes else "F32")
        return replace(info, shape=(len(self._rows), *info.shape[1:]), dtype=dtype)

    def read(self, name: str) -> Tensor:
        if name not in self._names:
            return self._source.read(name)
        own = self._source.read(name)
        if not self._is_partial:
            return own.index_select(0, self._rows)
        base, known = self._base.read(name), self._rows >= 0
        out = base.to(torch.promote_types(own.dtype, base.dtype), copy=True)
        out[known] = own[self._rows[known]].to(out.dtype)
        return out

    def bytes_of(self, name: str) -> int:
        is_mapped = name in self._names
        return self.tensors[name].n_bytes if is_mapped else self._source.bytes_of(name)

    def low_rank(self, name: str) -> LowRank | None:
        return None if name in self._names else self._source.low_rank(name)

    def is_base(self, name: str) -> bool:
        return name not in self._names and self._source.is_base(name)

    def digest(self) -> str:
        base = self._base.digest() if self._is_partial else ""
        return _digest(self._source.digest(), self._rows, [base])


class _GrownBase:
    """The base with rows of tokens that only parents have: the mean of theirs."""

    def __init__(
        self,
        source: Source,
        rows: Tensor,
        names: frozenset[str],
        donors: Mapping[str, tuple[Source, Tensor | None]],
    ) -> None:
        self._source, self._rows, self._names, self._donors = source, rows, names, donors
        self.tensors = {
            name: replace(info, shape=(len(rows), *info.shape[1:])) if name in names else info
            for name, info in source.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        if name not in self._names:
            return self._source.read(name)
        own, known = self._source.read(name), self._rows >= 0
        out = own.new_empty((len(self._rows), *own.shape[1:]))
        out[known] = own[self._rows[known]]
        out[~known] = self._means(name, (~known).nonzero().flatten()).to(out.dtype)
        return out

    def _means(self, name: str, places: Tensor) -> Tensor:
        # Float32 mean over the parents that have a row, for each place in the output.
        shape = self.tensors[name].shape[1:]
        total = torch.zeros((len(places), *shape))
        count = torch.zeros((len(places), *[1] * len(shape)))
        for source, rows in self._donors.values():
            own = places if rows is None else rows[places]
            has = own >= 0
            total[has] += source.read(name)[own[has]].float()
            count[has] += 1
        return total / count

    def bytes_of(self, name: str) -> int:
        return self.tensors[name].n_bytes

    def low_rank(self, name: str) -> None:
        """Return None: the base is not a product."""

    def is_base(self, name: str) -> bool:
        return name in self.tensors

    def digest(self) -> str:
        parts = [
            source.digest() if rows is None else _digest(source.digest(), rows, [])
            for source, rows in self._donors.values()
        ]
        return _digest(self._source.digest(), self._rows, parts)


def _digest(source: str, rows: Tensor, others: Sequence[str]) -> str:
    mapping = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    return hashlib.sha256("\n".join((source, mapping, *others)).encode()).hexdigest()
