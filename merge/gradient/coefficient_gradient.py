"""The gradient of a loss with respect to every coefficient of a recipe, from one backward pass.

A merged tensor W follows from base, parents and the rows of its plan (rows.py), so the derivative
by a row is the inner product of dL/dW with dW/d(row). It is reduced as soon as autograd delivers
the gradient of a parameter, which is then freed: beside activations, a backward pass needs the
memory of one tensor's gradient. For a combination, dW/d(coefficient) is the parent's delta (of an
adapter: its factors, the delta is never formed); for a consensus, autograd differentiates the
eager kernel block by block, with masks and elections fixed. Knows no losses and no search.

Shapes: P parents, R rows of a plan, N entries of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..blocks import blocks, one_thread
from ..engine.engine import MergeEngine
from ..engine.weight_views import storage_of
from ..kernels.arguments import float_rows, make_kernel
from ..kernels.launcher import flattened, random_rows
from ..parents.parent_set import BASE
from ..recipe.methods import METHODS
from ..recipe.plans import Combination
from ..recipe.recipe import Recipe
from ..recipe.recipe_gradient import RecipeGradient
from .rows import LAMBDA, WEIGHT, Coefficient, RowSlopes, row_slopes

__all__ = ["CoefficientGradient"]


class CoefficientGradient:
    """Collects the gradient of a recipe's coefficients from backward passes of the resident model.

    ::

        gradient = CoefficientGradient(engine, recipe)  # loads the recipe
        with gradient.collecting():
            loss(engine.model).backward()
        gradient.take().weights["layers.0.attn"]

    Several backward passes add up until `take`.
    """

    def __init__(self, engine: MergeEngine, recipe: Recipe) -> None:
        """Load a recipe and derive its plans.

        Args:
            engine: The engine, whose resident model then has the recipe's weights.
            recipe: Its parents and layer groups must be those of the engine's parent set.

        Raises:
            ValueError: If the recipe does not fit the parents.
            MergeFailure: If a merged tensor holds NaN or infinity.
        """
        engine.load(recipe)
        self._engine, self._recipe = engine, recipe
        self._rows = _differentiable(engine, recipe)
        self._sums: dict[str, Tensor] = {}  # tensor -> derivatives by its rows, float64 (R,)
        self._pieces = _Pieces(engine)
        self._arrived: set[str] = set()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Let parameters require gradients, and reduce these as they arrive."""
        parameters = self._pieces.parameters
        with ExitStack() as stack:
            for parameter in parameters:
                parameter.requires_grad_(True)
                hook = parameter.register_post_accumulate_grad_hook(self._receive)
                stack.callback(hook.remove)
            try:
                yield
                for name, gradient in self._pieces.rest():
                    self._reduce(name, gradient)
            finally:
                self._pieces.clear()
                for parameter in parameters:
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def take(self) -> RecipeGradient:
        """Return the derivatives collected since the last call, and start again at 0."""
        weights = {g: dict.fromkeys(self._recipe.parents, 0.0) for g in self._recipe.coefficients}
        lambdas = dict.fromkeys(weights, 0.0)
        parameters: dict[str, dict[Coefficient, float]] = {group: {} for group in weights}
        for name, by_row in _on_host(self._sums).items():
            group, rows = self._recipe.grouping.group(name).name, self._rows[name]
            for coefficient, slope in zip(rows.coefficients, by_row @ rows.slopes, strict=True):
                if coefficient.name == WEIGHT:
                    weights[group][coefficient.parent] += float(slope)
                elif coefficient.name == LAMBDA:
                    lambdas[group] += float(slope)
                else:
                    so_far = parameters[group].get(coefficient, 0.0)
                    parameters[group][coefficient] = so_far + float(slope)
        self._sums.clear()
        return RecipeGradient(
            {group: tuple(by_parent.values()) for group, by_parent in weights.items()},
            lambdas,
            {group: self._by_parameter(slopes) for group, slopes in parameters.items()},
        )

    def _by_parameter(self, slopes: Mapping[Coefficient, float]) -> dict[str, tuple[float, ...]]:
        names = dict.fromkeys(coefficient.name for coefficient in slopes)
        owners = {n: ("",) if Coefficient(n, "") in slopes else self._recipe.parents for n in names}
        return {
            name: tuple(slopes.get(Coefficient(name, owner), 0.0) for owner in owners[name])
            for name in names
        }

    def _receive(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        assert gradient is not None
        for name, part in self._pieces.arrived(parameter, gradient):
            self._reduce(name, part)

    @torch.no_grad()
    def _reduce(self, name: str, gradient: Tensor) -> None:
        rows = self._rows.get(name)
        if rows is None:
            return
        if not self._arrived or name in self._arrived:  # another backward pass begins
            self._arrived.clear()
            self._engine.order({n: self._rows[n].plan for n in reversed(self._rows)})
        self._arrived.add(name)
        if isinstance(rows.plan, Combination):
            by_row = self._by_combination(name, rows, gradient)
        else:
            by_row = self._by_consensus(name, rows, gradient)
        self._sums[name] = self._sums[name] + by_row if name in self._sums else by_row

    def _by_combination(self, name: str, rows: RowSlopes, gradient: Tensor) -> Tensor:
        sources, device = self._engine.sources, gradient.device
        base = sources.fetch(BASE, name, device)
        # Only methods that move the base's share, such as slerp, need its inner product.
        moves_base = bool(np.abs(rows.slopes[0]).max(initial=0.0) > 1e-7)
        total = [_inner(gradient, base) if moves_base else _zero(device)]
        for parent in rows.parents:
            low_rank = sources.low_rank(parent, name, device)
            if sources.is_base(parent, name):
                total.append(_zero(device))
            elif low_rank is not None:
                total.append(low_rank.inner(gradient).double())
            else:
                total.append(_inner(gradient, sources.fetch(parent, name, device), base))
        return torch.stack(total)

    def _by_consensus(self, name: str, rows: RowSlopes, gradient: Tensor) -> Tensor:
        job = self._engine.job(name, rows.plan, gradient.contiguous())
        flat, kernel = flattened(job), make_kernel(rows.plan)
        floats = torch.tensor(float_rows(rows.plan), device=gradient.device, requires_grad=True)
        total = torch.zeros(floats.numel(), dtype=torch.float64, device=gradient.device)
        with one_thread(), torch.enable_grad():
            for run in blocks(flat.out.numel(), gradient.device):
                loss_by_entry, *arguments = flat.cut(run)
                merged = torch.empty(loss_by_entry.shape, device=gradient.device)
                kernel(merged, *arguments, floats, *random_rows(job, run))
                (by_row,) = torch.autograd.grad(merged, floats, loss_by_entry.float())
                total += by_row
        return total


def _differentiable(engine: MergeEngine, recipe: Recipe) -> dict[str, RowSlopes]:
    """Return the rows of every tensor with a coefficient that varies, in model order."""
    found: dict[str, RowSlopes] = {}
    by_group: dict[str, RowSlopes] = {}  # where a plan queries no statistics of its tensor
    for name in engine.targets:
        group = recipe.grouping.group(name).name
        setting = recipe.differentiable_setting(group)
        if not setting.parents:
            continue
        if group not in by_group:
            rows = row_slopes(setting, engine.statistics.of(name))
            if METHODS[setting.method].needs:
                found[name] = rows
                continue
            by_group[group] = rows
        found[name] = by_group[group]
    return found


def _inner(first: Tensor, second: Tensor, base: Tensor | None = None) -> Tensor:
    """Return the inner product <first, second - base>, float64, in blocks of float32."""
    first, second = first.reshape(-1), second.reshape(-1)
    total = _zero(first.device)
    with one_thread():
        for run in blocks(first.numel(), first.device):
            other = second[run].float()
            if base is not None:
                other = other - base.reshape(-1)[run].float()
            total += torch.dot(first[run].float(), other)
    return total


def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=device)


def _on_host(sums: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Return sums on the host; one transfer per device."""
    by_device: dict[torch.device, list[str]] = {}
    for name, total in sums.items():
        by_device.setdefault(total.device, []).append(name)
    result: dict[str, NDArray[np.float64]] = {}
    for names in by_device.values():
        joined = torch.cat([sums[name] for name in names]).cpu()
        parts = joined.split([sums[name].numel() for name in names])
        result |= {name: part.numpy() for name, part in zip(names, parts, strict=True)}
    return {name: result[name] for name in sums}


@dataclass
class _Target:
    """A file tensor's view, and the parameters whose gradients make up its own."""

    view: Tensor
    owners: list[int]  # indices of parameters
    parts: dict[int, Tensor] = field(default_factory=dict)


class _Pieces:
    """Gradients of parameters, as gradients of the file tensors that are views of them.

    A parameter may hold several file tensors (stacked experts), and a file tensor may span several
    adjacent parameters (a split projection).
    """

    def __init__(self, engine: MergeEngine) -> None:
        every = [p for p in engine.model.parameters() if p.is_floating_point()]
        by_storage: dict[int, list[int]] = {}
        for index, parameter in enumerate(every):
            by_storage.setdefault(storage_of(parameter), []).append(index)
        self._targets: dict[str, _Target] = {}
        self._names: dict[int, list[str]] = {}  # parameter -> its file tensors
        for name, view in engine.targets.items():
            owners = [
                index
                for index in by_storage.get(storage_of(view), ())
                if _overlap(_span(view), _span(every[index]))
            ]
            if owners:
                self._targets[name] = _Target(view, owners)
            for index in owners:
                self._names.setdefault(index, []).append(name)
        self._every = every
        self._index = {id(parameter): index for index, parameter in enumerate(every)}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that hold file tensors."""
        return [self._every[index] for index in self._names]

    def arrived(self, parameter: Tensor, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Take a parameter's gradient; yield the gradients of file tensors that are now whole."""
        index = self._index[id(parameter)]
        gradient = _with_strides_of(parameter, gradient)
        for name in self._names[index]:
            target = self._targets[name]
            if index in target.parts:  # left by a backward pass that did not use the others
                yield name, self._whole(target)
            target.parts[index] = gradient
            if len(target.parts) == len(target.owners):
                yield name, self._whole(target)

    def rest(self) -> Iterator[tuple[str, Tensor]]:
        """Yield gradients of which the loss gave only a part; the others are 0."""
        for name, target in self._targets.items():
            if target.parts:
                yield name, self._whole(target)

    def clear(self) -> None:
        """Forget gradients that are not whole."""
        for target in self._targets.values():
            target.parts.clear()

    def _whole(self, target: _Target) -> Tensor:
        view, parts = target.view, dict(target.parts)
        target.parts.clear()
        if len(target.owners) == 1:
            (index, gradient) = next(iter(parts.items()))
            start = view.storage_offset() - self._every[index].storage_offset()
            return gradient.as_strided(view.shape, view.stride(), start)
        # Lay the parts out as the parameters lie in memory.
        start, stop = _span(view)
        memory = torch.zeros(stop - start, dtype=view.dtype, device=view.device)
        for index, gradient in parts.items():
            parameter = self._every[index]
            place = parameter.storage_offset() - start
            memory.as_strided(parameter.shape, parameter.stride(), place).copy_(gradient)
        return memory.as_strided(view.shape, view.stride(), 0)


def _with_strides_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    if gradient.stride() == parameter.stride():
        return gradient
    placed = torch.empty_strided(
        parameter.shape, parameter.stride(), dtype=gradient.dtype, device=gradient.device
    )
    return placed.copy_(gradient)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first entry of a tensor in its storage, and the one behind its last."""
    start = int(tensor.storage_offset())
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes) if tensor.numel() else -1
    return start, start + int(last) + 1


def _overlap(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return first[0] < second[1] and second[0] < first[1]
