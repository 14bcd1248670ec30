"""Compiled kernels: kept apart, bound to their thread count, eager where there is no compiler."""

import shutil

import pytest
import torch
from heterosis.merge.kernels import compiler
from heterosis.merge.kernels.compiler import Compiler, has_compiler
from heterosis.merge.kernels.launcher import Launcher
from heterosis.merge.recipe.plans import Combination
from torch._dynamo.exc import TorchDynamoException

from .jobs import NAMES, consensus, job, written


def test_kernels_with_one_source_are_kept_apart():
    launcher = Launcher(compile=True)
    plans = [
        Combination(NAMES[:2], (0.4, 0.8), -0.2),
        Combination(NAMES[:2], (0.4, 0.6), 0.0),
        Combination(NAMES, (0.4, 0.6, 0.1), 0.0),
    ]
    for _ in range(2):
        for plan in plans:
            compiled = written(launcher, lambda p=plan: job(p, torch.bfloat16))
            assert torch.equal(compiled, written(Launcher(), lambda p=plan: job(p, torch.bfloat16)))
    assert launcher.compiled == len(plans)


def test_what_is_copied_is_not_compiled():
    launcher = Launcher(compile=True)
    for plan in (Combination((), ()), Combination(NAMES[:1], (1.0,), 0.0)):
        made = job(plan, torch.bfloat16)
        launcher.run([made])
        assert torch.equal(made.out, (made.base, *made.parents)[len(plan.parents)])
    assert launcher.compiled == 0


def test_threads_change_no_bit():
    plan = consensus("random", "elect_mean")
    launcher, before = Launcher(compile=True), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(written(launcher, lambda: job(plan, torch.bfloat16)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert launcher.compiled == 2  # the number is baked in


@pytest.fixture
def no_compiler(monkeypatch):
    has_compiler.cache_clear()
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    yield
    has_compiler.cache_clear()


def test_without_a_compiler_kernels_run_eager_and_it_is_said(no_compiler, caplog):
    plan = consensus("all", "sum")
    launcher = Launcher(compile=True)
    assert not launcher.is_compiling
    assert "no C++ compiler found: kernels run eager" in caplog.text
    expected = written(Launcher(), lambda: job(plan, torch.float32))
    assert torch.equal(written(launcher, lambda: job(plan, torch.float32)), expected)


def test_a_kernel_that_does_not_compile_runs_eager_and_it_is_said(monkeypatch, caplog):
    def refuse(kernel, options, arguments):
        def call(*_):
            raise TorchDynamoException("no such instruction")

        return call

    monkeypatch.setattr(compiler, "compile_kernel", refuse)
    plan = consensus("all", "sum")
    launcher = Launcher(compile=True)
    expected = written(Launcher(), lambda: job(plan, torch.float32))
    for _ in range(2):
        assert torch.equal(written(launcher, lambda: job(plan, torch.float32)), expected)
    said = [record for record in caplog.records if "cannot be compiled" in record.message]
    assert [record.getMessage() for record in said] == [
        "a kernel cannot be compiled (no such instruction): it runs eager, which is slower"
    ]


def test_a_real_failure_to_compile_is_one_too(monkeypatch, caplog):
    monkeypatch.setitem(compiler._OPTIONS, "cpp.cxx", (shutil.which("false"),))
    out, base = torch.zeros(100), torch.ones(100)

    def kernel(out, base):
        out.copy_(base * 3.0)

    Compiler().call("kind", kernel, (out, base))
    assert bool((out == 3.0).all())
    assert "No working C++ compiler" in caplog.text
