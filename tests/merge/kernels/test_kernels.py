"""Kernels: compiled and eager give the same bits, whatever is kept, combined and stored."""

import itertools
import math
from functools import partial

import pytest
import torch
from heterosis.merge.kernels.kernels import RANK_STEPS, RANK_UNIT, rank_window
from heterosis.merge.kernels.launcher import Job, Launcher
from heterosis.merge.recipe.plans import COMBINES, KEEPS, Combination, Plan

from .jobs import NAMES, N, consensus, job, written

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def assert_compiled_equals_eager(plan: Plan, dtype: torch.dtype) -> None:
    launcher = Launcher(compile=True)
    assert launcher.is_compiling
    compiled = written(launcher, lambda: job(plan, dtype))
    eager = written(Launcher(), lambda: job(plan, dtype))
    assert not eager.isnan().any()
    assert torch.equal(compiled, eager), (plan, dtype)


SMOKE = [
    consensus("random", "elect_mean"),
    Combination(NAMES[:2], (0.4, 0.8), -0.2),
]


@pytest.mark.parametrize("plan", SMOKE, ids=["random elect_mean", "combination"])
def test_compiled_equals_eager(plan):
    assert_compiled_equals_eager(plan, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("keep", "combine"), [*itertools.product(KEEPS, COMBINES)])
def test_every_kernel_compiled_equals_eager(keep, combine, dtype):
    for n_parents in (2, 3):
        assert_compiled_equals_eager(consensus(keep, combine, n_parents), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combinations_and_shares_compiled_equal_eager(dtype):
    for plan in (
        Combination(NAMES, (0.5, 0.3, 0.2), 0.0),
        Combination(NAMES[:1], (1.0,), 0.0),
        consensus("all", "elect_mean", shares=(1.0, 0.3, 0.2)),
        consensus("band", "elect_mean", high=(math.inf,) * 3),
    ):
        assert_compiled_equals_eager(plan, dtype)


def test_compiled_kernels_read_other_numbers_without_compiling_again():
    launcher = Launcher(compile=True)
    for rate, n in itertools.product((0.5, 0.7), (N, 3 * N)):
        make = partial(job, consensus("random", "elect_mean", low=(rate, 0.2, 0.0)), DTYPES[0], n)
        assert torch.equal(written(launcher, make), written(Launcher(), make))
    assert launcher.compiled == 1


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("combine", COMBINES)
def test_blocks_change_no_bit(keep, combine, monkeypatch):
    plan = consensus(keep, combine, 3)
    whole = written(Launcher(), lambda: job(plan, torch.float32))
    monkeypatch.setattr("heterosis.merge.blocks.CPU_BLOCK", 1 << 10)
    assert torch.equal(written(Launcher(), lambda: job(plan, torch.float32)), whole)


@pytest.mark.parametrize("keep", KEEPS)
def test_inputs_are_left_unchanged(keep):
    made = job(consensus(keep, "elect_mean"), torch.float32)
    before = [t.clone() for t in (made.base, *made.parents, *made.maps)]
    Launcher().run([made])
    after = (made.base, *made.parents, *made.maps)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_votes_that_cancel_elect_nobody():
    plan = consensus("all", "elect_mean", scales=(1.0, 1.0, 1.0), weights=(1.0, 1.0, 1.0))
    base = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = torch.empty(1000)
    Launcher().run([Job("x", out, base * 0, (base, -base), plan)])
    assert not out.any()


def test_rank_windows_are_exact_in_float32_and_average_to_the_rate():
    for low, high in ((0.6, 0.4), (0.999, 0.0), (0.5, 0.5), (0.0, 0.0), (1e-5, 0.0)):
        first, step = rank_window(low, high)
        least = [first - step * code for code in range(RANK_STEPS)]
        assert all((x / 256).is_integer() and abs(x) <= 2**31 for x in (first, step, *least))
        rates = [x / 2**32 + 0.5 for x in least]
        assert min(rates) >= 0.0
        assert max(rates) < 1.0
        assert sum(rates) / RANK_STEPS == pytest.approx((low + high) / 2, abs=1 / RANK_UNIT)
        assert rates == sorted(rates, reverse=True)


def test_ranked_drops_small_entries_more_often_and_keeps_the_expectation():
    plan = consensus("ranked", "sum", 1, scales=(1.0,), low=(0.9,), high=(0.3,))
    n, total, kept = 4096, torch.zeros(4096, dtype=torch.float64), torch.zeros(4096)
    codes = (torch.arange(n) % 256).to(torch.uint8)
    for seed in range(300):
        out = torch.empty(n)
        seeded = consensus(
            "ranked", "sum", 1, scales=(1.0,), low=(0.9,), high=(0.3,), mask_seed=seed
        )
        Launcher().run([Job("x", out, torch.zeros(n), (torch.ones(n),), seeded, (codes,))])
        total += out
        kept += out != 0
    rates = 0.9 - 0.6 * (codes.double() + 0.5) / 256
    shares = (kept / 300).reshape(-1, 256).mean(0).double()
    error = (rates * (1 - rates) / (300 * n / 256)).sqrt()[:256]
    assert bool(((shares - (1 - rates[:256])).abs() < 5 * error).all())
    assert float(total.mean() / 300) == pytest.approx(1.0, abs=0.01)
    assert plan.keep == "ranked"
