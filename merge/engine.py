"""The merge engine: one resident model whose weights each recipe overwrites, in one pass.

This is the one file that writes into weights; what it overwrites it says in the verb (`load`,
`write_merged`). Formulas live in methods.py, files in parents.py. Knows nothing of search.

Arithmetic is float32 whatever the dtypes, in a fixed order (parents sorted by name), and is rounded
once, at the write. Products and sums are separate steps, never fused, so that bits depend on
neither block size nor position.

Shapes: P parents, N entries of a tensor.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardshrink
from transformers import AutoModelForCausalLM, PreTrainedModel

from .blocks import blocks, one_thread
from .groups import layer_group
from .masks import grid_step, keep_mask, magnitude_grid
from .methods import METHODS, Block
from .parents import BASE, ParentError, ParentSet
from .recipe import Recipe

__all__ = ["MergeEngine", "MergeFailure", "merge_tensors", "resident_dtype", "write_merged"]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_SMALLEST = torch.finfo(torch.float32).tiny

Grid = Callable[[str], Tensor]
"""Parent name -> its `magnitude_grid` for the tensor at hand."""


class MergeFailure(RuntimeError):  # noqa: N818 - a failed candidate, not a fault of the program
    """A recipe whose merged weights are not finite; the message names the tensor."""


def merge_tensors(
    recipe: Recipe, name: str, base: Tensor, parents: Mapping[str, Tensor], grid: Grid | None = None
) -> Tensor:
    """Merge one tensor into a new one; base and parents are left unchanged.

    Args:
        recipe: Gives method, coefficients of the tensor's layer group, lambda and mask_seed.
        name: Name of the tensor; decides its layer group and its random masks.
        base: Any shape ``(*S)``, floating point.
        parents: Parent name -> tensor ``(*S)``, any floating dtype.
        grid: Where `magnitude_grid` of a parent's delta is kept; computed here by default.

    Returns:
        New tensor ``(*S)`` with the dtype and device of ``base``.
    """
    out = torch.empty_like(base, memory_format=torch.contiguous_format)
    write_merged(out, recipe, name, base, parents, grid)
    return out


def write_merged(
    out: Tensor,
    recipe: Recipe,
    name: str,
    base: Tensor,
    parents: Mapping[str, Tensor],
    grid: Grid | None = None,
) -> None:
    """Overwrite ``out`` (contiguous, the shape of ``base``) with what `merge_tensors` returns."""
    active = _active(recipe, name)
    method = METHODS[recipe.method]
    flat_out, flat_base = out.view(-1), base.reshape(-1)
    flat_parents = [parents[p].reshape(-1) for p in active]
    if grid is None:
        grid = partial(_fresh_grid, base, parents)
    weights = tuple(weight for weight, _ in active.values())
    rates = tuple(rate for _, rate in active.values())
    device = out.device
    for run in blocks(out.numel(), device):
        block = Block(
            _float32(flat_base[run], device),
            [_float32(parent[run], device) for parent in flat_parents],
            weights,
            rates,
            recipe.lambda_,
            partial(_keep_random, recipe, name, list(active), rates, run, device),
            partial(_trim, list(active), rates, grid),
        )
        flat_out[run].copy_(_combine(block, method.function(block) if active else []))


def _active(recipe: Recipe, name: str) -> dict[str, tuple[float, float]]:
    # Parents that take part, sorted by name: {parent: (weight, drop_rate)}. Where the weight, alone
    # or times lambda, is 0 or too small for float32, a parent takes no part in any method; leaving
    # it out keeps even the sign of zeros, and no method divides by a sum of such weights.
    coefficients = recipe.coefficients[layer_group(name).name]
    rows = zip(recipe.parents, coefficients.weights, coefficients.drop_rates, strict=True)
    return {
        parent: (weight, rate)
        for parent, weight, rate in sorted(rows)
        if min(abs(weight), abs(weight * recipe.lambda_)) >= _SMALLEST
    }


def _combine(block: Block, coefficients: list[float | Tensor]) -> Tensor:
    # (1 - sum_i c_i) * base + sum_i c_i * parent_i; plain zeros are left out, not multiplied.
    terms = list(zip(coefficients, block.parents, strict=True))
    share: float | Tensor = 1.0
    for coefficient, _ in terms:
        share = share - coefficient
    total = None
    for factor, tensor in [(share, block.base), *terms]:
        if isinstance(factor, float) and factor == 0.0:
            continue
        is_whole = isinstance(factor, float) and factor == 1.0
        term = tensor if is_whole else tensor * factor
        total = term if total is None else total + term
    return torch.zeros_like(block.base) if total is None else total


def _float32(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device=device, dtype=torch.float32)


def _keep_random(
    recipe: Recipe,
    name: str,
    parents: list[str],
    rates: tuple[float, ...],
    run: slice,
    device: torch.device,
    i: int,
) -> Tensor:
    return keep_mask(
        rates[i],
        run.start,
        run.stop - run.start,
        mask_seed=recipe.mask_seed,
        tensor=name,
        parent=parents[i],
        device=device,
    )


def _trim(
    parents: list[str], rates: tuple[float, ...], grid: Grid, i: int, delta: Tensor
) -> Tensor:
    # Keeps |delta| >= smallest; hardshrink keeps |delta| > its bound, so step one float down.
    smallest = grid(parents[i])[grid_step(rates[i])]
    if smallest == 0.0:
        return delta
    return hardshrink(delta, float(smallest.nextafter(torch.zeros(()))))


def _fresh_grid(base: Tensor, parents: Mapping[str, Tensor], parent: str) -> Tensor:
    return magnitude_grid(parents[parent].float() - base.float())


class MergeEngine:
    """Owns the resident model and loads recipes into it.

    The resident model is built once from the base; `load` overwrites its weights in place, so the
    addresses of its tensors never change and tied embeddings stay tied.
    """

    def __init__(
        self,
        parents: ParentSet,
        *,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
    ) -> None:
        """Build the resident model, holding the base's weights.

        Args:
            parents: The base and its fine-tunes.
            dtype: Of the resident model: float32, bfloat16 or float16.
            device: Where the resident model lives and merges are computed.

        Raises:
            ValueError: Unknown dtype.
            ParentError: A base whose tensors are not those of its architecture.
        """
        self.parents = parents
        self.device = torch.device(device)
        self.model = _build(parents, resident_dtype(dtype)).eval()
        torch.nn.Module.to(self.model, self.device)
        self._targets = _targets(self.model, parents)
        self._loaded: dict[str, Any] = {}  # tensor -> what decides its weights
        self._grids: dict[tuple[str, str], Tensor] = {}  # (tensor, parent) -> magnitude_grid
        self._held: dict[tuple[str, str], Tensor] = {}  # (owner, tensor), on an accelerator

    @torch.no_grad()
    def load(self, recipe: Recipe) -> PreTrainedModel:
        """Overwrite the resident model's weights with a recipe's.

        A tensor whose coefficients are those of the last load is left as it is. After a failure
        the model holds a mixture; the next successful load puts every tensor right.

        Args:
            recipe: Its parents and layer groups must be those of the parent set.

        Returns:
            The resident model, always the same object.

        Raises:
            ValueError: If the recipe does not fit the parents.
            MergeFailure: If a merged tensor holds NaN or infinity in the resident dtype.
        """
        _check_fit(recipe, self.parents)
        with one_thread():
            extremes = {}
            for name, target in self._targets.items():
                key = _deciding(recipe, name)
                if self._loaded.get(name) == key:
                    continue
                self._loaded.pop(name, None)
                self._overwrite(target, recipe, name)
                extremes[name] = (key, torch.stack(target.aminmax()).float())
            self._accept(recipe, extremes)
        return self.model

    def _overwrite(self, target: Tensor, recipe: Recipe, name: str) -> None:
        parents = {p: self._source(p, name) for p in _active(recipe, name)}
        grid = partial(self._grid, name)
        write_merged(target, recipe, name, self._source(BASE, name), parents, grid)

    def _accept(self, recipe: Recipe, extremes: dict[str, tuple[Any, Tensor]]) -> None:
        # One transfer for all tensors; NaN and infinity show in the minimum or the maximum.
        if not extremes:
            return
        table = torch.stack([pair for _, pair in extremes.values()]).isfinite().all(dim=1).tolist()
        for (name, (key, _)), is_finite in zip(extremes.items(), table, strict=True):
            if is_finite:
                self._loaded[name] = key
        if not all(table):
            name = list(extremes)[table.index(False)]
            raise MergeFailure(
                f"merged tensor {name} holds NaN or infinity in {self.model.dtype} (recipe "
                f"{recipe.digest[:12]}, layer group {layer_group(name).name}); use smaller "
                f"weights or lambda, or a resident model in float32"
            )

    def _source(self, owner: str, name: str) -> Tensor:
        if (owner, name) in self._held:
            return self._held[owner, name]
        is_base = owner == BASE
        tensor = (
            self.parents.base_tensor(name) if is_base else self.parents.parent_tensor(owner, name)
        )
        if self.device.type != "cpu":
            tensor = self._held[owner, name] = tensor.to(self.device)
        return tensor

    def _grid(self, name: str, parent: str) -> Tensor:
        if (name, parent) not in self._grids:
            delta = self._source(parent, name).float() - self._source(BASE, name).float()
            self._grids[name, parent] = magnitude_grid(delta)
        return self._grids[name, parent]


def resident_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype that a resident or exported model may have; ValueError for any other."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}")
    assert found is not None
    return found


def _build(parents: ParentSet, dtype: torch.dtype) -> PreTrainedModel:
    folder = parents.folders[BASE]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = loaded
    for what, keys in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"])):
        if keys:
            raise ParentError(
                f"base: {folder} {what} tensor {min(keys)} of its architecture "
                f"{type(model).__name__}; use a complete checkpoint of a causal language model"
            )
    return model


def _targets(model: PreTrainedModel, parents: ParentSet) -> dict[str, Tensor]:
    # File tensor -> the resident tensor that it fills; aliases (tied embeddings) appear once.
    state = model.state_dict(keep_vars=True)
    owners: dict[int, str] = {}
    targets = {}
    for name in sorted(parents.tensors, key=lambda n: layer_group(n).order):
        if not parents.tensors[name].is_floating:
            continue
        target = state.get(name, state.get(f"{model.base_model_prefix}.{name}"))
        if target is None or target.shape != parents.tensors[name].shape:
            raise ParentError(
                f"base: tensor {name} of shape {parents.tensors[name].shape} has no counterpart "
                f"in {type(model).__name__}, which transformers builds from converted weights; "
                f"such architectures cannot be merged yet"
            )
        owner = owners.setdefault(target.data_ptr(), name)
        if owner == name:
            targets[name] = target.detach()
        else:
            _check_alias(parents, owner, name)
    return targets


def _check_alias(parents: ParentSet, owner: str, alias: str) -> None:
    for parent in parents.names:
        if not torch.equal(
            parents.parent_tensor(parent, owner), parents.parent_tensor(parent, alias)
        ):
            raise ParentError(
                f"parent {parent}: tensors {owner} and {alias} differ, in the base they are one "
                f"(tied); use a fine-tune that kept the embeddings tied"
            )


def _check_fit(recipe: Recipe, parents: ParentSet) -> None:
    if set(recipe.parents) != set(parents.names):
        raise ValueError(
            f"a recipe must name the parents that are loaded, got {', '.join(recipe.parents)} for "
            f"{', '.join(parents.names)}; give a parent weight 0 to leave it out"
        )
    missing = [group for group in parents.groups if group not in recipe.coefficients]
    extra = [group for group in recipe.coefficients if group not in parents.groups]
    if missing or extra:
        detail = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise ValueError(
            f"a recipe must have coefficients for each of the {len(parents.groups)} layer groups "
            f"of the model and no others, got {len(recipe.coefficients)}: {detail}; build it from "
            f"the parent set's `groups`"
        )


def _deciding(recipe: Recipe, name: str) -> tuple[Any, ...]:
    # All that enters one tensor's merged weights; equal keys mean equal bytes.
    method, active = METHODS[recipe.method], _active(recipe, name)
    is_random = method.is_random and any(rate > 0.0 for _, rate in active.values())
    seed = recipe.mask_seed if is_random else None
    return (method.name, recipe.lambda_, seed, tuple(active.items())) if active else ()
