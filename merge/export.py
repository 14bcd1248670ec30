"""Writes the resident model as a Hugging Face directory, and reads recipes back.

The directory appears at once or not at all: files are written beside the goal and moved there when
all are complete. Weights are those of the resident model, to the bit; tokenizer, chat template,
generation settings and licence are the base's own files. Knows nothing of scores: the model card
comes in as text.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from .engine import resident_dtype
from .headers import is_plain_name
from .parents import BASE, ParentSet
from .recipe import Recipe

__all__ = ["RECIPE_FILE", "ExportError", "check_goal", "export_model", "load_recipe"]

RECIPE_FILE = "recipe.json"
CARD_FILE = "README.md"

# What the base's directory gives to the export, where it has it, byte for byte.
_KEPT = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
    *("generation_config.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
)
_PACKAGES = ("heterosis", "torch", "transformers", "safetensors")


class ExportError(ValueError):
    """A directory that cannot be written as asked; one line with the remedy."""


def export_model(
    model: PreTrainedModel,
    recipe: Recipe,
    parents: ParentSet,
    out: Path | str,
    *,
    card: str,
    extra_files: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
    dtype: str | torch.dtype | None = None,
    provenance: Mapping[str, Any] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> Path:
    """Save the resident model as a directory that transformers and vLLM load.

    Args:
        model: The resident model, holding the recipe's weights; left unchanged.
        recipe: Written to recipe.json with the parents' paths and SHA-256 and package versions.
        parents: Whose base gives tokenizer, chat template and generation settings.
        out: The directory to make; it may exist if it is empty.
        card: The text of README.md.
        extra_files: File name -> text, written beside the weights.
        max_shard_size: Largest weight file, as transformers reads it ("5GB").
        dtype: Of the saved weights; the model's own by default, which keeps every bit.
        provenance: More for recipe.json (command, scores, date); JSON values.
        verify: Called with the complete directory before it is moved to `out`; what it raises
            withdraws the export.

    Returns:
        The directory, absolute.

    Raises:
        ExportError: If `out` exists and is not empty, or a file name would leave it.
        OSError: If writing fails; `out` is then as it was.
    """
    goal = Path(out).absolute()
    extra_files = dict(extra_files or {})
    check_goal(goal)
    _check_file_names(extra_files)
    goal.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", dir=goal.parent))
    try:
        _save_weights(model, draft, max_shard_size, dtype)
        _copy_from_base(parents.folders[BASE], draft)
        record = _record(recipe, parents, provenance or {})
        texts = {**extra_files, CARD_FILE: card, RECIPE_FILE: record}
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        draft.chmod(0o755)
        _open_to_readers(draft)
        if verify is not None:
            verify(draft)
        draft.replace(goal)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return goal


def load_recipe(path: Path | str) -> Recipe:
    """Read the recipe back from an exported directory, its recipe.json, or a bare recipe file.

    Raises:
        ExportError: If there is no such file.
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
    return Recipe.from_dict(data.get("recipe", data) if isinstance(data, dict) else data)


def check_goal(out: Path | str) -> None:
    """Refuse a directory that `export_model` would refuse, before anything is computed.

    Raises:
        ExportError: If `out` is a file, or a directory that is not empty.
    """
    goal = Path(out).absolute()
    if goal.is_symlink():
        raise ExportError(f"{goal} is a symbolic link; give the directory's own path")
    if goal.exists() and not goal.is_dir():
        raise ExportError(f"{goal} is a file; give the name of a directory to make")
    if goal.is_dir() and any(goal.iterdir()):
        raise ExportError(
            f"{goal} exists and is not empty, nothing is overwritten; give another name or "
            f"remove it"
        )


def _check_file_names(extra_files: Mapping[str, str]) -> None:
    taken = {CARD_FILE, RECIPE_FILE, "config.json", *_KEPT}
    for name in extra_files:
        if not is_plain_name(name) or name in taken or name.endswith(".safetensors"):
            raise ExportError(
                f"an extra file needs a plain name of its own, got {name!r}; rename it"
            )


def _save_weights(
    model: PreTrainedModel, folder: Path, max_shard_size: str, dtype: str | torch.dtype | None
) -> None:
    saved_dtype = model.dtype if dtype is None else resident_dtype(dtype)
    state = model.state_dict()
    if saved_dtype != model.dtype:
        state = _cast(state, saved_dtype)
    # The base's generation settings are copied as a file; transformers refuses to write some
    # that it has read (a temperature without sampling), so it is given none.
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    finally:
        model.generation_config = settings
    (folder / "generation_config.json").unlink(missing_ok=True)
    if saved_dtype != model.dtype:
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = str(saved_dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # One cast per storage, so that tied tensors are still one.
    done: dict[int, torch.Tensor] = {}
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.data_ptr() not in done:
            done[tensor.data_ptr()] = tensor.to(dtype)
    return {name: done.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}


def _open_to_readers(folder: Path) -> None:
    # Weights are written for their owner alone; all files get the mode of an ordinary new file.
    mode = (folder / RECIPE_FILE).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _copy_from_base(base: Path, folder: Path) -> None:
    for name in _KEPT:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name)
        elif (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _record(recipe: Recipe, parents: ParentSet, provenance: Mapping[str, Any]) -> str:
    digests = parents.digests()
    models = {
        name: {"path": os.fspath(parents.folders[name]), "sha256": digests[name]}
        for name in (BASE, *parents.names)
    }
    record = {
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "base": models.pop(BASE),
        "parents": models,
        "versions": {package: _version(package) for package in _PACKAGES},
        "provenance": dict(provenance),
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
