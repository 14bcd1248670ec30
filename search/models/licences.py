"""Licences of merged models, and the strictest of several.

A merge is a work derived from all its parents. The order here is a reading aid, not legal advice;
licences that are not in it are never ranked. Knows model directories; downloads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

CARD = "README.md"
FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
"""Files with a licence, or with notices that must be redistributed."""
OTHER = "other"
"""The hub's name for custom licences."""
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
"""The hub's licence names by their conditions on redistribution: none, attribution, a notice of
changes, the same licence for modified files, for the whole work, for network services too, use
restrictions, a vendor's terms, non-commercial use, no derived works."""
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
"""First words of licence texts, in lower case, without commas and line ends -> the hub's name.
Only the first words count: licences mention each other in their texts."""


@dataclass(frozen=True)
class Licence:
    """A licence as stated by a model.

    Attributes:
        name: The hub's name, or the model's name for a custom licence.
        is_own: Whether it is a custom licence: then the card says ``license: other``.
        link: URL or file of a custom licence.
    """

    name: str
    is_own: bool = False
    link: str | None = None


def licence_of(folder: Path) -> Licence | None:
    """Return the licence of a model, or None if it is unknown.

    It is read from the card's front matter, else from the title of the LICENSE file. A licence
    named ``other`` is identified by its ``license_name``; without one it is unknown.
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
    """The licence whose title begins the LICENSE file; None if there is none or several."""
    names = set()
    for path in licence_files(folder):
        if not path.name.upper().startswith("NOTICE"):
            with path.open(encoding="utf-8", errors="replace") as file:
                title = " ".join(file.read(1000).lower().replace(",", " ").split())
            names.add(next((name for words, name in TITLES if _begins(title, words)), None))
    name = names.pop() if len(names) == 1 else None
    return Licence(name) if name else None


def _begins(title: str, words: str) -> bool:
    """Whether a text begins with these words, perhaps after an article."""
    start = title.lstrip("#=*- ")
    return any(start.startswith(before + words) for before in ("", "the ", "creative commons "))


def licence_files(folder: Path) -> list[Path]:
    """Return the licence files of a model, sorted."""
    return sorted({p for pattern in FILES for p in folder.glob(pattern) if p.is_file()})


def kept_names(folders: Mapping[str, Path]) -> dict[tuple[str, str], str]:
    """Return (owner, name) of each licence file -> its name in the directory of a merge.

    Args:
        folders: Base, then parents -> their directories. If texts of the same name differ, the
            first one keeps the name; to the others the owner's name is appended.
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
    """Return name -> text of the licence files in the directory of a merge; see `kept_names`."""
    return {
        kept: _texts(folders[owner])[name] for (owner, name), kept in kept_names(folders).items()
    }


def _texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8", errors="replace") for p in licence_files(folder)}


def strictest(licences: Iterable[str | None]) -> str | None:
    """Return the strictest of several licences; None if one is unknown or cannot be ranked.

    Of equally strict ones the first by name. A single licence needs no rank.
    """
    distinct = set(licences)
    if len(distinct) == 1:
        return distinct.pop()
    ranked = [licence for licence in distinct if licence is not None and licence in _RANK]
    if len(ranked) < len(distinct):
        return None
    return min(ranked, key=lambda name: (-_RANK[name], name), default=None)
