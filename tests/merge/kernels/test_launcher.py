"""Launches: few of them, packs equal to single ones, tensors fetched when they are needed."""

import pytest
import torch
from heterosis.merge.kernels.launcher import PACK, SMALL, Job, Launcher, merge_tensors
from heterosis.merge.recipe.plans import COMBINES, KEEPS, Combination, Plan
from heterosis.merge.recipe.recipe import Recipe

from .jobs import NAMES, consensus, job


def outs(jobs: list[Job], launcher: Launcher | None = None) -> list[torch.Tensor]:
    (launcher or Launcher()).run(jobs)
    return [made.out for made in jobs]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("n_parents", [1, 2, 3])
def test_a_pack_equals_its_tensors_one_by_one(keep, combine, n_parents):
    plans = [consensus(keep, combine, n_parents), consensus(keep, combine, n_parents)]
    sizes = (1, 2, 576, 1000)

    def jobs() -> list[Job]:
        pairs = enumerate((p, n) for p in plans for n in sizes)
        return [job(plan, torch.bfloat16, n, seed) for seed, (plan, n) in pairs]

    alone = [outs([made])[0] for made in jobs()]
    for one, other in zip(outs(jobs()), alone, strict=True):
        assert torch.equal(one, other)
        assert not one.isnan().any()


def test_a_pack_equals_a_large_tensor_to_the_bit(monkeypatch):
    plan = consensus("random", "elect_mean", 3)
    packed = outs([job(plan, torch.float32, 1000)])[0]
    monkeypatch.setattr("heterosis.merge.kernels.launcher.SMALL", 10)
    assert torch.equal(outs([job(plan, torch.float32, 1000)])[0], packed)


def test_many_small_tensors_cost_few_launches():
    plan = consensus("random", "elect_mean")
    launcher = Launcher()
    jobs = [job(plan, torch.bfloat16, 576, seed) for seed in range(300)]
    launcher.run(jobs)
    assert launcher.launches <= 3


def test_jobs_of_several_kinds_and_dtypes_are_kept_apart():
    plans: list[Plan] = [
        Combination(NAMES[:2], (0.4, 0.6), 0.0),
        Combination(NAMES[:2], (0.4, 0.5), 0.1),
        Combination((), ()),
        consensus("random", "sum"),
        consensus("band", "elect_mean", 3),
    ]
    made = [job(plan, dtype, 64) for plan in plans for dtype in (torch.float32, torch.bfloat16)]
    expected = [outs([job(j.plan, j.out.dtype, 64)])[0] for j in made]
    for one, other in zip(outs(made), expected, strict=True):
        assert torch.equal(one, other)


def test_targets_may_be_slices():
    plan = consensus("all", "elect_mean")
    for n in (64 * 8, 512 * 256):
        whole = job(plan, torch.float32, n)
        expected = outs([whole])[0]
        stack = torch.zeros(2, n // 8, 16)
        shape = (n // 8, 8)
        cut = Job(
            whole.name,
            stack[1, :, 4:12],
            whole.base.view(shape),
            tuple(parent.view(shape) for parent in whole.parents),
            plan,
        )
        outs([cut])
        assert torch.equal(cut.out.reshape(-1), expected)
        assert stack.count_nonzero() == expected.count_nonzero()


def test_a_large_tensor_is_done_before_the_next_is_fetched():
    plan = Combination(NAMES[:1], (1.0,), 0.0)
    done: list[Job] = []

    def jobs():
        for seed in range(3):
            assert all(not made.out.isnan().any() for made in done)
            done.append(job(plan, torch.float32, SMALL + 1, seed))
            yield done[-1]

    Launcher().run(jobs())
    assert len(done) == 3


def test_packs_are_launched_before_they_grow_large(monkeypatch):
    monkeypatch.setattr("heterosis.merge.kernels.launcher.PACK", 1000)
    assert PACK > 1000
    done: list[Job] = []

    def jobs():
        for seed in range(6):
            yield done.append(job(Combination((), ()), torch.float32, 500, seed)) or done[-1]
            waiting = sum(bool(made.out.isnan().any()) for made in done)
            assert waiting <= 1 or seed % 2 == 0

    Launcher().run(jobs())


@pytest.mark.parametrize("n", [0, 1])
def test_empty_tensors_and_single_entries(n):
    for plan in (Combination((), ()), Combination((), (), 0.0), consensus("random", "elect_mean")):
        made = job(plan, torch.bfloat16, n)
        Launcher().run([made])
        assert not made.out.isnan().any()


def test_merge_tensors_keeps_the_parents_and_takes_the_bases_shape_and_dtype():
    base = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    parents = {"a": base.float() + 1.0, "b": base.float() - 1.0}
    name = "model.layers.0.mlp.up_proj.weight"
    recipe = Recipe.uniform("linear", ("a", "b"), ("layers.0.mlp",), {"a": 1.0, "b": 0.0})
    out = merge_tensors(recipe, name, base, parents)
    assert out.shape == base.shape
    assert out.dtype == base.dtype
    assert torch.equal(out, parents["a"].bfloat16())
