"""From mergekit's YAML to a recipe: base, parents, and the coefficients of each tensor.

A difference from mergekit is refused in one line if it changes the result, and noted if it is equal
in expectation or smaller than rounding. Knows names of tensors and no tensors; no torch.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import MappingProxyType

from ..recipe.coefficients import Coefficients
from ..recipe.groups import EMBED, layer_group
from ..recipe.recipe import Recipe
from .at_tensor import At
from .file import MergekitFile, ModelRef, Slice
from .groups import group_tensors
from .parameters import MergekitError
from .rules import Rule, rule_of

__all__ = ["Models", "Translation", "models_of", "translate"]
_LAYER = re.compile(r"(.*?(?:^|\.)\w*(?:layers?|blocks?|h))\.(\d+)\.")
_GRID = 1000  # steps of the magnitude trim


@dataclass(frozen=True)
class Models:
    """The base, and the parents by name.

    Without `base_model` the first model provides settings and tokenizer; if it is merged like the
    others, it is also a parent.
    """

    base: ModelRef
    parents: Mapping[str, ModelRef]


@dataclass(frozen=True)
class Translation:
    """A recipe with the same result, and notes on differences, one line each."""

    recipe: Recipe
    notes: tuple[str, ...]


def models_of(file: MergekitFile) -> Models:
    """Determine the base and the parents.

    Raises:
        MergekitError: Unknown method, a missing base, a wrong number of models, or adapters over
            another model than the base.
    """
    rule = rule_of(file.method)
    if file.base is None and rule.needs_base:
        raise MergekitError(f"`{file.method}` needs the key `base_model`; name the models' base")
    for part in file.slices:
        _check_count(file, rule, part)
    models = file.models
    base = ModelRef(models[0].path, models[0].revision) if file.base is None else file.base
    if base.lora is not None:
        raise MergekitError(
            f"base_model: {base} is an adapter over a model; merge it in first (peft's "
            f"merge_and_unload), or name {base.path} alone"
        )
    if rule.base_fills:
        models = tuple(model for model in models if model != base)
    elif rule.base_is_parent and file.base is not None:
        models = (*models, base)
    for model in models:
        if model.lora is not None and (model.path, model.revision) != (base.path, base.revision):
            raise MergekitError(
                f"{model}: its adapter lies over {model.path}, the base is {base}; merge it into "
                f"{model.path} first (peft's merge_and_unload), and name the result"
            )
    if not models:
        raise MergekitError(f"there is nothing to merge with {base}; name another model")
    return Models(base, MappingProxyType(dict(zip(_names(models), models, strict=True))))


def _check_count(file: MergekitFile, rule: Rule, part: Slice) -> None:
    count = sum(source.model != file.base for source in part.sources)
    if rule.fewest <= count and (rule.most is None or count <= rule.most):
        return
    bounds = f"exactly {rule.most}" if rule.most == rule.fewest else f"{rule.fewest} or more"
    beside = " beside the base_model" if file.base is not None else ""
    raise MergekitError(
        f"{part.where}: `{file.method}` merges {bounds} model{'s' * (rule.most != 1)}{beside}, "
        f"got {count}; correct the list"
    )


def _names(models: Sequence[ModelRef]) -> Iterator[str]:
    """Return a name for each parent: the last part of its path or id, numbered if not unique."""
    taken = {"base"}
    for model in models:
        path = model.path if model.lora is None else model.lora.path
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePath(path).name).strip("-") or "model"
        name, number = word, 1
        while name in taken:
            number += 1
            name = f"{word}_{number}"
        taken.add(name)
        yield name


def translate(file: MergekitFile, tensors: Iterable[str], *, mask_seed: int = 0) -> Translation:
    """Translate a configuration into a recipe.

    Args:
        file: The configuration.
        tensors: Names of the base's floating tensors.
        mask_seed: Seed of random masks; mergekit's YAML has none.

    Raises:
        MergekitError: If it is not supported; one line with the place, the fault and the remedy.
    """
    models = models_of(file)
    rule = rule_of(file.method)
    parents = tuple(models.parents.values())
    rows = {
        tensor: rule.read(At(file, part, tensor, t, models.base, parents))
        for tensor, (part, t) in _places(file, tuple(tensors)).items()
    }
    lambda_, rows = _common_lambda(rows)
    rules, coefficients = group_tensors(rows)
    recipe = Recipe(
        file.method, tuple(models.parents), coefficients, lambda_, mask_seed, layer_groups=rules
    )
    return Translation(recipe, (*_common_notes(file, rule), *_method_notes(rule, recipe)))


def _common_lambda(
    rows: Mapping[str, Coefficients],
) -> tuple[float, Mapping[str, Coefficients]]:
    lambdas = {row.lambda_ for row in rows.values()}
    if len(lambdas) > 1 or None in lambdas:
        return 1.0, rows
    common = lambdas.pop()
    assert common is not None
    return common, {tensor: replace(row, lambda_=None) for tensor, row in rows.items()}


def _places(file: MergekitFile, tensors: Sequence[str]) -> dict[str, tuple[Slice, float]]:
    """Return the slice of each tensor and its position there: 0 in the first layer, 1 in the last.

    Tensors before the layers are at 0 of the first slice, those after them at 0 of the last (as in
    mergekit: final norm and head take the first value of a gradient).
    """
    matches = {tensor: _LAYER.match(tensor) for tensor in tensors}
    ends: dict[str, int] = {}
    for match in matches.values():
        if match is not None:
            ends[match[1]] = max(ends.get(match[1], 0), int(match[2]) + 1)
    if file.slices[0].layers is not None:
        _check_slices(file.slices, ends)
    places = {}
    for tensor, match in matches.items():
        if match is None:
            is_before = layer_group(tensor).kind == EMBED
            places[tensor] = (file.slices[0 if is_before else -1], 0.0)
            continue
        layer = int(match[2])
        whole = (0, ends[match[1]])
        part = next(s for s in file.slices if layer < (s.layers or whole)[1])
        first, end = part.layers or whole
        places[tensor] = (part, (layer - first) / (end - first - 1) if end - first > 1 else 1.0)
    return places


def _check_slices(slices: Sequence[Slice], ends: Mapping[str, int]) -> None:
    if len(ends) != 1:
        raise MergekitError(
            f"`slices` of a model with layers in {len(ends)} places ({', '.join(ends)}) is not "
            f"supported; use `models` with filters"
        )
    (count,) = ends.values()
    last = (slices[-1].layers or (0, count))[1]
    if last != count:
        raise MergekitError(
            f"{slices[-1].where} ends with layer {last}, the model has {count}: leaving out or "
            f"adding layers makes another architecture and is not supported; use mergekit for "
            f"it, and merge its result"
        )


def _common_notes(file: MergekitFile, rule: Rule) -> Iterator[str]:
    out = file.out_dtype or file.dtype
    if file.dtype in ("bfloat16", "float16"):
        yield (
            f"dtype: {file.dtype}: mergekit rounds weights and deltas to it at every step; here "
            f"all arithmetic is float32, rounded once at the write, to {out}"
        )
    levels = [*file.levels, *(part.parameters for part in file.slices)]
    sources = [source for part in file.slices for source in part.sources]
    given = {name for level in (*levels, *(s.parameters for s in sources)) for name in level}
    unused = [f"`{name}`" for name in sorted(given.difference(rule.shared, rule.own))]
    if unused:
        do = "is no parameter" if len(unused) == 1 else "are no parameters"
        does = "does" if len(unused) == 1 else "do"
        yield f"{', '.join(unused)} {do} of `{file.method}` and {does} nothing, as in mergekit"
    for source in sources:
        for name in source.parameters:
            if name in rule.shared:
                yield (
                    f"{source.where}.parameters.{name} does nothing, as in mergekit; it belongs "
                    f"under the top `parameters`"
                )


def _method_notes(rule: Rule, recipe: Recipe) -> Iterator[str]:
    rates = {r for c in recipe.coefficients.values() for r in c.drop_rates}
    yield from rule.notes
    if any(rates):
        yield from rule.drop_notes
    if any(rates) and any(method.is_random for method in recipe.methods):
        yield (
            f"random masks come from a hash of mask_seed {recipe.mask_seed}, not from the global "
            f"generator: the same distribution, different bits"
        )
    rounded = sorted(r for r in rates if abs(r * _GRID - round(r * _GRID)) > 1e-9)
    if rounded and any("magnitudes" in method.needs for method in recipe.methods):
        yield (
            f"densities are rounded to 0.001: {1 - rounded[0]:.6g} becomes "
            f"{1 - round(rounded[0] * _GRID) / _GRID:.3f}"
        )
