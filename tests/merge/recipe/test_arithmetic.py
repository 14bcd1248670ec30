"""Methods on deltas: small tensors worked out by hand, and the numbers of their plans."""

import math

import pytest
import torch
from heterosis.merge.kernels.launcher import merge_tensors
from heterosis.merge.recipe.plans import BASE_ONLY, Combination, Consensus
from heterosis.merge.recipe.recipe import Recipe, plan_tensor

from .recipes import NAME, recipe, tensors


class Known:
    """Statistics of a tensor whose magnitudes are spread evenly over [0, 1)."""

    def gram(self, parents):
        raise AssertionError("asked of no method on deltas")

    def magnitude(self, parent, drop_rate):
        assert 0.0 <= drop_rate < 1.0
        return drop_rate

    def variance(self, parents, select_topk):
        return 0.25, tuple(float(ord(parent) - ord("a")) for parent in parents)


def plan(method: str, weights, rates=(), **options) -> Consensus:
    names = tuple("abcdef"[: len(weights)])
    made = plan_tensor(recipe(method, names, weights, rates, **options), NAME, Known())
    assert isinstance(made, Consensus)
    return made


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


def test_weights_of_both_signs_do_not_explode_in_ties():
    # The mean divides by the sum of |w|: nothing leaves the range of the deltas.
    base, parents = tensors(names=("a", "b"))
    made = recipe("ties", ("a", "b"), (0.5, -0.499), (0.0, 0.0), lambda_=1.0)
    largest = max(float((p - base).abs().max()) for p in parents.values())
    assert float((merge_tensors(made, NAME, base, parents) - base).abs().max()) <= 1.001 * largest


def test_breadcrumbs_by_hand():
    base = torch.zeros(10)
    parents = {"a": torch.arange(1.0, 11.0)}
    for gamma, kept in ((0.0, range(5, 11)), (0.1, range(4, 10)), (0.5, range(1, 7))):
        made = recipe(
            "breadcrumbs", ("a",), (1.0,), (0.4,), lambda_=1.0, parameters={"gamma": gamma}
        )
        out = merge_tensors(made, NAME, base, parents)
        assert out.nonzero().flatten().add(1).tolist() == list(kept)


def test_della_keeps_large_entries_more_often_and_is_right_on_average():
    base = torch.zeros(200)
    parents = {"a": torch.arange(1.0, 201.0)}
    options = {"lambda_": 1.0, "parameters": {"epsilon": 0.8}}
    draws = torch.stack(
        [
            merge_tensors(
                recipe("della_linear", ("a",), (1.0,), (0.5,), seed=s, **options),
                NAME,
                base,
                parents,
            )
            for s in range(300)
        ]
    )
    kept = (draws != 0).double().mean(dim=0)
    assert abs(float(kept[:20].mean()) - 0.14) < 0.03
    assert abs(float(kept[-20:].mean()) - 0.86) < 0.03
    assert abs(float(draws.mean(dim=0).sum() / parents["a"].sum()) - 1) < 0.02


@pytest.mark.parametrize(
    ("rate", "epsilon", "window"),
    [
        (0.5, 0.3, (0.65, 0.35)),
        (0.1, 0.3, (0.2, 0.0)),
        (0.9, 0.3, (0.999, 0.801)),
        (0.9995, 0.3, (0.9995, 0.9995)),
        (0.0, 1.0, (0.0, 0.0)),
        (0.5, 0.0, (0.5, 0.5)),
    ],
)
def test_dellas_window_stays_where_probabilities_are(rate, epsilon, window):
    made = plan("della", (1.0, 1.0), (rate, 0.5), parameters={"epsilon": epsilon})
    assert (made.low[0], made.high[0]) == pytest.approx(window)
    assert 0.0 <= made.high[0] <= made.low[0] < 1.0


def test_breadcrumbs_cuts_no_more_than_the_drop_rate():
    made = plan("breadcrumbs", (1.0, 1.0, 1.0), (0.4, 0.05, 0.0), parameters={"gamma": 0.1})
    assert made.low == pytest.approx((0.3, 0.0, 0.0))
    assert made.high == pytest.approx((0.9, 0.95, math.inf))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties", "sce"])
def test_the_mean_depends_on_ratios_of_weights_alone(method):
    made = plan(method, (0.5, -0.25), (0.5, 0.5))
    assert plan(method, (2.0, -1.0), (0.5, 0.5)) == made
    assert plan(method, (2.0, -1.0), (0.5, 0.5), lambda_=0.4) != made


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
def test_normalize_off_leaves_the_division_out(method):
    made = plan(method, (2.0, -1.0), (0.0, 0.0), parameters={"normalize": 0.0})
    assert (made.combine, made.keep, made.scales) == ("elect_sum", "all", (2.0, -1.0))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_without_drops_the_mask_seed_is_out_of_the_plan(method):
    plans = {
        plan_tensor(recipe(method, rates=(0.0,) * 3, seed=seed), NAME, Known()) for seed in (1, 2)
    }
    assert len(plans) == 1


def test_a_weight_far_below_the_others_divides_nothing_by_0():
    made = plan("ties", (1.0, 1e-37), (0.0, 0.0))
    assert min(made.weights) > 1e-30
    base, parents = torch.zeros(1), {"a": torch.zeros(1), "b": torch.ones(1)}
    alone = recipe("ties", ("a", "b"), (1.0, 1e-37), (0.0, 0.0), lambda_=1.0)
    assert merge_tensors(alone, NAME, base, parents).tolist() == pytest.approx([1.0])


def test_sce_weighs_by_squares_after_an_election_that_does_not():
    made = plan("sce", (1.0, 1.0, 1.0), parameters={"select_topk": 0.5}, lambda_=0.7)
    assert (made.keep, made.low, made.factor) == ("common", (0.25,), 0.7)
    assert made.scales == (1.0, 1.0, 1.0)
    assert made.shares == pytest.approx((0.0, 0.5, 1.0))
    assert made.weights == pytest.approx((0.0, 0.5, 1.0))
    nothing = recipe("sce", parameters={"select_topk": 0.0})
    assert plan_tensor(nothing, NAME, Known()) == BASE_ONLY


def test_nearswap_without_reach_is_the_base_and_without_limit_the_parent():
    for t, wanted in ((0.0, BASE_ONLY), (1.0, Combination.affine(("a", "b"), (0.5, 0.25)))):
        made = recipe("nearswap", ("a", "b"), (0.5, 0.25), (), parameters={"t": t})
        assert plan_tensor(made, NAME, Known()) == wanted


def test_an_average_does_not_read_the_base():
    for n in range(1, 7):
        names = tuple("abcdef"[:n])
        made = plan_tensor(Recipe.uniform("linear", names, ("head",), 1 / n), "lm_head", Known())
        assert isinstance(made, Combination)
        assert made.base_share == 0.0
