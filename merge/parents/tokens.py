"""Tokenizer files: read their tokens, compare two, add tokens to the base's.

Reads tokenizer.json; older formats are compared as bytes. Knows no weights.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from .checkpoint import file_digest
from .compatibility import POLICIES
from .headers import ParentError, read_json

log = logging.getLogger(__name__)
FAST = "tokenizer.json"
# Vocabularies that are compared as bytes if there is no tokenizer.json.
_SLOW = ("tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "merges.txt")
# Files of a tokenizer, besides the additional chat templates.
_FILES = (
    *(FAST, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *_SLOW,
    *("chat_template.jinja", "chat_template.json"),
)
_KEPT = f"use a fine-tune that kept the base's tokenizer, or {POLICIES}"


@dataclass(frozen=True)
class Tokens:
    """Contents of a tokenizer.json: token -> id, the entries of added tokens, and the core.

    The core splits text into tokens: its kind (BPE, Unigram ...), its tokens, its merges.
    """

    ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]] = field(repr=False)
    kind: str
    core: Mapping[str, int] = field(repr=False)
    merges: Sequence[str] = field(repr=False)

    @property
    def special(self) -> frozenset[str]:
        """Return the tokens that are left out of decoded text."""
        return frozenset(token for token, entry in self.added.items() if entry.get("special"))


def read_tokens(who: str, folder: Path) -> Tokens | None:
    """Read the tokens of a directory's tokenizer.json; None if there is no such file.

    Raises:
        ParentError: If it is not a file of the tokenizers library.
    """
    path = folder / FAST
    if not path.is_file():
        return None
    data = read_json(who, path)
    try:
        core = data["model"]
        vocab = core["vocab"]
        if isinstance(vocab, list):  # Unigram: a list of [token, score], the id is the position
            vocab = {entry[0]: i for i, entry in enumerate(vocab)}
        added = {entry["content"]: entry for entry in data.get("added_tokens") or []}
        ids = {**vocab, **{token: entry["id"] for token, entry in added.items()}}
        merges = [_merge(merge) for merge in core.get("merges") or []]
        for token, i in ids.items():
            if not isinstance(token, str) or type(i) is not int or not 0 <= i < 1 << 31:
                raise TypeError(f"token {token!r} has id {i!r}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ParentError(
            f"{who}: {path} is not a tokenizers file ({type(error).__name__}: {error}); fetch it "
            f"again"
        ) from None
    return Tokens(ids, added, str(core.get("type")), vocab, merges)


def _merge(merge: Any) -> str:
    # "a b" in old versions of the library, ["a", "b"] in new ones.
    return merge if isinstance(merge, str) else f"{merge[0]} {merge[1]}"


def check_same(who: str, folder: Path, base: Path) -> None:
    """Refuse a parent whose tokens, their ids, or its special tokens differ from the base's.

    A parent without tokenizer files is assumed to use the base's, which is logged.

    Raises:
        ParentError: Naming the parent, the token and both ids, or the file that differs.
    """
    pair = [folder / FAST, base / FAST]
    if all(path.is_file() for path in pair):
        if file_digest(pair[0]) != file_digest(pair[1]):
            ours, theirs = read_tokens(who, folder), read_tokens("base", base)
            assert ours is not None and theirs is not None
            _check_ids(who, ours.ids, theirs.ids)
            _check_special(who, ours.special, theirs.special)
        return
    common = [f for f in _SLOW if (folder / f).is_file() and (base / f).is_file()]
    for name in common:
        if file_digest(folder / name) != file_digest(base / name):
            raise ParentError(f"{who}: vocabulary file {name} differs from the base's; {_KEPT}")
    if not common and not (folder / "adapter_config.json").is_file():
        log.warning("%s: no tokenizer files to compare in %s; the base's are used", who, folder)


def _check_ids(who: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            raise ParentError(
                f"{who}: vocabulary differs: token {token!r} has id {ours.get(token, 'none')}, in "
                f"the base {theirs.get(token, 'none')} ({len(ours)} tokens against "
                f"{len(theirs)}); {_KEPT}"
            )


def _check_special(who: str, ours: frozenset[str], theirs: frozenset[str]) -> None:
    for token in sorted(ours ^ theirs):
        state = "is" if token in ours else "is not"
        raise ParentError(
            f"{who}: special tokens differ: {token!r} {state} special here, unlike in the base; "
            f"{_KEPT}"
        )


def check_core(who: str, ours: Tokens, theirs: Tokens) -> None:
    """Refuse a tokenizer that is not the base's plus or minus added tokens.

    Raises:
        ParentError: Naming the parent and what differs: kind, a token of the core, or the merges.
    """
    remedy = (
        "a tokenizer policy maps added tokens only, use a fine-tune whose tokenizer is the base's "
        "plus or minus added tokens"
    )
    if ours.kind != theirs.kind:
        raise ParentError(
            f"{who}: its tokenizer is of kind {ours.kind}, the base's of kind {theirs.kind}; "
            f"{remedy}"
        )
    added = ours.added.keys() | theirs.added.keys()
    cores = [{t: i for t, i in tokens.core.items() if t not in added} for tokens in (ours, theirs)]
    for token in sorted(t for t, _ in cores[0].items() ^ cores[1].items()):
        raise ParentError(
            f"{who}: its tokenizer has another core than the base's: token {token!r} has id "
            f"{cores[0].get(token, 'none')}, in the base {cores[1].get(token, 'none')}; {remedy}"
        )
    if ours.merges != theirs.merges:
        raise ParentError(
            f"{who}: its tokenizer has other merges than the base's, so the same text is split "
            f"differently; {remedy}"
        )


def tokenizer_paths(folder: Path) -> dict[str, bytes | Path]:
    """Return the files of a tokenizer and its chat templates: name in the directory -> path."""
    templates = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    names = [*_FILES, *(f"additional_chat_templates/{path.name}" for path in templates)]
    return {name: folder / name for name in names if (folder / name).is_file()}


def add_tokens(
    folder: Path, new: Mapping[str, Mapping[str, Any]], paths: Mapping[str, bytes | Path]
) -> tuple[dict[str, int], dict[str, bytes | Path]]:
    """Add tokens to the base's tokenizer, in the given order.

    Args:
        folder: The base's directory.
        new: Token -> its entry in the parent's tokenizer.json.
        paths: The base's tokenizer files.

    Returns:
        Token -> id, and the files: paths of unchanged ones, contents of the others.

    Raises:
        ParentError: If the tokenizers library cannot read the base's tokenizer.json or refuses
            a token.
    """
    switches = ("single_word", "lstrip", "rstrip", "normalized")
    try:
        tokenizer = Tokenizer.from_file(str(folder / FAST))
        for token, entry in new.items():
            is_special = bool(entry.get("special"))
            options = {name: bool(entry[name]) for name in switches if name in entry}
            add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
            add([AddedToken(token, special=is_special, **options)])
        vocab = tokenizer.get_vocab()
        ids = {token: vocab[token] for token in new}
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise ParentError(
            f"base: the tokenizers library cannot add the parents' tokens to {folder / FAST} "
            f"({type(error).__name__}: {error}); fetch base and parents again"
        ) from None
    files = {**paths, FAST: tokenizer.to_str(pretty=True).encode()}
    return ids, {**files, **_older_lists(folder, new, ids)}


def _older_lists(
    folder: Path, new: Mapping[str, Mapping[str, Any]], ids: Mapping[str, int]
) -> dict[str, bytes]:
    # Older versions of transformers also write added tokens into these files.
    changed = {}
    if (folder / "added_tokens.json").is_file():
        changed["added_tokens.json"] = {**read_json("base", folder / "added_tokens.json"), **ids}
    if (folder / "tokenizer_config.json").is_file():
        config = read_json("base", folder / "tokenizer_config.json")
        if isinstance(config.get("added_tokens_decoder"), dict):
            for token, entry in new.items():
                kept = {key: value for key, value in entry.items() if key != "id"}
                config["added_tokens_decoder"][str(ids[token])] = kept
            changed["tokenizer_config.json"] = config
    return {name: (json.dumps(data, indent=2) + "\n").encode() for name, data in changed.items()}
