"""From a recipe to mergekit's YAML, where mergekit has words for it.

Written in the form that survives: `models` with ordered filters, every default explicit, float32
arithmetic, numbers that PyYAML reads as numbers. What is written is read back and must give the
recipe's coefficients, else it is not written. Knows names of tensors and no tensors; no torch.

Words of mergekit that are not ours: density is 1 - drop_rate, its `epsilon` is half of ours.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from types import MappingProxyType

from ..recipe.coefficients import Coefficients
from ..recipe.methods import METHODS
from ..recipe.plans import SMALLEST, Setting
from ..recipe.recipe import Recipe
from .file import parse_text
from .parameters import MergekitError
from .read import translate
from .rules import RULES
from .text import Number, setting_lines, text_of

__all__ = ["InexpressibleError", "write_mergekit"]
BASE = "base"
"""Name of the base among the models."""
_EXACT = Context(prec=400)  # 1 - p keeps every digit of a float p above 1e-380


class InexpressibleError(ValueError):
    """A recipe for which mergekit has no words; the message says why."""


@dataclass(frozen=True)
class _Group:
    """The coefficients of one layer group, every default filled in."""

    name: str
    method: str
    weights: tuple[float, ...]
    drop_rates: tuple[float, ...]
    lambda_: float
    parameters: Mapping[str, Sequence[float]]

    def is_on(self, switch: str) -> bool:
        return self.parameters[switch][0] >= 0.5

    def fail(self, reason: str) -> InexpressibleError:
        return InexpressibleError(f"layer group {self.name}: {reason}")


@dataclass(frozen=True)
class _Row:
    """mergekit's parameters at one layer group: of each parent, of the base, of the merge."""

    own: tuple[Mapping[str, Number], ...]
    shared: Mapping[str, Number] = field(default_factory=dict)
    base: Mapping[str, Number] = field(default_factory=dict)


def write_mergekit(
    recipe: Recipe,
    tensors: Iterable[str],
    models: Mapping[str, str],
    *,
    out_dtype: str,
    tokenizer: str | None = None,
) -> str:
    """The text of a configuration that has mergekit merge what the recipe merges.

    Args:
        recipe: To be expressed.
        tensors: Names of the base's floating tensors.
        models: "base" and each parent -> how mergekit finds it: absolute path or hub id, for an
            adapter ``base+adapter``.
        out_dtype: Of the weights that are written.
        tokenizer: "base", "union" or None, as the parents were opened.

    Raises:
        InexpressibleError: If mergekit cannot do it; one line that says why.
    """
    groups = [_group(recipe, name, c) for name, c in recipe.coefficients.items()]
    method, takes_base = _method(recipe, groups)
    if tokenizer is not None and not takes_base:
        raise InexpressibleError(
            "mergekit merges full weights without a base_model, whose tokenizer is asked for"
        )
    write = _WRITERS[method]
    rows = {group.name: write(group) for group in groups}
    by_tensor = {tensor: rows[recipe.grouping.group(tensor).name] for tensor in tensors}
    head = {"merge_method": method, "base_model": models[BASE], "dtype": "float32"}
    head |= {"out_dtype": out_dtype} | ({"tokenizer_source": tokenizer} if tokenizer else {})
    if not takes_base:
        del head["base_model"]
    lines = [f"# {comment}" for comment in _comments(recipe, method, models, takes_base)]
    lines += [f"{key}: {text_of(value)}" for key, value in head.items()]
    lines += setting_lines("parameters:", {t: row.shared for t, row in by_tensor.items()})
    lines.append("models:")
    owners = [(models[parent], i) for i, parent in enumerate(recipe.parents)]
    if any(row.base for row in by_tensor.values()):
        lines.append(f"- model: {text_of(models[BASE])}")
        lines += setting_lines("  parameters:", {t: row.base for t, row in by_tensor.items()})
    for model, i in owners:
        lines.append(f"- model: {text_of(model)}")
        lines += setting_lines("  parameters:", {t: row.own[i] for t, row in by_tensor.items()})
    text = "\n".join(lines) + "\n"
    _check(recipe, tuple(by_tensor), text)
    return text


def _group(recipe: Recipe, name: str, c: Coefficients) -> _Group:
    method = METHODS[c.method or recipe.method]
    count = len(recipe.parents)
    parameters: dict[str, Sequence[float]] = {
        p.name: c.parameters.get(p.name) or (p.default,) * (1 if p.is_shared else count)
        for p in method.parameters
    }
    lambda_ = recipe.lambda_ if c.lambda_ is None else c.lambda_
    lambda_ = lambda_ if method.uses_lambda else 1.0
    return _Group(name, method.name, c.weights, c.drop_rates, lambda_, parameters)


def _method(recipe: Recipe, groups: Sequence[_Group]) -> tuple[str, bool]:
    """mergekit's method, and whether it takes the base."""
    if len(recipe.methods) > 1:
        used = ", ".join(row.name for row in recipe.methods)
        raise InexpressibleError(f"mergekit has one method for all tensors, this recipe has {used}")
    (method,) = (row.name for row in recipe.methods)
    if method == "slerp" and len(recipe.parents) > 1:
        return "nuslerp", False
    between_deltas = {group.is_on("deltas") for group in groups if "deltas" in group.parameters}
    if len(between_deltas) > 1:
        raise InexpressibleError("`deltas` must be the same in all layer groups for mergekit")
    if method == "karcher" and True in between_deltas:
        raise InexpressibleError("mergekit's `karcher` is of full weights; set `deltas` to 0")
    return method, False not in between_deltas


def _comments(
    recipe: Recipe, method: str, models: Mapping[str, str], takes_base: bool
) -> Iterator[str]:
    yield "Written by heterosis for mergekit; recipe.json beside it is the record."
    if any(row.is_random for row in recipe.methods):
        yield f"mergekit draws other random masks than mask_seed {recipe.mask_seed} did here."
    rule = RULES[method]
    drops = any(any(c.drop_rates) for c in recipe.coefficients.values())
    yield from (note[0].upper() + note[1:] + "." for note in rule.notes)
    yield from (note[0].upper() + note[1:] + "." for note in rule.drop_notes if drops)
    if not takes_base:
        yield f"Settings and tokenizer are the first model's; here they were {models[BASE]}'s."


def _decimal(number: float) -> Decimal:
    return Decimal(repr(number))


def _linear(group: _Group) -> _Row:
    weights = [_decimal(w) for w in group.weights]
    left = Decimal(1)
    for weight in weights:
        left = _EXACT.subtract(left, weight)
    return _Row(tuple({"weight": w} for w in weights), {"normalize": False}, {"weight": left})


def _deltas(group: _Group) -> _Row:
    rule = RULES[group.method]
    shared: dict[str, Number] = {"lambda": _decimal(group.lambda_), "normalize": False}
    if "normalize" in group.parameters:
        shared["normalize"] = group.is_on("normalize")
        if shared["normalize"] and min(group.weights) < 0.0:
            raise group.fail(
                f"mergekit divides by the signed sum of weights, which turns a negative weight "
                f"({min(group.weights)}) round"
            )
    own = [{"weight": _decimal(weight)} for weight in group.weights]
    if METHODS[group.method].uses_drop_rate:
        shared["rescale"] = METHODS[group.method].is_random
        for values, rate in zip(own, group.drop_rates, strict=True):
            values["density"] = _EXACT.subtract(Decimal(1), _decimal(rate))
    if "gamma" in rule.own:
        for values, gamma in zip(own, group.parameters["gamma"], strict=True):
            values["gamma"] = _decimal(gamma)
    if "epsilon" in rule.own:
        for values, half in zip(own, _half_widths(group), strict=True):
            values["epsilon"] = half
    return _Row(tuple(own), shared)


def _half_widths(group: _Group) -> Iterator[Decimal]:
    for rate, width in zip(group.drop_rates, group.parameters["epsilon"], strict=True):
        if rate > 0.0 and not width / 2.0 < min(rate, 1.0 - rate):
            raise group.fail(
                f"mergekit refuses drop probabilities that leave (0, 1): drop rate {rate} with a "
                f"window of width {width}"
            )
        yield _EXACT.multiply(_decimal(width), Decimal("0.5"))


def _slerp(group: _Group) -> _Row:
    return _Row(({},), {"t": _decimal(group.weights[0])})


def _nuslerp(group: _Group) -> _Row:
    _check_ratio(group)
    if len(group.weights) != 2:
        raise group.fail("mergekit's `nuslerp` merges exactly two models")
    return _Row(tuple({"weight": _decimal(w)} for w in group.weights), {"nuslerp_flatten": True})


def _multislerp(group: _Group) -> _Row:
    _check_ratio(group)
    own = tuple({"weight": _decimal(w)} for w in group.weights)
    return _Row(own, {"normalize_weights": True})


def _check_ratio(group: _Group) -> None:
    active = [w for w in group.weights if abs(w) >= SMALLEST]
    if len(active) == 1 and active[0] != 1.0:
        raise group.fail(f"mergekit takes one model alone whole, here its weight is {active[0]}")
    if abs(math.fsum(active)) <= 1e-6 * max(math.fsum(map(abs, active)), 1.0):
        raise group.fail(f"mergekit has no ratio for weights that sum to 0 ({group.weights})")


def _equal(group: _Group) -> _Row:
    if len(set(group.weights)) > 1 or not group.weights[0] >= SMALLEST:
        raise group.fail(
            f"mergekit's `{group.method}` weighs all models equally, here weights are "
            f"{', '.join(map(str, group.weights))}"
        )
    return _Row(({},) * len(group.weights))


def _model_stock(group: _Group) -> _Row:
    if len(group.weights) < 2:
        raise group.fail("mergekit's `model_stock` merges two models or more")
    return _Row(_equal(group).own, {"filter_wise": False})


def _sce(group: _Group) -> _Row:
    if group.lambda_ != 1.0:
        raise group.fail(f"mergekit's `sce` has no lambda, here it is {group.lambda_}")
    return _Row(_equal(group).own, {"select_topk": _decimal(group.parameters["select_topk"][0])})


def _arcee_fusion(group: _Group) -> _Row:
    _check_one(group)
    return _Row(({},))


def _nearswap(group: _Group) -> _Row:
    _check_one(group)
    return _Row(({},), {"t": _decimal(group.parameters["t"][0])})


def _check_one(group: _Group) -> None:
    if set(group.weights) != {1.0} or len(group.weights) > 1:
        raise group.fail(
            f"mergekit's `{group.method}` merges one model with weight 1, here weights are "
            f"{', '.join(map(str, group.weights))}"
        )


_WRITERS: Mapping[str, Callable[[_Group], _Row]] = MappingProxyType(
    {
        "linear": _linear,
        **dict.fromkeys(("task_arithmetic", "ties", "dare_linear", "dare_ties"), _deltas),
        **dict.fromkeys(("della", "della_linear", "breadcrumbs", "breadcrumbs_ties"), _deltas),
        "slerp": _slerp,
        "nuslerp": _nuslerp,
        "multislerp": _multislerp,
        "karcher": _equal,
        "model_stock": _model_stock,
        "sce": _sce,
        "arcee_fusion": _arcee_fusion,
        "nearswap": _nearswap,
    }
)


def _check(recipe: Recipe, tensors: Sequence[str], text: str) -> None:
    """Read back what was written: each tensor must get what the recipe gives it."""
    try:
        again = translate(parse_text(text), tensors).recipe
    except MergekitError as error:
        raise InexpressibleError(f"mergekit's YAML cannot say it: {error}") from None
    names = dict(zip(again.parents, recipe.parents, strict=True))
    for tensor in tensors:
        ours = _meaning(recipe.setting(recipe.grouping.group(tensor).name))
        theirs = _meaning(again.setting(again.grouping.group(tensor).name), names)
        if ours != theirs:
            raise InexpressibleError(
                f"mergekit's YAML would give tensor {tensor} {theirs} for {ours}"
            )


def _meaning(setting: Setting, names: Mapping[str, str] | None = None) -> object:
    """What a setting comes down to, free of names and of the scale where only ratios count."""
    method = METHODS[setting.method]
    weights = setting.weights
    if len(weights) > 1 and not method.uses_drop_rate and method.name not in _AMOUNTS:
        weights = tuple(float(f"{w / math.fsum(weights):.12g}") for w in weights)
    rows = [weights, setting.drop_rates]
    shared = {}
    for parameter in method.parameters:
        values = setting.parameters[parameter.name]
        if parameter.is_shared:
            shared[parameter.name] = values
        else:
            rows.append(values)
    parents = [(names or {}).get(parent, parent) for parent in setting.parents]
    shared.pop("deltas", None)
    return sorted(zip(parents, *rows, strict=True)), setting.lambda_, sorted(shared.items())


_AMOUNTS = ("linear", "task_arithmetic", "nearswap", "arcee_fusion")
