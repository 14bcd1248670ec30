"""Compiled kernels: one per kind of job, compiled at the first call, eager if that fails.

Compilation does not change bits (kernels.py), so a missing compiler only costs time. A kernel is
traced and passed to Inductor, without the guards and wrappers of `torch.compile`, which would cost
more than a small launch; the kind of a job replaces what they check. Knows torch's compiler; no
plans, no models.

Shapes: N entries.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_NEVER = 10_000
_OPTIONS = {
    # Worker processes would take longer to start than a kernel takes to compile.
    "compile_threads": 1,
    # A kernel is one loop that stores only its result. By default, Inductor also stores what is
    # used twice, for example masks, which takes up to thirty times as long.
    "realize_opcount_threshold": _NEVER,
    "realize_acc_reads_threshold": _NEVER,
}


class Compiler:
    """Runs compiled kernels; compiles each kind once."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Callable[..., None]] = {}

    def call(
        self,
        kind: Hashable,
        kernel: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        converts_integers: bool = False,
    ) -> None:
        """Run a compiled kernel.

        Args:
            kind: Determines the kernel's source, dtypes and devices; numbers of entries need not be
                part of it.
            kernel: Overwrites its first argument.
            arguments: Tensors (N,) with N > 1 and lists of them, rows of numbers, None.
            converts_integers: Whether it converts integers to floats, which Inductor vectorises for
                16 entries but not for 32. It uses 16 if a part of the kernel reads no 16-bit
                floats; splitting the kernel at what is used twice makes such parts.
        """
        key = kind, torch.get_num_threads()
        if key in self._compiled:
            self._compiled[key](*arguments)
            return
        options = {
            **_OPTIONS,
            "realize_reads_threshold": 1 if converts_integers else _NEVER,
            "cpp.threads": torch.get_num_threads(),  # is compiled in
        }
        self._compiled[key] = _first_call(kernel, options, arguments)

    def __len__(self) -> int:
        """Return the number of kinds called so far."""
        return len(self._compiled)


def _first_call(
    kernel: Callable[..., None], options: dict[str, Any], arguments: tuple[Any, ...]
) -> Callable[..., None]:
    # Compiles, runs, and returns what to call from now on: the kernel itself if that fails.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own
            compiled = compile_kernel(kernel, options, arguments)
            compiled(*arguments)
    except RuntimeError as error:  # the base of all errors of torch's compilers
        reason = " ".join(str(error).split())[:200]
        log.warning("a kernel cannot be compiled (%s): it runs eager, which is slower", reason)
        kernel(*arguments)
        return kernel
    return compiled


def compile_kernel(
    kernel: Callable[..., None], options: dict[str, Any], arguments: tuple[Any, ...]
) -> Callable[..., None]:
    """Compile a kernel with Inductor, for any number of entries above 1.

    Args:
        kernel: Overwrites its first argument.
        options: Inductor's, by name.
        arguments: An example of its kind, with more entries than rows of numbers.
    """
    from torch._inductor import compile as compile_graph  # takes seconds
    from torch.fx.experimental.proxy_tensor import make_fx

    def on_tensors(*tensors: Tensor) -> tuple[()]:
        kernel(*_nested(tensors, arguments))
        return ()

    graph = make_fx(on_tensors, tracing_mode="symbolic")(*_tensors(arguments))
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    compiled: Any = compile_graph(graph, inputs, options=options)

    def call(*arguments: Any) -> None:
        compiled(*_tensors(arguments))

    return call


def _tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    # Flattens lists and leaves out None.
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, list):
            tensors += argument
        elif argument is not None:
            tensors.append(argument)
    return tensors


def _nested(tensors: Sequence[Tensor], like: tuple[Any, ...]) -> list[Any]:
    # The inverse of `_tensors`.
    rest = iter(tensors)
    return [
        [next(rest) for _ in argument]
        if isinstance(argument, list)
        else (None if argument is None else next(rest))
        for argument in like
    ]


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Return whether there is a C++ compiler; log a warning, once, if there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        exists = shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        exists = False
    if not exists:
        log.warning("no C++ compiler found: kernels run eager, with the same bits but slower")
    return exists
