"""Locate a model: a directory, or an id of the Hugging Face hub in the local cache.

huggingface_hub resolves ids. Nothing is downloaded unless requested, and never a file that could
run code. Knows nothing of the contents of the directory.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..hints import reason
from .headers import ParentError

FETCHED = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"),
    *("LICENSE*", "NOTICE*", "README.md"),
)
"""Files to download: weights, settings, tokenizer, licence; never a pickle or a script."""
NOT_FETCHED = ("*/*", "consolidated*")
"""Copies of the weights in other formats, as in some repositories."""
# OSError and the error of the HTTP library, which depends on the version.
_FAILURES: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


@dataclass(frozen=True)
class Place:
    """Directory of a model, and its name as given by the user.

    ``name`` is the last part of its path or id; ``text`` is the path, or ``org/name@commit``.
    """

    folder: Path
    name: str
    text: str


def locate(who: str, given: Path | str, *, download: bool = False) -> Place:
    """Find the directory of a model.

    Args:
        who: "base" or "parent <name>", for messages.
        given: A directory, or a hub id ``org/name`` or ``org/name@revision``. An existing path
            takes precedence over an id.
        download: Download files of an id that the cache lacks, safetensors and text only.

    Returns:
        The place; a path that does not exist and is not an id is returned as it is.

    Raises:
        ParentError: An id that is not in the cache, or cannot be fetched.
    """
    path = Path(given)
    hub_id = None if isinstance(given, Path) or os.path.lexists(path) else _hub_id(given)
    if hub_id is None:
        path = path.absolute()
        return Place(path, path.name, os.fspath(path))
    folder = _snapshot(who, given, *hub_id, download)
    name, _ = hub_id
    return Place(folder, name.split("/")[1], f"{name}@{folder.name}")


def _hub_id(text: str) -> tuple[str, str | None] | None:
    # (org/name, revision) if the text has that form.
    name, _, revision = text.partition("@")
    if name.count("/") != 1:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name, revision or None


def _snapshot(who: str, given: Path | str, name: str, revision: str | None, download: bool) -> Path:
    # In the cache config.json identifies the snapshot: other files may be left out on purpose, and
    # missing weight files are named when they are read.
    wanted = list(FETCHED) if download else ["config.json"]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            local_files_only=not download,
            allow_patterns=wanted,
            ignore_patterns=list(NOT_FETCHED),
        )
    except LocalEntryNotFoundError as error:
        if download:
            raise ParentError(_failed(who, given, error)) from None
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise ParentError(
            f"{who}: no directory {given}, and the hub id {given} is not in the local "
            f"cache; give a directory, allow the download, or run `{command}`"
        ) from None
    except _FAILURES as error:
        raise ParentError(_failed(who, given, error)) from None
    return Path(folder)


def _failed(who: str, given: Path | str, error: Exception) -> str:
    return (
        f"{who}: cannot fetch {given} from the hub ({type(error).__name__}: {reason(error)}); "
        f"check the id, the revision, the network and, for a gated model, `hf auth login`"
    )
