"""Compiled kernels: one per kind of work, made at the first call, eager where that fails.

Bits do not depend on it (kernels.py), so that a missing compiler costs time and nothing else. Knows
torch's compiler; no plans, no models.

Shapes: N entries.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch

log = logging.getLogger(__name__)

_NEVER = 10_000
_OPTIONS = {
    # Guards cost more than a small launch. What they would check is in the kind of work.
    "guard_filter_fn": lambda guards: [False for _ in guards],
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
            compiled = compile_kernel(kernel, options)
            compiled(*arguments)
    except RuntimeError as error:  # all of torch's compilers' are
        reason = " ".join(str(error).split())[:200]
        log.warning("a kernel cannot be compiled (%s): it runs eager, but slower", reason)
        kernel(*arguments)
        return kernel
    return compiled


def compile_kernel(kernel: Callable[..., None], options: dict[str, Any]) -> Callable[..., None]:
    """What `torch.compile` makes of a kernel, for any number of entries above 1."""

    def alone(*arguments: Any) -> None:
        kernel(*arguments)

    # Torch keeps compiled code with the code object and, without guards, takes what it finds there:
    # each kernel needs one of its own.
    alone.__code__ = alone.__code__.replace()
    return torch.compile(alone, dynamic=True, fullgraph=True, options=options)


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
