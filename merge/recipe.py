"""Recipes: all that determines a merge given the parents. Pure values, no torch, no files.

A recipe names a method, the parents, and for each layer group one weight and one drop rate per
parent. Equal recipes make equal weights, to the bit.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from .groups import LayerGroup
from .methods import METHODS, Method

_KEYS = ("method", "parents", "coefficients", "lambda", "mask_seed")


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of one layer group: one weight and one drop rate per parent, in recipe order."""

    weights: tuple[float, ...]
    drop_rates: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check lengths and ranges; numbers become floats, -0.0 becomes 0.0."""
        weights = tuple(_number("weight", w) for w in self.weights)
        drop_rates = tuple(_number("drop_rate", p) for p in self.drop_rates)
        if len(weights) != len(drop_rates):
            raise ValueError(
                f"a layer group needs one weight and one drop_rate per parent, got "
                f"{len(weights)} weights and {len(drop_rates)} drop_rates"
            )
        for rate in drop_rates:
            if not 0.0 <= rate < 1.0:
                raise ValueError(
                    f"`drop_rate` must be in [0, 1), got {rate}; use 0 to drop nothing"
                )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "drop_rates", drop_rates)


@dataclass(frozen=True)
class Recipe:
    """A merge, fully determined given the parents.

    ``coefficients`` maps layer group names ("embed", "layers.3.attn", ...) to Coefficients whose
    entries follow ``parents``. ``lambda_`` multiplies the summed delta ("lambda" in JSON).
    ``mask_seed`` is any integer in [0, 2**64) and matters to random methods only.

    Raises:
        ValueError: Unknown method, doubled parents, coefficients of another length, a number
            outside its range, or a parameter that the method does not have.
    """

    method: str
    parents: tuple[str, ...]
    coefficients: Mapping[str, Coefficients]
    lambda_: float = 1.0
    mask_seed: int = 0

    def __post_init__(self) -> None:
        """Check everything that can be checked without the parents' files."""
        method = _known_method(self.method)
        object.__setattr__(self, "parents", tuple(self.parents))
        object.__setattr__(self, "coefficients", MappingProxyType(dict(self.coefficients)))
        object.__setattr__(self, "lambda_", _number("lambda", self.lambda_))
        _check_parents(self.parents)
        _check_seed(self.mask_seed)
        for group, coefficients in self.coefficients.items():
            LayerGroup.from_name(group)
            _check_coefficients(group, coefficients, self.parents, method)
        if not method.uses_lambda and self.lambda_ != 1.0:
            raise ValueError(
                f"method `{method.name}` has no lambda, it must be 1, got {self.lambda_}; "
                f"scale the weights instead"
            )

    @classmethod
    def uniform(
        cls,
        method: str,
        parents: Iterable[str],
        groups: Iterable[str],
        weight: float | Mapping[str, float],
        drop_rate: float | Mapping[str, float] = 0.0,
        lambda_: float = 1.0,
        mask_seed: int = 0,
    ) -> "Recipe":
        """The same coefficients in every layer group.

        ``weight`` and ``drop_rate`` are one number for all parents or a mapping that names each
        parent exactly once.
        """
        parents = tuple(parents)
        shared = Coefficients(
            _per_parent("weight", weight, parents), _per_parent("drop_rate", drop_rate, parents)
        )
        return cls(method, parents, dict.fromkeys(groups, shared), lambda_, mask_seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives an equal recipe."""
        coefficients = {
            group: {"weights": list(c.weights), "drop_rates": list(c.drop_rates)}
            for group, c in self.coefficients.items()
        }
        values = (self.method, list(self.parents), coefficients, self.lambda_, self.mask_seed)
        return dict(zip(_KEYS, values, strict=True))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recipe":
        """Read `to_dict` back; unknown and missing keys are errors that name them."""
        _check_keys("recipe", data, _KEYS, optional=("lambda", "mask_seed"))
        coefficients = {}
        for group, entry in data["coefficients"].items():
            _check_keys(f"recipe's group {group}", entry, ("weights", "drop_rates"))
            coefficients[group] = Coefficients(tuple(entry["weights"]), tuple(entry["drop_rates"]))
        return cls(
            data["method"],
            tuple(data["parents"]),
            coefficients,
            data.get("lambda", 1.0),
            data.get("mask_seed", 0),
        )

    def to_json(self) -> str:
        """One line of JSON; numbers survive to the bit."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read `to_json` back.

        Raises:
            ValueError: If the text is not JSON or not a recipe.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"a recipe is a JSON object, got broken JSON ({error}); write it with to_json"
            ) from None
        return cls.from_dict(data)

    @property
    def canonical(self) -> "Recipe":
        """The same merge with parents sorted by name and groups in model order."""
        order = sorted(range(len(self.parents)), key=lambda i: self.parents[i])
        groups = sorted(self.coefficients, key=lambda name: LayerGroup.from_name(name).order)
        coefficients = {
            group: Coefficients(
                tuple(self.coefficients[group].weights[i] for i in order),
                tuple(self.coefficients[group].drop_rates[i] for i in order),
            )
            for group in groups
        }
        parents = tuple(self.parents[i] for i in order)
        return Recipe(self.method, parents, coefficients, self.lambda_, self.mask_seed)

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the canonical JSON; the order of parents and groups does not enter."""
        return hashlib.sha256(self.canonical.to_json().encode()).hexdigest()

    def __hash__(self) -> int:
        """Hash of the digest: equal recipes hash alike."""
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle as JSON (read-only mappings do not pickle)."""
        return (Recipe.from_json, (self.to_json(),))


def _known_method(name: str) -> Method:
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(str(name), METHODS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"choose one of {', '.join(METHODS)}"
    raise ValueError(f"`method` must name a known merge method, got {name!r}; {hint}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}")
    return float(value) + 0.0  # -0.0 becomes 0.0


def _check_parents(parents: tuple[str, ...]) -> None:
    if not parents:
        raise ValueError("a recipe needs at least one parent, got none; name the fine-tunes")
    for name in parents:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a parent's name must be a non-empty string, got {name!r}")
    doubled = sorted({name for name in parents if parents.count(name) > 1})
    if doubled:
        raise ValueError(f"parents must have distinct names, got {doubled[0]!r} twice; rename one")


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"`mask_seed` must be an integer in [0, 2**64), got {seed!r}")


def _check_coefficients(
    group: str, coefficients: Coefficients, parents: tuple[str, ...], method: Method
) -> None:
    if len(coefficients.weights) != len(parents):
        raise ValueError(
            f"layer group {group} needs one weight per parent, got {len(coefficients.weights)} "
            f"weights for {len(parents)} parents"
        )
    if not method.uses_drop_rate and any(coefficients.drop_rates):
        raise ValueError(
            f"method `{method.name}` has no drop_rate, it must be 0, got "
            f"{max(coefficients.drop_rates)} in layer group {group}; leave it out"
        )


def _per_parent(
    name: str, value: float | Mapping[str, float], parents: tuple[str, ...]
) -> tuple[float, ...]:
    if not isinstance(value, Mapping):
        return (value,) * len(parents)
    if set(value) != set(parents):
        raise ValueError(
            f"`{name}` must name each parent once, got {', '.join(sorted(value))} for parents "
            f"{', '.join(sorted(parents))}"
        )
    return tuple(value[parent] for parent in parents)


def _check_keys(
    what: str, data: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"a {what} must be an object, got {type(data).__name__}")
    for key in data:
        if key not in keys:
            near = get_close_matches(str(key), keys, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"allowed: {', '.join(keys)}"
            raise ValueError(f"unknown key `{key}` in the {what}; {hint}")
    for key in keys:
        if key not in data and key not in optional:
            raise ValueError(f"missing key `{key}` in the {what}; add it")
