"""Gradients of coefficients: against central differences of the reference and of losses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from heterosis.merge.engine.engine import MergeEngine
from heterosis.merge.engine.placement import PLACEMENTS, Sources
from heterosis.merge.gradient.coefficient_gradient import CoefficientGradient
from heterosis.merge.parents.checkpoint import LowRank
from heterosis.merge.parents.parent_set import ParentSet
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from heterosis.merge.recipe.recipe_gradient import RecipeGradient

from tests.families import tiny_family

from ..conftest import Family, opened
from ..reference import merged
from ..trained import train

MATRIX, VECTOR = "model.layers.1.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight"
GROUPS = {MATRIX: "layers.1.attn", VECTOR: "layers.1.other"}
STEP = 1e-5
PARAMETERS = {"nearswap": {"t": (0.004, 0.007)}, "sce": {"select_topk": (0.7,)}}


@pytest.fixture(scope="module")
def engine(untied: Family) -> MergeEngine:
    return MergeEngine(opened(untied), dtype="float32")


def made(method: str, engine: MergeEngine, weights: tuple[float, ...] = (0.4, 0.7)) -> Recipe:
    row, names = METHODS[method], engine.parents.names
    rates = tuple(0.3 * row.uses_drop_rate for _ in names)
    group = Coefficients(weights, rates, PARAMETERS.get(method, {}))
    lambda_ = 0.8 if row.uses_lambda else 1.0
    return Recipe(method, names, dict.fromkeys(engine.parents.groups(), group), lambda_, 5)


def directions() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {MATRIX: (16, 32), VECTOR: (32,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def gradient_of(
    engine: MergeEngine, recipe: Recipe, loss: Callable[[], torch.Tensor]
) -> RecipeGradient:
    gradient = CoefficientGradient(engine, recipe)
    with gradient.collecting():
        loss().backward()
    return gradient.take()


def along(engine: MergeEngine) -> torch.Tensor:
    """A loss that is linear in two tensors."""
    state = dict(engine.model.named_parameters())
    return torch.stack([(state[n] * d).sum() for n, d in directions().items()]).sum()


def reference_loss(engine: MergeEngine, recipe: Recipe, group: str) -> float:
    """The same loss of the float64 reference, of one group's tensor."""
    total = 0.0
    for name, direction in directions().items():
        if GROUPS[name] == group:
            arrays = {p: engine.parents.tensor(p, name).numpy() for p in engine.parents.names}
            base = engine.parents.tensor("base", name).numpy()
            found = merged(recipe, name, group, base, arrays)
            total += float(np.sum(found * direction.numpy().astype(np.float64)))
    return total


def moved(recipe: Recipe, group: str, **changes) -> Recipe:
    groups = dict(recipe.coefficients)
    groups[group] = replace(groups[group], **changes)
    return replace(recipe, coefficients=groups)


def central(loss: Callable[[float], float]) -> float:
    return (loss(STEP) - loss(-STEP)) / (2 * STEP)


def shifted(numbers: tuple[float, ...], index: int, by: float) -> tuple[float, ...]:
    return tuple(n + by * (i == index) for i, n in enumerate(numbers))


@pytest.mark.parametrize("weights", [(0.4, 0.7), (-0.3, 0.9), (0.5, 0.5)])
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_agree_with_central_differences_of_the_reference(method, weights, engine):
    recipe = made(method, engine, weights)
    found = gradient_of(engine, recipe, lambda: along(engine))
    for group in GROUPS.values():

        def loss(group=group, **changes) -> float:
            return reference_loss(engine, moved(recipe, group, **changes), group)

        expected = [
            central(lambda by, i=i, loss=loss: loss(weights=shifted(weights, i, by)))
            for i in range(2)
        ]
        scale = max(map(abs, expected)) + 1e-3
        assert found.weights[group] == pytest.approx(expected, abs=3e-4 * scale)
        if METHODS[method].uses_lambda:
            by_lambda = central(lambda by, loss=loss: loss(lambda_=recipe.lambda_ + by))
            assert found.lambdas[group] == pytest.approx(by_lambda, rel=3e-4, abs=1e-5)
    assert found.weights["embed"] == (0.0, 0.0), "the loss does not use it"


def test_a_smooth_parameter_has_a_slope(engine):
    recipe, group = made("nearswap", engine), GROUPS[MATRIX]
    found = gradient_of(engine, recipe, lambda: along(engine))
    limits = recipe.coefficients[group].parameters["t"]
    expected = [
        central(
            lambda by, i=i: reference_loss(
                engine, moved(recipe, group, parameters={"t": shifted(limits, i, by / 10)}), group
            )
        )
        * 10
        for i in range(2)
    ]
    assert found.parameters[group]["t"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.is_linear])
def test_a_parent_of_weight_0_has_a_slope_where_the_method_is_linear(method, engine):
    recipe = made(method, engine, (0.4, 0.0))
    found = gradient_of(engine, recipe, lambda: along(engine))
    group = GROUPS[MATRIX]
    at = {w: made(method, engine, (0.4, w)) for w in (0.0, 1.0)}
    chord = reference_loss(engine, at[1.0], group) - reference_loss(engine, at[0.0], group)
    assert found.weights[group][1] == pytest.approx(chord, rel=1e-3)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.is_linear])
def test_a_parent_that_takes_no_part_has_none_elsewhere(method, engine):
    found = gradient_of(engine, made(method, engine, (0.4, 0.0)), lambda: along(engine))
    assert found.weights[GROUPS[MATRIX]][1] == 0.0
    at = {w: made(method, engine, (0.4, w)) for w in (0.2, 0.5, 1.4)}
    losses = {w: reference_loss(engine, r, GROUPS[MATRIX]) for w, r in at.items()}
    chord = (losses[1.4] - losses[0.5]) / 0.9 - (losses[0.5] - losses[0.2]) / 0.3
    assert abs(chord) > 1e-6, "its row in the table of methods says that it is not linear"


def language_loss(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(4))
    return model(input_ids=ids, labels=ids).loss


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "slerp"])
def test_derivatives_of_a_models_loss(arch, method, tmp_path):
    family = tiny_family(tmp_path, arch=arch, dtype="float32", spread=0.05)
    engine = MergeEngine(opened(family), dtype="float32")
    recipe = made(method, engine)
    found = gradient_of(engine, recipe, lambda: language_loss(engine.model))
    generator = np.random.default_rng(1)
    tilt = {g: generator.normal(size=2) for g in recipe.coefficients}
    slope = sum(float(np.dot(tilt[g], found.weights[g])) for g in tilt)

    def loss(by: float) -> float:
        groups = {
            g: replace(c, weights=tuple(np.array(c.weights) + by * tilt[g]))
            for g, c in recipe.coefficients.items()
        }
        with torch.no_grad():
            return float(language_loss(engine.load(replace(recipe, coefficients=groups))))

    step = 1e-2
    assert slope == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=0.05)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2", "qwen3_moe", "llava"])
def test_tensors_of_files_are_found_in_parameters(arch, tmp_path):
    family = tiny_family(tmp_path, arch=arch, dtype="float32", n_layers=2)
    engine = MergeEngine(opened(family), dtype="float32")
    generator = torch.Generator().manual_seed(3)
    parameters = dict(engine.model.named_parameters())
    tilts = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}

    def loss() -> torch.Tensor:
        return torch.stack([(parameters[n] * tilt).sum() for n, tilt in tilts.items()]).sum()

    recipe = made("task_arithmetic", engine, (0.4, 0.7))
    found = gradient_of(engine, recipe, loss)
    for group in recipe.coefficients:
        ends = []
        for weight in (0.2, 1.2):
            engine.load(moved(recipe, group, weights=(0.4, weight)))
            with torch.no_grad():
                ends.append(
                    sum(float((parameters[n].double() * t).sum()) for n, t in tilts.items())
                )
        assert found.weights[group][1] == pytest.approx(ends[1] - ends[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_delta_of_an_adapter_is_never_formed(arch, placement, tmp_path, monkeypatch):
    family = tiny_family(tmp_path, arch=arch, dtype="float32", n_parents=1)
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[arch]
    train(family["base"], tmp_path / "lora", r=4, target_modules=targets)
    paths = {"a": family["a"], "lora": tmp_path / "lora"}
    engine = MergeEngine(ParentSet.open(family["base"], paths), dtype="float32")
    engine.sources = Sources(engine.parents, placement, engine.targets)
    recipe = made("task_arithmetic", engine)
    engine.load(recipe)
    formed = []
    added_to = LowRank.added_to
    monkeypatch.setattr(
        LowRank, "added_to", lambda self, weight: formed.append(1) or added_to(self, weight)
    )
    found = gradient_of(engine, recipe, lambda: language_loss(engine.model))
    assert not formed
    monkeypatch.setattr(engine.sources, "low_rank", lambda *_: None)
    dense = {
        (owner, name): engine.parents.tensor(owner, name)
        for owner in ("base", *paths)
        for name in engine.targets
    }
    monkeypatch.setattr(engine.sources, "fetch", lambda owner, name, _: dense[owner, name])
    expected = gradient_of(engine, recipe, lambda: language_loss(engine.model))
    for group, slopes in found.weights.items():
        assert slopes == pytest.approx(expected.weights[group], rel=1e-3, abs=1e-6)


def test_backward_passes_add_up_and_leave_the_model_as_it_was(engine):
    recipe = made("ties", engine)
    gradient = CoefficientGradient(engine, recipe)
    with gradient.collecting():
        language_loss(engine.model).backward()
        once = gradient.take()
        for _ in range(2):
            language_loss(engine.model).backward()
    twice = gradient.take()
    for group, slopes in once.weights.items():
        assert twice.weights[group] == pytest.approx([2 * slope for slope in slopes], rel=1e-6)
    assert not any(gradient.take().lambdas.values())
    parameters = list(engine.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in parameters)


def test_gradients_are_freed_as_they_arrive(engine):
    held = []
    gradient = CoefficientGradient(engine, made("linear", engine))
    first = next(engine.model.parameters())
    with gradient.collecting():
        first.register_hook(  # the last to arrive
            lambda _: held.append([p.grad for p in engine.model.parameters() if p.grad is not None])
        )
        language_loss(engine.model).backward()
    assert held == [[]]


def test_a_failing_loss_leaves_the_model_as_it_was(engine):
    gradient = CoefficientGradient(engine, made("linear", engine))
    with pytest.raises(ZeroDivisionError), gradient.collecting():
        language_loss(engine.model).backward()
        raise ZeroDivisionError
    assert not any(p.requires_grad for p in engine.model.parameters())
