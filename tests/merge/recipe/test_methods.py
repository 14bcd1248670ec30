"""Contracts that every row of the method table keeps, checked on single tensors.

A new row is picked up here; it only needs a float64 loop of its own in reference.py.
"""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from heterosis.merge import blocks
from heterosis.merge.kernels import launcher
from heterosis.merge.kernels.launcher import merge_tensors
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.plans import Consensus
from heterosis.merge.recipe.recipe import Recipe, plan_tensor
from heterosis.merge.statistics.parent_statistics import UncachedStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from ..reference import REFERENCES, merged
from .recipes import GROUP, NAME, NAMES, RATES, WEIGHTS, recipe, tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_method = pytest.mark.parametrize("method", sorted(METHODS))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def bits(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def check_reference(made: Recipe, base, parents, rtol=2e-6, atol=2e-6, where: Any = ...):
    arrays = {name: parent.numpy() for name, parent in parents.items()}
    ours = merge_tensors(made, NAME, base, parents).double().numpy()
    expected = merged(made, NAME, GROUP, base.numpy(), arrays)
    np.testing.assert_allclose(ours[where], expected[where], rtol=rtol, atol=atol)


@every_method
@pytest.mark.parametrize("shape", [(300,), (15, 20)], ids=str)
def test_equals_a_float64_loop(method, shape):
    assert method in REFERENCES, f"write a float64 loop for {method} in reference.py"
    base, parents = tensors(shape)
    for made in (
        recipe(method),
        recipe(method, rates=(0.0, 0.0, 0.0)),
        recipe(method, weights=(0.7, 0.0, 0.5)),
        recipe(method, ("b",), (0.6,), (0.5,)),
        recipe(method, ("c", "a"), (1.5, 1.0), (0.9, 0.25), lambda_=-0.3),
    ):
        check_reference(made, base, parents)


PARAMETERS = [
    (method, parameter.name, value)
    for method, row in sorted(METHODS.items())
    for parameter in row.parameters
    for value in sorted({parameter.low, (parameter.low + parameter.high) / 4, parameter.high})
    if parameter.unit != "switch" or value in (0.0, 1.0)
]


@pytest.mark.parametrize(("method", "name", "value"), PARAMETERS)
def test_every_parameter_equals_the_loop_over_its_range(method, name, value):
    base, parents = tensors()
    check_reference(recipe(method, parameters={name: value}), base, parents)


@every_method
@every_dtype
def test_weights_zero_give_the_base_to_the_bit(method, dtype):
    base, parents = tensors(dtype=dtype)
    zero = recipe(method, weights=(0.0, 0.0, 0.0))
    assert bits(merge_tensors(zero, NAME, base, parents)) == bits(base)
    if METHODS[method].uses_lambda:
        nothing = recipe(method, lambda_=0.0)
        assert bits(merge_tensors(nothing, NAME, base, parents)) == bits(base)


@pytest.mark.parametrize(
    "method", [name for name, row in sorted(METHODS.items()) if row.neutral is not None]
)
@every_dtype
def test_one_parent_at_weight_one_is_that_parent_to_the_bit(method, dtype):
    base, parents = tensors(dtype=dtype)
    options = {"lambda_": 1.0, "parameters": METHODS[method].neutral}
    alone = recipe(method, ("b",), (1.0,), (0.0,), **options)
    assert bits(merge_tensors(alone, NAME, base, parents)) == bits(parents["b"])
    among = recipe(method, weights=(0.0, 1.0, 0.0), **options)
    assert bits(merge_tensors(among, NAME, base, parents)) == bits(parents["b"])


@every_method
def test_inputs_are_left_unchanged(method):
    base, parents = tensors()
    before = [bits(t) for t in (base, *parents.values())]
    for rates in (RATES, (0.0, 0.0, 0.0)):
        merge_tensors(recipe(method, rates=rates), NAME, base, parents)
    assert [bits(t) for t in (base, *parents.values())] == before


@every_method
def test_permuting_parents_changes_no_bit(method):
    base, parents = tensors()
    made = recipe(method)
    weights = made.coefficients[GROUP].weights
    expected = bits(merge_tensors(made, NAME, base, parents))
    for order in ((2, 0, 1), (1, 0, 2), (2, 1, 0)):
        other = recipe(
            method,
            tuple(NAMES[i] for i in order),
            tuple(weights[i] for i in order),
            tuple(RATES[i] for i in order),
        )
        assert bits(merge_tensors(other, NAME, base, parents)) == expected


@every_method
def test_block_size_changes_no_bit(method, monkeypatch):
    base, parents = tensors((17, 59))
    results = set()
    for small in (0, 1 << 16):  # launched alone, or in a pack
        monkeypatch.setattr(launcher, "SMALL", small)
        for size in (8, 64, 512, 1 << 16):
            monkeypatch.setattr(blocks, "CPU_BLOCK", size)
            results.add(bits(merge_tensors(recipe(method), NAME, base, parents)))
    assert len(results) == 1


@every_method
def test_a_layer_group_may_have_the_method_to_itself(method):
    base, parents = tensors()
    made = recipe(method)
    lambda_ = made.lambda_ if METHODS[method].uses_lambda else None
    own = replace(made.coefficients[GROUP], method=method, lambda_=lambda_)
    among = Recipe("linear", NAMES, {GROUP: own}, mask_seed=made.mask_seed)
    assert bits(merge_tensors(among, NAME, base, parents)) == bits(
        merge_tensors(made, NAME, base, parents)
    )


@every_method
def test_shape_and_dtype_are_those_of_the_base(method):
    base, parents = tensors((17, 18), dtype=torch.bfloat16)
    wide = {name: parent.float() for name, parent in parents.items()}
    out = merge_tensors(recipe(method), NAME, base, wide)
    assert out.shape == (17, 18)
    assert out.dtype == torch.bfloat16
    assert bits(out) == bits(merge_tensors(recipe(method), NAME, base, parents))
    cut = {name: parent.reshape(2, 9, 17).mT for name, parent in parents.items()}
    strided = merge_tensors(recipe(method), NAME, base.reshape(2, 9, 17).mT, cut)
    dense = {name: parent.contiguous() for name, parent in cut.items()}
    again = merge_tensors(recipe(method), NAME, base.reshape(2, 9, 17).mT.contiguous(), dense)
    assert strided.shape == (2, 17, 9)
    assert bits(strided) == bits(again)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_is_float32_and_rounded_once(method, dtype):
    base, parents = tensors(dtype=dtype)
    wide = {name: parent.float() for name, parent in parents.items()}
    exact = merge_tensors(recipe(method), NAME, base.float(), wide)
    assert bits(merge_tensors(recipe(method), NAME, base, parents)) == bits(exact.to(dtype))


@every_method
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 1, 3)], ids=str)
def test_odd_shapes_are_merged_too(method, shape):
    base, parents = tensors(shape)
    out = merge_tensors(recipe(method), NAME, base, parents)
    assert out.shape == base.shape
    assert bool(out.isfinite().all())


@every_method
def test_the_mask_seed_matters_to_random_methods_only(method):
    base, parents = tensors()
    one, other = (merge_tensors(recipe(method, seed=s), NAME, base, parents) for s in (1, 2))
    assert (bits(one) != bits(other)) == METHODS[method].is_random


@every_method
def test_a_row_says_what_it_uses(method):
    row = METHODS[method]
    assert row.name == method
    assert row.paper
    assert row.summary
    assert row.plan.__doc__
    base, parents = tensors()
    changes = {}
    if row.uses_drop_rate:
        changes["rates"] = ((0.2,) * 3, (0.6,) * 3)
    if row.uses_lambda:
        changes["lambda_"] = (0.5, 0.6)
    for key, values in changes.items():
        one, other = (
            merge_tensors(recipe(method, **{key: v}), NAME, base, parents) for v in values
        )
        assert bits(one) != bits(other)
    for parameter in row.parameters:
        assert parameter.low <= parameter.default <= parameter.high
        assert parameter.unit
        assert parameter.summary
        made = [recipe(method, parameters={parameter.name: v}) for v in (0.02, 0.3)]
        if parameter.unit == "switch":
            made = [recipe(method, parameters={parameter.name: v}) for v in (0.0, 1.0)]
        one, other = (merge_tensors(r, NAME, base, parents) for r in made)
        assert bits(one) != bits(other)


finite = st.floats(-2, 2)  # denormal ones too
drop_rates = st.one_of(st.sampled_from([0.0, 0.99]), st.floats(0, 0.99))
signed = st.one_of(st.sampled_from([0.0, 1.0, -0.5]), finite)


@st.composite
def problems(draw: st.DrawFn):
    """A recipe of any method over K = 1..6 parents, with tensors of any shape and dtype."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    k = draw(st.integers(1, 6))
    names = tuple("abcdef"[:k])
    parameters = {
        p.name: draw(
            st.sampled_from([0.0, 1.0]) if p.unit == "switch" else st.floats(p.low, p.high)
        )
        for p in method.parameters
    }
    made = recipe(
        method.name,
        names,
        draw(st.lists(signed, min_size=k, max_size=k)),
        draw(st.lists(drop_rates, min_size=k, max_size=k)),
        draw(finite),
        draw(st.integers(0, 2**64 - 1)),
        parameters,
    )
    shape = draw(st.sampled_from([(48,), (6, 7), (1, 5), (5, 1), (2, 3, 4)]))
    dtype = draw(st.sampled_from(DTYPES))
    return made, *tensors(shape, draw(st.integers(0, 5)), dtype, names)


RATIO = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")


@settings(max_examples=150, deadline=None)
@given(problems())
def test_any_recipe_gives_finite_weights_equal_on_repeat(problem):
    made, base, parents = problem
    before = [bits(t) for t in (base, *parents.values())]
    once = merge_tensors(made, NAME, base, parents)
    assert once.dtype == base.dtype
    assert once.shape == base.shape
    assert bits(merge_tensors(made, NAME, base, parents)) == bits(once)
    assert [bits(t) for t in (base, *parents.values())] == before
    if made.method not in RATIO:  # a ratio to a sum near 0 may leave the range of float16
        assert bool(once.isfinite().all())


@settings(max_examples=150, deadline=None)
@given(problems())
def test_any_recipe_equals_the_float64_loop(problem):
    made, base, parents = problem
    base, parents = base.float(), {name: parent.float() for name, parent in parents.items()}
    if made.method in RATIO and not is_well_posed(made, base, parents):
        return
    c = made.coefficients[GROUP]
    size = 1 + sum(abs(w) for w in c.weights) * (1 + max(1 / (1 - p) for p in c.drop_rates))
    if not any(0.0 < abs(w) < 1e-4 for w in c.weights):
        where = ~near_ties(made, base, parents)
        check_reference(made, base, parents, rtol=1e-5, atol=1e-6 * size, where=where)


def is_well_posed(made: Recipe, base, parents) -> bool:
    """Whether the geometry has an answer; where it has none is test_spherical's matter."""
    weights = dict(zip(made.parents, made.coefficients[GROUP].weights, strict=True))
    weights = {name: w for name, w in weights.items() if w}
    deltas = torch.stack([(parents[name] - base).flatten().double() for name in parents])
    angles = torch.nn.functional.normalize(deltas, dim=1)
    return (
        abs(sum(weights.values())) >= 0.2 * sum(map(abs, weights.values()))
        and (made.method != "karcher" or min(weights.values(), default=1.0) > 0.0)
        and bool((deltas.norm(dim=1) > 0).all())
        and bool((angles @ angles.mT > -0.9).all())
    )


def near_ties(made: Recipe, base, parents) -> torch.Tensor:
    """Entries that float32 and float64 may elect differently, whoever is dropped.

    Those are votes that cancel to rounding errors; scales are divided by sums of weights.
    """
    plan = plan_tensor(made, NAME, UncachedStatistics(NAME, base, parents))
    if not isinstance(plan, Consensus) or plan.combine == "sum":
        return torch.zeros(base.shape, dtype=torch.bool)
    deltas = torch.stack([parents[name].double() - base.double() for name in plan.parents])
    votes = deltas * torch.tensor(plan.scales).double().view(-1, *[1] * base.dim())
    kept = torch.tensor([*itertools.product([0.0, 1.0], repeat=len(votes))]).double()
    sums, sizes = (torch.tensordot(kept, v, dims=1) for v in (votes, votes.abs()))
    return ((sums.abs() < 1e-5 * sizes) & (sizes > 0)).any(dim=0)


def test_dare_equals_task_arithmetic_in_expectation_and_has_its_variance():
    base, parents = tensors((64,))
    rate = 0.6
    options = {"rates": (rate, rate, rate), "lambda_": 1.0}
    plain = merge_tensors(recipe("task_arithmetic", lambda_=1.0), NAME, base, parents)
    draws = [
        merge_tensors(recipe("dare_linear", seed=s, **options), NAME, base, parents)
        for s in range(1000)
    ]
    stacked = torch.stack(draws).double()
    error = stacked.std(dim=0) / len(draws) ** 0.5
    assert bool(((stacked.mean(dim=0) - plain).abs() <= 5 * error + 1e-6).all())
    squares = [(w * (p - base)).square() for w, p in zip(WEIGHTS, parents.values(), strict=True)]
    expected = torch.stack(squares).sum(dim=0).double() * rate / (1 - rate)
    ratio = stacked.var(dim=0).sum() / expected.sum()
    assert abs(float(ratio) - 1) < 0.05


def test_the_table_needs_neither_torch_nor_numpy():
    code = (
        "import sys; import heterosis.merge.recipe.recipe, heterosis.merge.recipe.groups;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
