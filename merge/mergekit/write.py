"""From a recipe to mergekit's YAML, if mergekit can express it.

The YAML keeps its meaning in any version: `models` with ordered filters, every default explicit,
float32 arithmetic, numbers that PyYAML reads as numbers. It is read back before it is returned and
must give the recipe's coefficients. Knows names of tensors and no tensors; no torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..recipe.coefficients import Coefficients
from ..recipe.methods import METHODS
from ..recipe.plans import Setting
from ..recipe.recipe import Recipe
from .at_group import GroupSetting, InexpressibleError
from .file import parse_text
from .parameters import MergekitError
from .read import translate
from .rules import RULES, Rule
from .text import setting_lines, text_of

__all__ = ["InexpressibleError", "write_mergekit"]
BASE = "base"
"""Name of the base among the models."""


def write_mergekit(
    recipe: Recipe,
    tensors: Iterable[str],
    models: Mapping[str, str],
    *,
    out_dtype: str,
    tokenizer: str | None = None,
) -> str:
    """Return the YAML with which mergekit makes the same merge.

    Args:
        recipe: To be expressed.
        tensors: Names of the base's floating tensors.
        models: "base" and each parent -> absolute path or hub id; ``base+adapter`` for an adapter.
        out_dtype: Dtype of the weights to write.
        tokenizer: "base", "union" or None: the policy by which the parents were opened.

    Raises:
        InexpressibleError: If mergekit cannot express it; one line that says why.
    """
    groups = [_group(recipe, name, c) for name, c in recipe.coefficients.items()]
    method, takes_base = _method(recipe, groups)
    rule = RULES[method]
    if tokenizer is not None and not takes_base:
        raise InexpressibleError(
            "mergekit merges full weights without a base_model, whose tokenizer is asked for"
        )
    rows = {group.name: rule.write(group) for group in groups}
    by_tensor = {tensor: rows[recipe.grouping.group(tensor).name] for tensor in tensors}
    head = {"merge_method": method, "base_model": models[BASE], "dtype": "float32"}
    head |= {"out_dtype": out_dtype} | ({"tokenizer_source": tokenizer} if tokenizer else {})
    if not takes_base:
        del head["base_model"]
    lines = [f"# {comment}" for comment in _comments(recipe, rule, models, takes_base)]
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


def _group(recipe: Recipe, name: str, c: Coefficients) -> GroupSetting:
    method = METHODS[c.method or recipe.method]
    count = len(recipe.parents)
    parameters: dict[str, Sequence[float]] = {
        p.name: c.parameters.get(p.name) or (p.default,) * (1 if p.is_shared else count)
        for p in method.parameters
    }
    lambda_ = recipe.lambda_ if c.lambda_ is None else c.lambda_
    lambda_ = lambda_ if method.uses_lambda else 1.0
    return GroupSetting(name, method.name, c.weights, c.drop_rates, lambda_, parameters)


def _method(recipe: Recipe, groups: Sequence[GroupSetting]) -> tuple[str, bool]:
    """Return mergekit's method and whether it gets the base; refuse what has no row."""
    if len(recipe.methods) > 1:
        used = ", ".join(row.name for row in recipe.methods)
        raise InexpressibleError(f"mergekit has one method for all tensors, this recipe has {used}")
    (method,) = (row.name for row in recipe.methods)
    if method not in RULES:
        raise InexpressibleError(f"mergekit has no method `{method}`")
    rule = RULES[method]
    if rule.beyond is not None and rule.most is not None and len(recipe.parents) > rule.most:
        return rule.beyond, False
    between_deltas = {group.is_on("deltas") for group in groups if "deltas" in group.parameters}
    if len(between_deltas) > 1:
        raise InexpressibleError("`deltas` must be the same in all layer groups for mergekit")
    return method, False not in between_deltas


def _comments(
    recipe: Recipe, rule: Rule, models: Mapping[str, str], takes_base: bool
) -> Iterator[str]:
    yield "Written by heterosis for mergekit; recipe.json beside it is the record."
    if any(row.is_random for row in recipe.methods):
        yield f"mergekit draws other random masks than mask_seed {recipe.mask_seed} did here."
    drops = any(any(c.drop_rates) for c in recipe.coefficients.values())
    yield from (note[0].upper() + note[1:] + "." for note in rule.notes)
    yield from (note[0].upper() + note[1:] + "." for note in rule.drop_notes if drops)
    if not takes_base:
        yield f"Settings and tokenizer are the first model's; here they were {models[BASE]}'s."


def _check(recipe: Recipe, tensors: Sequence[str], text: str) -> None:
    """Read the text back: each tensor must get the coefficients of the recipe."""
    try:
        again = translate(parse_text(text), tensors).recipe
    except MergekitError as error:
        raise InexpressibleError(f"mergekit's YAML cannot express it: {error}") from None
    names = dict(zip(again.parents, recipe.parents, strict=True))
    for tensor in tensors:
        ours = _meaning(recipe.setting(recipe.grouping.group(tensor).name))
        theirs = _meaning(again.setting(again.grouping.group(tensor).name), names)
        if ours != theirs:
            raise InexpressibleError(
                f"mergekit's YAML would give tensor {tensor} {theirs} for {ours}"
            )


def _meaning(setting: Setting, names: Mapping[str, str] | None = None) -> object:
    """Return a setting in a form to compare: without names, without the scale of mere ratios."""
    method = METHODS[setting.method]
    weights = setting.weights
    if len(weights) > 1 and not RULES[method.name].are_amounts:
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
