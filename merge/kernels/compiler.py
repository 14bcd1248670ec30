"""Compiled kernels: one per kind of work, made at the first call, eager where that fails.

Bits do not depend on it (kernels.py), so that a missing compiler costs time and nothing else. A
kernel is traced and handed to Inductor, as `torch.compile` does, whose guards and wrappers around
each call would cost more than a small launch; what they check is in the kind of work. Knows torch's
compiler; no plans, no models.

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
    # Processes beside this one would take longer to start than a kernel takes to compile.
    "compile_threads": 1,
    # A kernel is one loop that stores nothing but its result. Left to itself, Inductor stores
    # what is used twice, masks among it, which has cost up to thirty times the time.
    "realize_opcount_threshold": _NEVER,
    "realize_acc_reads_threshold": _NEVER,
}


class Compiler:
    """Calls kernels compiled, each kind of work compiled once."""

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
        """Run a kernel, compiled.

        Args:
            kind: What the kernel's text, dtypes and devices depend on; numbers of entries need not
                be in it.
            kernel: Overwrites its first argument.
            arguments: Tensors (N,) with N > 1 and lists of them, rows of numbers, None.
            converts_integers: Whether integers become floats in it, which Inductor does one by one
                in vectors of 32 entries and at once in vectors of 16. It takes 16 where a part of
                the kernel reads no 16-bit floats; such parts are made by parting it at what is used
                twice.
        """
        key = kind, torch.get_num_threads()
        if key in self._compiled:
            self._compiled[key](*arguments)
            return
        options = {
            **_OPTIONS,
            "realize_reads_threshold": 1 if converts_integers else _NEVER,
            "cpp.threads": torch.get_num_threads(),  # is baked in
        }
        self._compiled[key] = _first_call(kernel, options, arguments)

    def __len__(self) -> int:
        """Number of kinds called so far."""
        return len(self._compiled)


def _first_call(
    kernel: Callable[..., None], options: dict[str, Any], arguments: tuple[Any, ...]
) -> Callable[..., None]:
    # Compiles, runs, and returns what to call from now on: the kernel itself where that fails.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own habits
            compiled = compile_kernel(kernel, options, arguments)
            compiled(*arguments)
    except RuntimeError as error:  # all of torch's compilers' are
        reason = " ".join(str(error).split())[:200]
        log.warning("a kernel cannot be compiled (%s): it runs eager, but slower", reason)
        kernel(*arguments)
        return kernel
    return compiled


def compile_kernel(
    kernel: Callable[..., None], options: dict[str, Any], arguments: tuple[Any, ...]
) -> Callable[..., None]:
    """What Inductor makes of a kernel, for any number of entries above 1.

    Args:
        kernel: Overwrites its first argument.
        options: Inductor's, by name.
        arguments: Of its kind, with more entries than rows of numbers; nothing is computed.
    """
    from torch._inductor import compile as compile_graph  # seconds, for those who compile
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
    # Those in lists in their places; None left out.
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, list):
            found += argument
        elif argument is not None:
            found.append(argument)
    return found


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
    """Whether a C++ compiler is there; a warning in the log, once, where none is."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        found = False
    if not found:
        log.warning("no C++ compiler found: kernels run eager, with the same bits but slower")
    return found
