"""Parts of error messages: the nearest known word, unknown keys, exceptions and values in short."""

from collections.abc import Collection, Iterable, Mapping, Set
from difflib import get_close_matches
from typing import Any

__all__ = ["check_keys", "hint", "near", "reason", "short"]


def hint(word: str, known: Iterable[str], *, all_of: str = "known:") -> str:
    """Return ``did you mean `x`?`` for the nearest known word, else all known ones.

    Args:
        word: The unknown word.
        known: The known ones, listed in this order; sets alphabetically, nothing as "none".
        all_of: How the list of all known words begins.
    """
    words = sorted(known) if isinstance(known, Set) else list(known)
    return near(word, words).removeprefix("; ") or f"{all_of} {', '.join(words) or 'none'}"


def near(value: object, known: Iterable[str]) -> str:
    """Return ``; did you mean `x`?`` for the known word nearest to a value, "" if none is near."""
    found = get_close_matches(str(value), list(known), n=1)
    return f"; did you mean `{found[0]}`?" if found else ""


def check_keys(
    where: str,
    data: Any,
    known: Iterable[str],
    *,
    required: Collection[str] = (),
    error: type[ValueError] = ValueError,
) -> None:
    """Refuse what is not a mapping, unknown keys (naming the nearest known one), missing keys.

    Args:
        where: Place of the mapping, for messages; "" at the top.
        data: What should be a mapping.
        known: The keys that it may have.
        required: Those that it must have.
        error: The type to raise.
    """
    place = f"{where.rstrip('.')}: " if where else ""
    known = list(known)
    if not isinstance(data, Mapping):
        raise error(f"{place}must be a mapping with keys {', '.join(known)}; got {data!s:.80}")
    for key in data:
        if key not in known:
            raise error(f"{place}unknown key `{key}`; {hint(str(key), known)}")
    for key in required:
        if key not in data:
            raise error(f"{place}missing key `{key}`; add it")


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's message, or its repr if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0][:limit]


def short(value: object, limit: int = 80) -> str:
    """Return the repr of a value, cut to a length."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
