"""Plain YAML in which a doubled key is an error. Knows no keys."""

from decimal import Decimal, InvalidOperation
from typing import Any

import yaml

__all__ = ["load_yaml"]


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping with the same key twice, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"duplicate key `{key}`{node.start_mark}")
        return super().construct_mapping(node, deep)


class _DecimalLoader(_StrictLoader):
    """Reads numbers as decimals."""

    def construct_decimal(self, node: yaml.ScalarNode) -> Decimal:
        """Build one number, every digit kept."""
        try:
            return Decimal(node.value.replace("_", ""))
        except InvalidOperation:
            return Decimal(repr(super().construct_yaml_float(node)))  # .inf, .nan, 1:30.0


_DecimalLoader.add_constructor("tag:yaml.org,2002:float", _DecimalLoader.construct_decimal)


def load_yaml(text: str | bytes, *, decimals: bool = False) -> Any:
    """Read a YAML document.

    Args:
        text: The document; bytes must be UTF-8.
        decimals: Read floats as `Decimal`, with every digit.

    Raises:
        ValueError: In one line, if it is not YAML or has a doubled key.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return yaml.load(text, Loader=_DecimalLoader if decimals else _StrictLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"not readable as YAML: {error}; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from None
