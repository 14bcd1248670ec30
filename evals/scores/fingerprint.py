"""What makes two scores comparable, in one line of text. Pure; knows no model and no task.

A fingerprint is the ingredients of a score by name, as ``dtype=float32 items=9f2c... torch=2.9``:
equal texts give comparable scores, and where two differ the names that differ can be told.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_DIGITS = 32  # hex digits kept of a SHA-256: 128 bits


def digest(value: Any) -> str:
    """SHA-256 (hex, 128 bits) of a value's canonical JSON; what JSON lacks enters by `str`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """Write named ingredients as one line, sorted by name.

    Args:
        parts: Name (a-z, digits and underscores) to a short text without blanks or ``=``: a
            version, a number, a `digest`.

    Raises:
        ValueError: If a name or a value is not of that form.
    """
    for name, value in parts.items():
        if not re.fullmatch(r"[a-z0-9_]+", name) or not re.fullmatch(r"[^\s=]+", str(value)):
            raise ValueError(
                f"ingredients of a fingerprint need a name in a-z, 0-9 or _, and a value without "
                f"blanks or =, got {name!r}: {value!r}; take the `digest` of longer values"
            )
    return " ".join(f"{name}={parts[name]}" for name in sorted(parts))


def parts_of(fingerprint: str) -> dict[str, str]:
    """Ingredients of a fingerprint by name; empty if it is not known."""
    return dict(part.split("=", 1) for part in fingerprint.split() if "=" in part)


def differing(a: str, b: str) -> dict[str, tuple[str, str]]:
    """Ingredients that differ between two fingerprints: name -> (in a, in b), ``-`` if absent."""
    one, other = parts_of(a), parts_of(b)
    return {
        name: (one.get(name, "-"), other.get(name, "-"))
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def refuse_incomparable(a: str, b: str, what: str = "the scores") -> None:
    """Refuse two fingerprints that differ; an unknown one ("") equals another unknown one alone.

    Args:
        a: The first, or the one expected.
        b: The second, or the one found.
        what: What is being compared, for the message.

    Raises:
        ValueError: Naming the ingredients that differ, with both values.
    """
    if a == b:
        return
    if not a or not b:
        raise ValueError(
            f"{what} cannot be compared: one has no fingerprint, so it was scored by an earlier "
            "version; score both again"
        )
    changes = [f"{name} ({x} and {y})" for name, (x, y) in differing(a, b).items()]
    raise ValueError(
        f"{what} cannot be compared: they differ in {', '.join(changes)}; score both with the "
        "same items, prompts, tokenizer, dtype and versions"
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of all that decides a tokenizer's ids: its model, its special tokens, its class.

    The chat template is no part of it, nor the padding and truncation of the last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    else:
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    special.pop("pad_token", None)  # lm-eval adds one where there is none; it is never read
    bos = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    return digest([rules, special, bos])
