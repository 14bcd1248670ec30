"""Fingerprints: one line of text, equal if scores are comparable. Pure: no model, no task.

A fingerprint lists the ingredients of scores, as ``dtype=float32 items=9f2c... torch=2.9``, so an
error can name the ingredients that differ.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_DIGITS = 32  # hex digits kept of a SHA-256: 128 bits


def digest(value: Any) -> str:
    """Return the SHA-256 (hex, 128 bits) of a value's canonical JSON; other types as `str`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """Return named ingredients as one line, sorted by name.

    Args:
        parts: Name (a-z, digits and underscores) -> a short text without blanks or ``=``, such as
            a version, a number or a `digest`.

    Raises:
        ValueError: If a name or a value does not have that form.
    """
    for name, value in parts.items():
        if not re.fullmatch(r"[a-z0-9_]+", name) or not re.fullmatch(r"[^\s=]+", str(value)):
            raise ValueError(
                f"ingredients of a fingerprint need a name in a-z, 0-9 or _, and a value without "
                f"blanks or =, got {name!r}: {value!r}; take the `digest` of longer values"
            )
    return " ".join(f"{name}={parts[name]}" for name in sorted(parts))


def parts_of(fingerprint: str) -> dict[str, str]:
    """Return the ingredients of a fingerprint by name; none if it is empty."""
    return dict(part.split("=", 1) for part in fingerprint.split() if "=" in part)


def differing(a: str, b: str) -> dict[str, tuple[str, str]]:
    """Return the ingredients that differ: name -> (in a, in b), ``-`` if absent."""
    one, other = parts_of(a), parts_of(b)
    return {
        name: (one.get(name, "-"), other.get(name, "-"))
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    }


def refuse_incomparable(a: str, b: str, what: str = "the scores") -> None:
    """Refuse two fingerprints that differ; an unknown one ("") equals only another unknown one.

    Args:
        a: First or expected fingerprint.
        b: Second or actual fingerprint.
        what: Name of the compared things, for the message.

    Raises:
        ValueError: If they differ; names the ingredients, with both values.
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
    """Return a digest of all that decides a tokenizer's ids: its model and its special tokens.

    The chat template and the padding and truncation of the last call are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    else:
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    special.pop("pad_token", None)  # lm-eval adds one if there is none; it is never read
    bos = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    return digest([rules, special, bos])
