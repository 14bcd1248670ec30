"""Splits of items into search and confirm. Pure: hashes in, split names out; no model, no task.

The hash of its document alone decides whether an item belongs to ``search`` or ``confirm``. The
split depends on no file order, no other items and no seed, and copies of a document stay together.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SEARCH, CONFIRM, GUARD, UNUSED = "search", "confirm", "guard", "unused"
SPLIT_NAMES = (SEARCH, CONFIRM, GUARD)


def doc_hash(doc: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a document's canonical JSON: sorted keys, no blanks, UTF-8.

    Values that JSON lacks (dates, arrays, images) enter by their ``str``.
    """
    text = json.dumps(doc, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fraction(digest: str, start: int) -> float:
    """Return 64 bits of a digest, from hex digit ``start``, as a number in [0, 1)."""
    return int(digest[start : start + 16], 16) / 2**64


def cap_rank(digest: str) -> float:
    """Return an item's rank under a cap: bits 64..127, independent of those of the split."""
    return _fraction(digest, 16)


def capped(doc_hashes: Sequence[str], cap: int | None, rank: Callable[[str], float]) -> set[str]:
    """Return the distinct hashes of lowest ``rank`` with at most ``cap`` items, copies counted."""
    copies = Counter(doc_hashes)
    if cap is None:
        return set(copies)
    chosen: set[str] = set()
    for digest in sorted(copies, key=lambda digest: (rank(digest), digest)):
        if copies[digest] > cap:
            break
        chosen.add(digest)
        cap -= copies[digest]
    return chosen


@dataclass(frozen=True)
class Splits:
    """Shares and caps of the search and confirm splits.

    Args:
        search_share: Probability in [0, 1] that a document is a search item, else a confirm item.
        search_items: Most search items per task; the documents of lowest hash are kept.
        confirm_items: Most confirm items per task, likewise.

    Raises:
        ValueError: If a number is out of range.
    """

    search_share: float = 0.5
    search_items: int | None = None
    confirm_items: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not 0.0 <= self.search_share <= 1.0:
            raise ValueError(f"`search_share` must be in [0, 1], got {self.search_share}")
        for name in ("search_items", "confirm_items"):
            cap = getattr(self, name)
            if cap is not None and cap < 1:
                raise ValueError(
                    f"`{name}` must be at least 1, got {cap}; leave it out to use every item"
                )

    def assign(self, doc_hashes: Sequence[str]) -> list[str]:
        """Return the split of every document: ``search``, ``confirm`` or ``unused`` (over a cap).

        Args:
            doc_hashes: Hex SHA-256 of each document, in any order, copies allowed.
        """
        side = {h: SEARCH if _fraction(h, 0) < self.search_share else CONFIRM for h in doc_hashes}
        kept: set[str] = set()
        for name, cap in ((SEARCH, self.search_items), (CONFIRM, self.confirm_items)):
            kept |= capped([h for h in doc_hashes if side[h] == name], cap, cap_rank)
        return [side[h] if h in kept else UNUSED for h in doc_hashes]
