"""The faults of a configuration, one line each: the key, the law, the value, the remedy.

Knows pydantic's error types; no keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...merge.hints import near, short

Place = tuple[int | str, ...]
_NUMBER, _TEXT = "must be a number", "must be text; put it in quotes"
_WHOLE, _SWITCH = "must be a whole number", "must be true or false"
LAWS: dict[str, str] = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "dict_type": "must be a mapping; write `key: value` lines",
    "finite_number": "must be a finite number",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {words}",
    "path_type": "must be a path; put it in quotes",
    "string_too_short": "must not be empty; name one",
    "string_type": _TEXT,
    "too_short": "must have at least {min_length} entry; add one",
    "tuple_type": "must be a list; put it in [ ]",
}
"""pydantic's error type -> law and, where the law does not say what to do, remedy."""


def fault_lines(error: ValidationError, data: Any) -> list[str]:
    """Return a line for each fault.

    Args:
        error: What pydantic reports.
        data: What it was given: it tells keys from the branches of a union in pydantic's places.
    """
    faults: dict[Place, list[Any]] = {}
    for fault in error.errors():
        faults.setdefault(_place(fault, data), []).append(fault)
    outer = {place[:n] for place in faults for n in range(len(place))}
    return [
        _line(".".join(map(str, place)), found)
        for place, found in faults.items()
        if place not in outer or any(fault["type"] == "value_error" for fault in found)
    ]


def _place(fault: Any, data: Any) -> Place:
    place: list[int | str] = []
    for part in fault["loc"]:
        is_key = isinstance(data, Mapping) and part in data
        is_index = isinstance(data, list | tuple) and part in range(len(data))
        if is_key or is_index:
            data = data[part]
            place.append(part)
    return (*place, fault["loc"][-1]) if fault["type"] == "missing" else tuple(place)


def _line(where: str, faults: list[Any]) -> str:
    """Return the line of one place; it has several faults if none of a union's branches fits."""
    if faults[0]["type"] == "missing":
        return f"the key `{where}` is missing; add it"
    own = [f["msg"].removeprefix("Value error, ") for f in faults if f["type"] == "value_error"]
    if own:
        return f"{where}: {own[0]}" if where else own[0]
    parts = [_law(fault).partition("; ") for fault in faults]
    laws = list(dict.fromkeys(law for law, _, _ in parts))
    laws[1:] = [law.removeprefix("must be ") for law in laws[1:]]
    value = faults[0]["input"]
    got = "nothing" if value is None else short(value)
    meant = "".join(near(value, _words(fault)) for fault in faults)
    remedy = meant or "".join(f"; {remedy}" for _, _, remedy in parts[:1] if remedy)
    return f"{where}: {', or '.join(laws)}, got {got}{remedy}"


def _law(fault: Any) -> str:
    context = {
        key: f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in fault.get("ctx", {}).items()
    }
    words = context.get("expected", "").replace("'", "")
    words = words.replace("True", "true").replace("False", "false")
    law = LAWS.get(fault["type"])
    return fault["msg"] if law is None else law.format(words=words, **context)


def _words(fault: Any) -> list[str]:
    """Return the words that a literal may be."""
    return re.findall(r"'([^']+)'", fault.get("ctx", {}).get("expected", ""))
