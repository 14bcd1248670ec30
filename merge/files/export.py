"""Export the resident model, with a record from which the merge can be reproduced.

Weights are bitwise those that were scored. recipe.json records the recipe, base and parents with
their SHA-256, and versions. mergekit_config.yml is the same merge for mergekit, if it can express
it. Knows nothing of scores: the model card is an argument.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..mergekit.write import InexpressibleError, write_mergekit
from ..parents.adapters import is_adapter
from ..parents.hub import Place
from ..parents.parent_set import BASE, ParentSet
from ..recipe.recipe import Recipe
from .chat_template import TEMPLATE_FILE
from .writer import FLOATS, ExportError, Weight, write_model

RECIPE_FILE = "recipe.json"
MERGEKIT_FILE = "mergekit_config.yml"
CARD_FILE = "README.md"
_PACKAGES = ("heterosis", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class Record:
    """Contents of recipe.json.

    ``models`` maps "base" and each parent to its path or hub id and the SHA-256 of its weights;
    it is empty for a bare recipe. ``weights`` maps each written tensor to the SHA-256 of its bytes,
    ``versions`` packages to theirs. ``dtype`` is that of the written weights, None if they keep the
    base's; ``template`` is a chat template other than the base's.
    """

    recipe: Recipe
    models: Mapping[str, tuple[str, str]]
    dtype: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def export_model(
    targets: Mapping[str, Tensor],
    recipe: Recipe,
    parents: ParentSet,
    out: Path | str,
    *,
    card: str,
    tokenizer: str | None = None,
    extra_files: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
    provenance: Mapping[str, Any] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> Path:
    """Save the resident model as a directory that transformers and vLLM load.

    Args:
        targets: File tensor name -> the resident model's weights, merged by the recipe; left
            unchanged. Tensors tied to one of these are not written.
        recipe: The recipe of these weights.
        parents: Its base gives settings and tensor names.
        out: The directory to create; it may exist if it is empty.
        card: The text of README.md.
        tokenizer: The policy with which the parents were opened.
        extra_files: File name -> text, written beside the weights.
        max_shard_size: Largest weight file, as in transformers ("5GB").
        provenance: Additions to recipe.json (command, scores, date); JSON values.
        verify: Called with the complete directory before it is moved to `out`; an exception
            cancels the export.

    Returns:
        The directory, absolute.

    Raises:
        ExportError: If `out` exists and is not empty, the disk is too full, or a file name would
            leave the directory.
        OSError: If writing fails; `out` is then as it was.
    """
    weights = [
        _weight(name, targets, parents)
        for name, info in parents.tensors.items()
        if name in targets or not info.is_floating
    ]
    sizes = Counter[torch.dtype]()
    for weight in weights:
        sizes[weight.dtype] += weight.n_bytes * weight.dtype.is_floating_point
    dtype = sizes.most_common(1)[0][0]
    files, record = model_files(
        recipe,
        parents,
        card,
        dtype=str(dtype).removeprefix("torch."),
        tokenizer=tokenizer,
        extra_files=extra_files,
        provenance=provenance,
    )
    return write_model(
        out,
        weights,
        parents,
        dtype=dtype,
        max_shard_size=max_shard_size,
        texts=files,
        record=record,
        verify=verify,
    )


def _weight(name: str, targets: Mapping[str, Tensor], parents: ParentSet) -> Weight:
    if name in targets:
        tensor = targets[name]
        return Weight(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)
    read = partial(parents.tensor, BASE, name)
    return Weight(name, parents.tensors[name].shape, read().dtype, read)


def model_files(
    recipe: Recipe,
    parents: ParentSet,
    card: str,
    *,
    dtype: str | None,
    tokenizer: str | None = None,
    template: str | None = None,
    extra_files: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> tuple[dict[str, str], Callable[[Mapping[str, str]], dict[str, str]]]:
    """Return the texts beside a model: its card, mergekit's YAML if possible, and recipe.json.

    recipe.json is made last, by a function that takes the SHA-256 of every tensor.

    Args:
        recipe: The recipe of the model.
        parents: The merged models.
        card: The text of README.md.
        dtype: Dtype of the written weights; None if each keeps the base's.
        tokenizer: The policy with which the parents were opened.
        template: The text of a chat template other than the base's.
        extra_files: File name -> text, written beside the weights.
        provenance: Additions to recipe.json; JSON values.

    Raises:
        ExportError: If an extra file has the name of another one.
    """
    try:
        mergekit = mergekit_text(recipe, parents, dtype, tokenizer)
    except InexpressibleError as error:
        files, note = {}, f"not expressible: {error}"
    else:
        files, note = {MERGEKIT_FILE: mergekit}, MERGEKIT_FILE
    if template is not None:
        files[TEMPLATE_FILE] = template
    record = _record(recipe, parents) | {
        "dtype": dtype,
        "tokenizer": tokenizer,
        "chat_template": template,
        "mergekit": note,
        "versions": versions_here(),
        "provenance": dict(provenance or {}),
    }

    def recipe_file(digests: Mapping[str, str]) -> dict[str, str]:
        complete = record | {"weights": dict(sorted(digests.items()))}
        return {RECIPE_FILE: json.dumps(complete, indent=2, allow_nan=False) + "\n"}

    files[CARD_FILE] = card
    for name in extra_files or {}:
        if name in (*files, RECIPE_FILE, MERGEKIT_FILE):
            raise ExportError(
                f"an extra file needs a plain name of its own, got {name!r}; rename it"
            )
    return {**(extra_files or {}), **files}, recipe_file


def _record(recipe: Recipe, parents: ParentSet) -> dict[str, Any]:
    digests = parents.digests()
    models = {
        owner: {"path": place.text, "sha256": digests[owner]}
        for owner, place in parents.places.items()
    }
    return {
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "base": models.pop(BASE),
        "parents": models,
    }


def mergekit_text(
    recipe: Recipe,
    parents: ParentSet,
    dtype: str | None,
    tokenizer: str | None = None,
    named: Callable[[Place], str] = lambda place: place.text,
) -> str:
    """Return the YAML with which mergekit makes the same merge.

    Args:
        recipe: The recipe to express.
        parents: The models to merge.
        dtype: Dtype of the written weights; None if each keeps the base's.
        tokenizer: The policy with which the parents were opened.
        named: Returns the reference to a model; by default a path or hub id that is valid here.

    Raises:
        InexpressibleError: If mergekit cannot express it; the message says why.
    """
    tensors = [name for name, info in parents.tensors.items() if info.is_floating]
    if dtype is None:
        dtypes = {FLOATS[parents.tensors[name].dtype] for name in tensors}
        if len(dtypes) > 1:
            raise InexpressibleError("tensors keep dtypes of their own, mergekit's YAML names one")
        dtype = str(dtypes.pop()).removeprefix("torch.")
    models = {owner: _reference(parents, owner, named) for owner in parents.places}
    return write_mergekit(recipe, tensors, models, out_dtype=dtype, tokenizer=tokenizer)


def _reference(parents: ParentSet, owner: str, named: Callable[[Place], str]) -> str:
    """Return mergekit's reference to a model, in which `@` is a revision and `+` an adapter."""
    place = parents.places[owner]
    if place.text == str(place.folder) and {"@", "+"} & set(place.text):
        raise InexpressibleError(
            f"mergekit reads `@` and `+` in {place.text} as a revision and an adapter"
        )
    if owner != BASE and is_adapter(owner, place.folder):
        return f"{_reference(parents, BASE, named)}+{named(place)}"
    return named(place)


def versions_here() -> dict[str, str]:
    """Return package -> version of those that determine the result of a merge."""
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def read_record(path: Path | str) -> Record:
    """Read a record from an exported directory, its recipe.json, or a bare recipe file.

    Raises:
        ExportError: If there is no such file, or it is not JSON.
        ValueError: If it holds no recipe.
    """
    path = Path(path)
    path = path / RECIPE_FILE if path.is_dir() else path
    if not path.is_file():
        raise ExportError(f"no recipe in {path}; give an exported directory or its {RECIPE_FILE}")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExportError(f"{path} is not valid JSON ({error}); export the model again") from None
    if not isinstance(data, dict):
        raise ExportError(f"{path} must hold a JSON object; export the model again")
    recipe = Recipe.from_dict(data.get("recipe", data))
    try:
        given = {BASE: data["base"], **data["parents"]} if "base" in data else {}
        models = {owner: (str(m["path"]), str(m["sha256"])) for owner, m in given.items()}
        weights, versions = (
            {str(name): str(word) for name, word in data.get(key, {}).items()}
            for key in ("weights", "versions")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path} has no valid paths of base and parents, or no digests of weights "
            f"({error!r}); export the model again"
        ) from None
    dtype, tokenizer, template = (data.get(k) for k in ("dtype", "tokenizer", "chat_template"))
    return Record(recipe, models, dtype, tokenizer, template, weights, versions)
