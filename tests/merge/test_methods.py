"""Contracts that every row of the method table keeps, checked on single tensors.

A new row is picked up here; it only needs a float64 loop of its own in reference.py.
"""

import hashlib

import numpy as np
import pytest
import torch
from heterosis.merge import blocks
from heterosis.merge.engine import merge_tensors
from heterosis.merge.methods import METHODS
from heterosis.merge.recipe import Coefficients, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from .reference import REFERENCES, merged

NAME, GROUP = "model.layers.0.mlp.up_proj.weight", "layers.0.mlp"
NAMES = ("a", "b", "c")
WEIGHTS, RATES = (0.7, -0.3, 0.5), (0.5, 0.0, 0.8)
every_method = pytest.mark.parametrize("method", sorted(METHODS))


def tensors(n: int = 300, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Base and three parents (N,), with zeros of both signs and unchanged entries among them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator)
    base[:4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    parents = {}
    for name in NAMES:
        parents[name] = base + 0.1 * torch.randn(n, generator=generator)
        parents[name][:6:2] = base[:6:2]
        parents[name][1] = 0.0
    return base.to(dtype), {name: parent.to(dtype) for name, parent in parents.items()}


def recipe(method: str, names=NAMES, weights=WEIGHTS, rates=RATES, lambda_=0.8, seed=5) -> Recipe:
    row = METHODS[method]
    rates = rates if row.uses_drop_rate else (0.0,) * len(names)
    coefficients = {GROUP: Coefficients(tuple(weights), tuple(rates))}
    return Recipe(method, names, coefficients, lambda_ if row.uses_lambda else 1.0, seed)


def bits(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@every_method
def test_equals_a_float64_loop(method):
    assert method in REFERENCES, f"write a float64 loop for {method} in reference.py"
    base, parents = tensors()
    arrays = {name: parent.numpy() for name, parent in parents.items()}
    for made in (
        recipe(method),
        recipe(method, rates=(0.0, 0.0, 0.0)),
        recipe(method, weights=(0.7, 0.0, 0.5)),
        recipe(method, ("b",), (0.6,), (0.5,)),
        recipe(method, ("c", "a"), (1.5, 1.0), (0.9, 0.25), lambda_=-0.3),
    ):
        ours = merge_tensors(made, NAME, base, parents).double().numpy()
        np.testing.assert_allclose(
            ours, merged(made, NAME, GROUP, base.numpy(), arrays), rtol=2e-6, atol=2e-6
        )


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_zero_give_the_base_to_the_bit(method, dtype):
    base, parents = tensors(dtype=dtype)
    zero = recipe(method, weights=(0.0, 0.0, 0.0))
    assert bits(merge_tensors(zero, NAME, base, parents)) == bits(base)
    if METHODS[method].uses_lambda:
        nothing = recipe(method, lambda_=0.0)
        assert bits(merge_tensors(nothing, NAME, base, parents)) == bits(base)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_parent_at_weight_one_is_that_parent_to_the_bit(method, dtype):
    base, parents = tensors(dtype=dtype)
    alone = recipe(method, ("b",), (1.0,), (0.0,), lambda_=1.0)
    assert bits(merge_tensors(alone, NAME, base, parents)) == bits(parents["b"])
    among = recipe(method, weights=(0.0, 1.0, 0.0), lambda_=1.0)
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
    expected = bits(merge_tensors(recipe(method), NAME, base, parents))
    for order in ((2, 0, 1), (1, 0, 2), (2, 1, 0)):
        other = recipe(
            method,
            tuple(NAMES[i] for i in order),
            tuple(WEIGHTS[i] for i in order),
            tuple(RATES[i] for i in order),
        )
        assert bits(merge_tensors(other, NAME, base, parents)) == expected


@every_method
def test_block_size_changes_no_bit(method, monkeypatch):
    base, parents = tensors(n=1003)
    results = set()
    for size in (1, 7, 64, 1 << 16):
        monkeypatch.setattr(blocks, "CPU_BLOCK", size)
        results.add(bits(merge_tensors(recipe(method), NAME, base, parents)))
    assert len(results) == 1


@every_method
def test_shape_and_dtype_are_those_of_the_base(method):
    base, parents = tensors(n=306, dtype=torch.bfloat16)
    shaped = {name: parent.float().reshape(17, 18) for name, parent in parents.items()}
    out = merge_tensors(recipe(method), NAME, base.reshape(17, 18), shaped)
    assert out.shape == (17, 18)
    assert out.dtype == torch.bfloat16
    flat = merge_tensors(recipe(method), NAME, base, {n: p.float() for n, p in parents.items()})
    assert bits(out) == bits(flat)


@every_method
def test_arithmetic_is_float32_and_rounded_once(method):
    base, parents = tensors(dtype=torch.bfloat16)
    wide = {name: parent.float() for name, parent in parents.items()}
    exact = merge_tensors(recipe(method), NAME, base.float(), wide)
    assert bits(merge_tensors(recipe(method), NAME, base, parents)) == bits(exact.bfloat16())


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)),
    weights=st.tuples(*[st.floats(-2, 2)] * 3),  # denormal ones too
    rates=st.tuples(*[st.floats(0, 0.95)] * 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_recipe_gives_finite_weights_equal_on_repeat(method, weights, rates, seed):
    base, parents = tensors(n=64)
    made = recipe(method, weights=weights, rates=rates, seed=seed)
    once = merge_tensors(made, NAME, base, parents)
    assert bool(once.isfinite().all())
    assert bits(merge_tensors(made, NAME, base, parents)) == bits(once)


@every_method
def test_the_mask_seed_matters_to_random_methods_only(method):
    base, parents = tensors()
    one, other = (merge_tensors(recipe(method, seed=s), NAME, base, parents) for s in (1, 2))
    assert (bits(one) != bits(other)) == METHODS[method].is_random


@every_method
def test_a_row_says_what_it_uses(method):
    row = METHODS[method]
    assert row.name == method
    assert row.paper.startswith("arXiv:")
    assert row.summary
    base, parents = tensors()
    if row.uses_drop_rate:
        one, other = (
            merge_tensors(recipe(method, rates=(p, p, p)), NAME, base, parents) for p in (0.2, 0.6)
        )
        assert bits(one) != bits(other)
    if row.uses_lambda:
        one, other = (
            merge_tensors(recipe(method, lambda_=lam), NAME, base, parents) for lam in (0.5, 0.6)
        )
        assert bits(one) != bits(other)


def test_dare_equals_task_arithmetic_in_expectation():
    base, parents = tensors(n=64)
    plain = merge_tensors(recipe("task_arithmetic"), NAME, base, parents)
    draws = [merge_tensors(recipe("dare_linear", seed=s), NAME, base, parents) for s in range(2000)]
    stacked = torch.stack(draws).double()
    error = stacked.std(dim=0) / len(draws) ** 0.5
    assert bool(((stacked.mean(dim=0) - plain).abs() <= 5 * error + 1e-6).all())


def test_ties_by_hand():
    base = torch.zeros(5)
    parents = {
        "a": torch.tensor([3.0, 1.0, -2.0, 0.0, 4.0]),
        "b": torch.tensor([1.0, -3.0, -4.0, 0.0, -4.0]),
    }
    made = recipe("ties", ("a", "b"), (1.0, 1.0), (0.0, 0.0), lambda_=1.0)
    # 3 and 1 agree: their mean; -3 outvotes 1: alone; 4 and -4 cancel: nobody is elected.
    assert merge_tensors(made, NAME, base, parents).tolist() == [2.0, -3.0, -3.0, 0.0, 0.0]
    trimmed = recipe("ties", ("a",), (1.0,), (0.4,), lambda_=1.0)
    # The two smallest of five (0 and 1) are dropped.
    assert merge_tensors(trimmed, NAME, base, parents).tolist() == [3.0, 0.0, -2.0, 0.0, 4.0]
