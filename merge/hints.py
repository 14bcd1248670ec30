"""What to say where a word is not known: the nearest known one, else all of them."""

from collections.abc import Iterable, Set
from difflib import get_close_matches

__all__ = ["hint"]


def hint(word: str, known: Iterable[str], *, all_of: str = "known:") -> str:
    """Return ``did you mean `x`?`` for the nearest known word, else all known ones.

    Args:
        word: What is not known.
        known: What is, listed in the order given; sets by the alphabet, and nothing as "none".
        all_of: What the list of all known words opens with.
    """
    words = sorted(known) if isinstance(known, Set) else list(known)
    near = get_close_matches(word, words, n=1)
    return f"did you mean `{near[0]}`?" if near else f"{all_of} {', '.join(words) or 'none'}"
