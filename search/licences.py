"""Licences of merged models: what their cards state, and which of several is the strictest.

A merge is a work derived from all its parents. The order here is a reading aid, no legal advice;
what is not in it is never ranked. Knows model directories; fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

CARD = "README.md"

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


def licence_of(folder: Path) -> str | None:
    """Return the licence that a model's card states in its front matter, or None.

    A licence of the name ``other`` is told by its ``license_name``; without one it is not known.
    """
    try:
        data = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence, name = data.get("license"), data.get("license_name")
    if licence == "other":
        return name if isinstance(name, str) else None
    is_known = isinstance(licence, str) and licence != "unknown"
    return licence.lower() if is_known else None


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
