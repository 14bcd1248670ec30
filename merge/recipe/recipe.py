"""Recipes: everything that determines a merge, given the parents. Pure values, no torch, no files.

A recipe names a method, the parents, and for each layer group one weight and one drop rate per
parent. A layer group may have its own method, lambda and method parameters, and rules may define
which tensors form a group. Equal recipes give bitwise equal weights.

Shapes: P parents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ..hints import check_keys
from .coefficients import Coefficients, check_coefficients, known_method, listed, number
from .groups import Grouping, LayerGroup
from .methods import METHODS, Method
from .plans import BASE_ONLY, SMALLEST, Plan, Setting, Statistics

__all__ = ["Coefficients", "Recipe", "plan_tensor"]
_KEYS = ("method", "parents", "coefficients", "lambda", "mask_seed", "layer_groups")


@dataclass(frozen=True)
class Recipe:
    """A merge, fully determined given the parents.

    ``coefficients`` maps layer group names ("embed", "layers.3.attn", ...) to Coefficients whose
    entries follow ``parents``. ``lambda_`` multiplies the summed delta ("lambda" in JSON).
    ``mask_seed`` is any integer in [0, 2**64); only random methods use it.
    ``layer_groups`` are the rules of a `Grouping`, which precede the rule from names.

    Raises:
        ValueError: Unknown method, duplicate parents, coefficients of another length, a number
            outside its range, a parameter that the method does not have, or more parents than it
            can merge.
    """

    method: str
    parents: tuple[str, ...]
    coefficients: Mapping[str, Coefficients]
    lambda_: float = 1.0
    mask_seed: int = 0
    layer_groups: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check everything that can be checked without the parents' files."""
        known_method(self.method)
        object.__setattr__(self, "parents", tuple(self.parents))
        object.__setattr__(self, "coefficients", MappingProxyType(dict(self.coefficients)))
        object.__setattr__(self, "lambda_", number("lambda", self.lambda_))
        object.__setattr__(self, "layer_groups", self.grouping.rules)
        _check_parents(self.parents)
        _check_seed(self.mask_seed)
        for group, coefficients in self.coefficients.items():
            LayerGroup.from_name(group)
            method = METHODS[coefficients.method or self.method]
            check_coefficients(group, coefficients, self.parents, method)
        if self.lambda_ != 1.0 and not any(method.uses_lambda for method in self.methods):
            raise ValueError(
                f"method `{self.method}` has no lambda, it must be 1, got {self.lambda_}; "
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
        *,
        parameters: Mapping[str, float | Mapping[str, float]] | None = None,
        layer_groups: tuple[tuple[str, str], ...] = (),
    ) -> Recipe:
        """Return a recipe with the same coefficients in every layer group.

        ``weight``, ``drop_rate`` and each of ``parameters`` are one number for all parents or a
        mapping that names each parent once.
        """
        parents = tuple(parents)
        known = {p.name: p for p in known_method(method).parameters}
        shared = Coefficients(
            _per_parent("weight", weight, parents),
            _per_parent("drop_rate", drop_rate, parents),
            {
                name: (value,)
                if name in known and known[name].is_shared and not isinstance(value, Mapping)
                else _per_parent(name, value, parents)
                for name, value in (parameters or {}).items()
            },
        )
        coefficients = dict.fromkeys(groups, shared)
        return cls(method, parents, coefficients, lambda_, mask_seed, layer_groups)

    @cached_property
    def grouping(self) -> Grouping:
        """Map from tensors to layer groups."""
        return Grouping(self.layer_groups)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Return the rows of the method table that this recipe uses, each once, in table order."""
        names = {c.method or self.method for c in self.coefficients.values()} or {self.method}
        return tuple(row for name, row in METHODS.items() if name in names)

    def setting(self, group: str) -> Setting:
        """Return the coefficients of one layer group, with every default filled in.

        A parent takes no part if its weight, alone or times lambda, is 0 or too small for float32.

        Raises:
            ValueError: If the recipe has no coefficients for the group.
        """
        if group not in self._settings:
            if group not in self.coefficients:
                raise ValueError(
                    f"a recipe needs coefficients for each layer group of the model, got none for "
                    f"{group}; it has {', '.join(self.coefficients) or 'no groups'}"
                )
            self._settings[group] = _setting(self, self.coefficients[group], SMALLEST)
        return self._settings[group]

    def differentiable_setting(self, group: str) -> Setting:
        """Return a group's setting with every parent whose weight has a slope.

        Where the method is linear in the weights these are all parents, those of weight 0 too;
        elsewhere taking part is a choice, and they are those of `setting`.
        """
        method = METHODS[self.coefficients[group].method or self.method]
        least = 0.0 if method.is_linear else SMALLEST
        return _setting(self, self.coefficients[group], least)

    @cached_property
    def _settings(self) -> dict[str, Setting]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without what is not set; `from_dict` gives an equal recipe."""
        coefficients = {group: c.to_dict() for group, c in self.coefficients.items()}
        values = (self.method, list(self.parents), coefficients, self.lambda_, self.mask_seed)
        data: dict[str, Any] = dict(zip(_KEYS, values, strict=False))
        if self.layer_groups:
            data["layer_groups"] = [list(rule) for rule in self.layer_groups]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read the result of `to_dict`; unknown and missing keys are errors that name them."""
        check_keys("recipe", data, _KEYS, required=_KEYS[:3])
        groups = data["coefficients"]
        if not isinstance(groups, Mapping):
            raise ValueError(f"recipe: `coefficients` must be a mapping, got {groups!r}")
        return cls(
            data["method"],
            listed("parents", data["parents"]),
            {group: Coefficients.from_dict(group, entry) for group, entry in groups.items()},
            data.get("lambda", 1.0),
            data.get("mask_seed", 0),
            tuple(_rule(rule) for rule in listed("layer_groups", data.get("layer_groups", []))),
        )

    def to_json(self) -> str:
        """Return one line of JSON; numbers are kept to the bit."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read the result of `to_json`.

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

    @cached_property
    def canonical(self) -> Recipe:
        """Return the same merge with parents sorted by name and groups in model order."""
        order = sorted(range(len(self.parents)), key=lambda i: self.parents[i])
        groups = sorted(self.coefficients, key=lambda name: LayerGroup.from_name(name).order)
        coefficients = {group: self.coefficients[group].permuted(order) for group in groups}
        parents = tuple(self.parents[i] for i in order)
        return replace(self, parents=parents, coefficients=coefficients)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256, hex, of the canonical JSON, independent of the parents' order."""
        return hashlib.sha256(self.canonical.to_json().encode()).hexdigest()

    def __hash__(self) -> int:
        """Return the hash of the digest: equal recipes have equal hashes."""
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle as JSON (read-only mappings do not pickle)."""
        return (Recipe.from_json, (self.to_json(),))


def _rule(rule: Any) -> tuple[str, str]:
    if len(listed("layer_groups", rule)) != 2:
        raise ValueError(
            f"a rule in `layer_groups` is a pair [pattern, group name], got {list(rule)}"
        )
    return (rule[0], rule[1])


def _setting(recipe: Recipe, coefficients: Coefficients, least: float) -> Setting:
    # Parents whose weight is at least `least`, alone and times lambda.
    method = METHODS[coefficients.method or recipe.method]
    lambda_ = recipe.lambda_ if coefficients.lambda_ is None else coefficients.lambda_
    lambda_ = lambda_ if method.uses_lambda else 1.0
    active = [
        i
        for i in sorted(range(len(recipe.parents)), key=lambda i: recipe.parents[i])
        if min(abs(w := coefficients.weights[i]), abs(w * lambda_)) >= least
    ]
    parameters = {}
    for row in method.parameters:
        given = coefficients.parameters.get(row.name, ())
        values = given or (row.default,) * (1 if row.is_shared else len(recipe.parents))
        parameters[row.name] = values if row.is_shared else tuple(values[i] for i in active)
    return Setting(
        method.name,
        tuple(recipe.parents[i] for i in active),
        tuple(coefficients.weights[i] for i in active),
        tuple(coefficients.drop_rates[i] for i in active),
        lambda_,
        MappingProxyType(parameters),
        recipe.mask_seed,
    )


def _check_parents(parents: tuple[str, ...]) -> None:
    if not parents:
        raise ValueError("a recipe needs at least one parent, got none; name the fine-tunes")
    for name in parents:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a parent's name must be a non-empty string, got {name!r}")
    repeated = sorted({name for name in parents if parents.count(name) > 1})
    if repeated:
        raise ValueError(f"parents must have distinct names, got {repeated[0]!r} twice; rename one")


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"`mask_seed` must be an integer in [0, 2**64), got {seed!r}")


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


def plan_tensor(recipe: Recipe, tensor: str, statistics: Statistics) -> Plan:
    """Return the plan of one tensor under a recipe; the base alone if no parent takes part."""
    setting = recipe.setting(recipe.grouping.group(tensor).name)
    return METHODS[setting.method].plan(setting, statistics) if setting.parents else BASE_ONLY
