"""Lines of YAML for parameters that differ between tensors, in mergekit's format.

A value per tensor becomes one number, or an ordered list of filters, of which the first that is
part of the tensor's name decides. Knows no methods and no torch.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal

import yaml

from .parameters import Condition

Number = Decimal | bool
__all__ = ["Number", "conditions", "setting_lines", "text_of"]
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")


def setting_lines(head: str, values: Mapping[str, Mapping[str, Number]]) -> list[str]:
    """Return the lines for the parameters of one model, or of the whole merge.

    Args:
        head: The first line, with its indent.
        values: Tensor -> parameter -> value; all tensors have the same parameters.

    Returns:
        No lines if there are no parameters.
    """
    names = list(next(iter(values.values()), {}))
    indent = " " * (len(head) - len(head.lstrip()) + 2)
    lines = []
    for name in names:
        found = conditions({tensor: own[name] for tensor, own in values.items()})
        if len(found) == 1 and found[0].filter is None:
            lines.append(f"{indent}{name}: {_number(found[0].value)}")
            continue
        lines.append(f"{indent}{name}:")
        for condition in found:
            entry = "" if condition.filter is None else f"filter: {text_of(condition.filter)}, "
            lines.append(f"{indent}- {{{entry}value: {_number(condition.value)}}}")
    return [head, *lines] if lines else []


def conditions(values: Mapping[str, Number]) -> tuple[Condition, ...]:
    """Return a short list of filters that gives each tensor its value.

    Filters are prefixes of tensor names up to a dot, so that `layers.1.` does not match
    `layers.10.`; the last entry has none.
    """
    tree = [Condition(name or None, value) for name, value in _tree("", values, None)]
    by_length = sorted(tree, key=lambda c: -len(c.filter or ""))
    exact = [Condition(tensor, value) for tensor, value in values.items()]
    exact.sort(key=lambda c: -len(c.filter or ""))
    for listed in (tree, by_length, [*exact, tree[-1]]):
        if _gives(listed, values):
            used = {id(_first(listed, tensor)) for tensor in values}
            needed = [c for c in listed if id(c) in used or c.filter is None]
            short = _without_common_start(needed)
            return tuple(short if _gives(short, values) else needed)
    raise AssertionError("names are unique, so the longest filters decide")


def _gives(listed: Sequence[Condition], values: Mapping[str, Number]) -> bool:
    return all(_first(listed, tensor).value == value for tensor, value in values.items())


def _tree(
    start: str, values: Mapping[str, Number], outside: Number | None
) -> list[tuple[str, Number]]:
    # The most common value below `start` is its default; parts that differ come before it. On a tie
    # it is the value outside, which need not be repeated.
    counts = Counter(values.values())
    default = max(counts, key=lambda value: (counts[value], value == outside))
    parts: dict[str, dict[str, Number]] = {}
    for tensor, value in values.items():
        head, dot, _ = tensor[len(start) :].partition(".")
        parts.setdefault(start + head + dot, {})[tensor] = value
    found = []
    for part in sorted(parts, key=lambda part: _number_in(part[len(start) :])):
        inside = parts[part]
        if set(inside.values()) == {default}:
            continue
        found += _tree(part, inside, default) if len(inside) > 1 else [(part, *inside.values())]
    return found if default == outside else [*found, (start, default)]


def _number_in(word: str) -> int:
    """Return a sort key: layers by number, others in their order."""
    number = word.removesuffix(".")
    return int(number) if number.isdecimal() else -1


def _without_common_start(found: Sequence[Condition]) -> list[Condition]:
    names = [c.filter for c in found if c.filter is not None]
    start = names[0].partition(".")[0] + "." if names else ""
    if not all(name.startswith(start) and len(name) > len(start) for name in names):
        return list(found)
    return [Condition(c.filter and c.filter.removeprefix(start), c.value) for c in found]


def _first(listed: Sequence[Condition], tensor: str) -> Condition:
    return next(condition for condition in listed if condition.applies(tensor))


def _number(value: object) -> str:
    """Return text that PyYAML reads as a float: `1e-05` would be text and `1` an integer."""
    if isinstance(value, bool):
        return str(value).lower()
    assert isinstance(value, Decimal)
    text = f"{value:f}"
    return text if "." in text else f"{text}.0"


def text_of(text: str) -> str:
    """Return text for YAML, quoted if necessary."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()
