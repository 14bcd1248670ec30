"""Licences of merged models: what they state, and which of several is the strictest.

A merge is a work derived from all its parents. The order here is a reading aid, no legal advice;
what is not in it is never ranked. Knows model directories; fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

CARD = "README.md"
FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
"""Files that state a licence, or what it wants to be passed on."""
OTHER = "other"
"""What the hub calls a licence of a name of its own."""
STRICTNESS: tuple[tuple[str, ...], ...] = (
    ("cc0-1.0", "unlicense", "wtfpl", "0bsd", "pddl"),
    ("mit", "isc", "bsd", "bsd-2-clause", "bsd-3-clause", "zlib", "bsl-1.0", "ncsa"),
    ("apache-2.0", "ms-pl", "cc-by-3.0", "cc-by-4.0", "afl-3.0"),
    ("lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "mpl-2.0", "epl-1.0", "epl-2.0"),
    ("gpl", "gpl-2.0", "gpl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "osl-3.0",
     "eupl-1.1", "eupl-1.2"),
    ("agpl-3.0",),
    ("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m",
     "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "deepfloyd-if-license"),
    ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"),
    ("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
     "cc-by-nc-sa-4.0", "fair-noncommercial-research-license", "apple-amlr"),
    ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
)  # fmt: skip
"""The hub's licence names by what they ask of who passes the work on: nothing, naming the authors,
a notice of changes, the same licence for the work's own files, for all of it, for its service too,
use restrictions, a vendor's terms, no commerce, no derived works."""
_RANK = {name: rank for rank, names in enumerate(STRICTNESS) for name in names}
TITLES: tuple[tuple[str, str], ...] = (
    ("apache license version 2.0", "apache-2.0"),
    ("mit license", "mit"),
    ("bsd 2-clause", "bsd-2-clause"),
    ("bsd 3-clause", "bsd-3-clause"),
    ("mozilla public license version 2.0", "mpl-2.0"),
    ("gnu affero general public license version 3", "agpl-3.0"),
    ("gnu lesser general public license version 3", "lgpl-3.0"),
    ("gnu lesser general public license version 2.1", "lgpl-2.1"),
    ("gnu general public license version 3", "gpl-3.0"),
    ("gnu general public license version 2", "gpl-2.0"),
    ("creative commons cc0 1.0 universal", "cc0-1.0"),
    ("cc0 1.0 universal", "cc0-1.0"),
    ("attribution 4.0 international", "cc-by-4.0"),
    ("attribution-sharealike 4.0 international", "cc-by-sa-4.0"),
    ("attribution-noncommercial 4.0 international", "cc-by-nc-4.0"),
    ("attribution-noncommercial-sharealike 4.0 international", "cc-by-nc-sa-4.0"),
    ("attribution-noncommercial-noderivatives 4.0 international", "cc-by-nc-nd-4.0"),
    ("llama 2 community license agreement", "llama2"),
    ("meta llama 3 community license agreement", "llama3"),
    ("llama 3.1 community license agreement", "llama3.1"),
    ("llama 3.2 community license agreement", "llama3.2"),
    ("llama 3.3 community license agreement", "llama3.3"),
    ("llama 4 community license agreement", "llama4"),
    ("gemma terms of use", "gemma"),
)
"""How the texts of some licences begin, in lower case, commas and line ends left out -> the hub's
name. Only the first words of a file count: inside, licences speak of each other."""


@dataclass(frozen=True)
class Licence:
    """A licence as a model states it.

    Attributes:
        name: The hub's, or the model's own name for it.
        is_own: Whether it is not among the hub's: then the card says ``license: other``.
        link: Of one's own: a URL, or a file of the model.
    """

    name: str
    is_own: bool = False
    link: str | None = None


def licence_of(folder: Path) -> Licence | None:
    """Return the licence that a model states, or None if it is not known.

    Its card's front matter counts first, then the title of its LICENSE file. A licence of the name
    ``other`` is told by its ``license_name``; without one it is not known.
    """
    try:
        data = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):
        return _by_title(folder)
    stated, name, link = (data.get(k) for k in ("license", "license_name", "license_link"))
    if stated == OTHER:
        own = link if isinstance(link, str) else None
        return Licence(name, is_own=True, link=own) if isinstance(name, str) else None
    if isinstance(stated, str) and stated != "unknown":
        return Licence(stated.lower())
    return _by_title(folder) if stated is None else None


def _by_title(folder: Path) -> Licence | None:
    """The licence whose title a LICENSE file begins with; None if there are several, or none."""
    found = set()
    for path in licence_files(folder):
        if not path.name.upper().startswith("NOTICE"):
            with path.open(encoding="utf-8", errors="replace") as file:
                title = " ".join(file.read(1000).lower().replace(",", " ").split())
            found.add(next((name for words, name in TITLES if _begins(title, words)), None))
    name = found.pop() if len(found) == 1 else None
    return Licence(name) if name else None


def _begins(title: str, words: str) -> bool:
    """Whether a text's first words, up to a few that may stand before them, are these."""
    start = title.lstrip("#=*- ")
    return any(start.startswith(before + words) for before in ("", "the ", "creative commons "))


def licence_files(folder: Path) -> list[Path]:
    """The files of a model that state its licence, by name."""
    return sorted({p for pattern in FILES for p in folder.glob(pattern) if p.is_file()})


def kept_names(folders: Mapping[str, Path]) -> dict[tuple[str, str], str]:
    """Owner and name of each licence file -> its name beside a merge of these models.

    Args:
        folders: Base, then parents -> their directories. Where texts of one name differ, the first
            one keeps it, the others get their owner's.
    """
    first: dict[str, str] = {}
    names = {}
    for owner, folder in folders.items():
        for name, text in _texts(folder).items():
            stem, dot, end = name.partition(".")
            is_first = first.setdefault(name, text) == text
            names[owner, name] = name if is_first else f"{stem}-{owner}{dot}{end}"
    return names


def kept_files(folders: Mapping[str, Path]) -> dict[str, str]:
    """Name -> text of what is kept of the models' licence files; see `kept_names`."""
    return {
        kept: _texts(folders[owner])[name] for (owner, name), kept in kept_names(folders).items()
    }


def _texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8", errors="replace") for p in licence_files(folder)}


def strictest(licences: Iterable[str | None]) -> str | None:
    """Return the strictest of several licences; None if one is not known, or cannot be ranked.

    Equal licences need no rank. Of equally strict ones the first by name.
    """
    distinct = set(licences)
    if len(distinct) == 1:
        return distinct.pop()
    known = [licence for licence in distinct if licence is not None and licence in _RANK]
    if len(known) < len(distinct):
        return None
    return min(known, key=lambda name: (-_RANK[name], name), default=None)
