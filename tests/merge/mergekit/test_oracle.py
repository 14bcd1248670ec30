"""mergekit 0.1.5 as an oracle: the same files merged by both, in an environment of its own.

mergekit is LGPL and no dependency: `make mergekit` puts it into `.mergekit`, or
$HETEROSIS_MERGEKIT_PYTHON names an interpreter that has it; without either these tests are skipped.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from heterosis.merge.files.file_merge import merge_files, open_merge
from heterosis.merge.kernels.launcher import merge_tensors
from heterosis.merge.mergekit.parameters import MergekitError
from heterosis.merge.mergekit.rules import RULES
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from heterosis.merge.recipe.groups import Grouping
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Recipe
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families import tiny_family

from ..conftest import Family
from ..trained import add_tokens
from .files import drawn

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).parent / "mergekit_script.py"
SEEDS = 150
"""Merges per random method, behind each mean and variance."""


@pytest.fixture(scope="session")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], None]:
    """Carries out jobs where mergekit is (mergekit_script.py says what jobs are)."""
    named = os.environ.get("HETEROSIS_MERGEKIT_PYTHON")
    python = Path(named or ROOT / ".mergekit" / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no mergekit: {python} is not there; run `make mergekit`")

    def run(jobs: list[dict[str, Any]]) -> None:
        path = tmp_path_factory.mktemp("jobs") / "jobs.json"
        path.write_text(json.dumps(jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [python, SCRIPT, path], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def assert_alike(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    share: float = 0.0,
    rounding: float = 2e-6,
    what: str = "",
) -> None:
    """Equal up to float32's rounding in all but a share of the entries."""
    assert ours.keys() == theirs.keys()
    count = apart = 0
    for name, tensor in theirs.items():
        difference = (ours[name].double() - tensor.double()).abs()
        apart += int((difference > rounding * (1 + tensor.double().abs())).sum())
        count += tensor.numel()
        assert torch.isfinite(ours[name]).all()
    assert apart <= share * count, f"{what}: {apart} of {count} entries are apart"


HEAD = "dtype: float32\nmerge_method: METHOD\nbase_model: <base>\nparameters: {SHARED}\n"
THREE = "models:\n" + "".join(f"- {{model: <{p}>, parameters: {{OWN{p}}}}}\n" for p in "abc")
TWO = "models:\n" + "".join(f"- {{model: <{p}>, parameters: {{OWN{p}}}}}\n" for p in "ab")
ONE = "models:\n- {model: <a>, parameters: {OWNa}}\n"
WEIGHTS = {"a": "weight: 0.5", "b": "weight: 0.3", "c": "weight: 0.7"}
DENSE = {"a": "weight: 0.5, density: 0.5", "b": "weight: 0.3, density: 0.75", "c": "weight: 0.7"}
NO_BASE = ("base_model: <base>\n", "")


def case(method: str, models: str, shared: str = "", own: Mapping[str, str] | None = None) -> str:
    text = (HEAD + models).replace("METHOD", method).replace("SHARED", shared)
    for parent in "abc":
        text = text.replace(f"OWN{parent}", (own or {}).get(parent, ""))
    return text


LAYERS = """
dtype: float32
merge_method: task_arithmetic
base_model: <base>
parameters: {weight: [{filter: k_proj, value: 0.05}, {value: [0.1, 0.6, 0.3]}], lambda: 1.5}
slices:
- sources:
  - {model: <base>, layer_range: [0, 2]}
  - {model: <a>, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: [0.2, 0.9]}]}}
  - {model: <b>, layer_range: [0, 2], parameters: {weight: 1e-01}}
  parameters: {weight: [{filter: q_proj, value: 0.7}, {filter: embed, value: [0.8, 0.1]}]}
- sources:
  - {model: <base>, layer_range: [2, 3]}
  - {model: <a>, layer_range: [2, 3], parameters: {weight: [0.3, 0.4]}}
  - {model: <b>, layer_range: [2, 3]}
"""
FILTERED = """
dtype: float32
merge_method: ties
base_model: <base>
parameters: {density: 0.5, normalize: true, lambda: [0.5, 1.5]}
models:
- model: <a>
  parameters:
    weight: [{filter: layers.1.self_attn, value: 0.9}, {filter: layers.1., value: 0.2}, {value: 1}]
- model: <b>
  parameters:
    weight: [0.1, 0.4, 0.9]
    density: [{filter: mlp, value: [1, 0.25]}, {filter: "*", value: 0.75}]
"""
CASES = {
    "linear": case("linear", THREE, own=WEIGHTS).replace(*NO_BASE),
    "linear with its base": case("linear", THREE, "weight: 0.4", WEIGHTS),
    "linear in shares": case(
        "linear", TWO, "normalize: false", {"a": "weight: 0.25", "b": "weight: 0.75"}
    ).replace(*NO_BASE),
    "task arithmetic": case("task_arithmetic", THREE, "lambda: 0.8", WEIGHTS),
    "task arithmetic, normalised": case("task_arithmetic", THREE, "normalize: true", WEIGHTS),
    "ties": case("ties", THREE, own=DENSE),
    "ties, summed": case("ties", THREE, "normalize: false, lambda: 0.4, int8_mask: true", DENSE),
    "ties, negative": case("ties", THREE, "normalize: false", {**DENSE, "b": "weight: -0.6"}),
    "ties, a weight of 0": case("ties", THREE, own={**DENSE, "b": "weight: 0, density: 0.5"}),
    "dare without drops": case("dare_ties", THREE, "normalize: true", WEIGHTS),
    "dare, summed": case("dare_ties", THREE, own=WEIGHTS),
    "della without drops": case("della", THREE, own=WEIGHTS),
    "breadcrumbs": case("breadcrumbs", THREE, "gamma: 0.125, lambda: 0.9", DENSE),
    "breadcrumbs, normalised": case("breadcrumbs", TWO, "gamma: 0.125, normalize: true", DENSE),
    "breadcrumbs ties": case("breadcrumbs_ties", THREE, "gamma: 0.125", DENSE),
    "slerp": case("slerp", ONE, "t: 0.3"),
    "slerp by layer": case("slerp", ONE, "t: [{filter: mlp, value: [0, 1]}, {value: 0.4}]"),
    "nuslerp": case("nuslerp", TWO, own=WEIGHTS),
    "nuslerp without base": case("nuslerp", TWO, own=WEIGHTS).replace(*NO_BASE),
    "multislerp": case("multislerp", THREE, own=WEIGHTS),
    "multislerp without base": case("multislerp", THREE, own=WEIGHTS).replace(*NO_BASE),
    "karcher": case("karcher", THREE).replace(*NO_BASE),
    "karcher with its base": case("karcher", TWO),
    "model stock": case("model_stock", THREE),
    "sce": case("sce", THREE, "select_topk: 0.5"),
    "sce of all entries": case("sce", THREE),
    "nearswap": case("nearswap", ONE, "t: 0.005"),
    "arcee fusion": case("arcee_fusion", ONE),
    "slices": LAYERS,
    "filters and gradients": FILTERED,
}
APART = {"arcee fusion": 2e-3, "sce": 1e-4}
"""Share of entries that lie on a threshold, which rounding may put on either side of it."""
ARC = 1.3e-4
"""How far the arc is from mergekit's straight line at its bound of cos = 0.9995: theta^2 / 8."""


def place(text: str, family: Family) -> str:
    for name, path in family.items():
        text = text.replace(f"<{name}>", str(path))
    return text


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory.mktemp("three"), dtype="float32", n_parents=3)


@pytest.fixture(scope="module", params=["tied", "untied"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_family(folder, tied=request.param == "tied", dtype="float32", n_parents=3)


@pytest.fixture(scope="module")
def merged(models: Family, mergekit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CASE.yaml and what mergekit makes of it, CASE."""
    folder = tmp_path_factory.mktemp("merged")
    jobs = []
    for name, text in CASES.items():
        (folder / f"{name}.yaml").write_text(place(text, models))
        jobs.append({"yaml": str(folder / f"{name}.yaml"), "out": str(folder / name)})
    mergekit(jobs)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_deterministic_merges_agree(name, merged, tmp_path):
    error = merged / f"{name}.error"
    assert not error.exists(), error.read_text()
    merge = open_merge(merged / f"{name}.yaml")
    ours = weights(merge_files(merge, tmp_path / "out", card=""))
    rounding = ARC if name.startswith("slerp") else 2e-6
    assert_alike(ours, weights(merged / name), APART.get(name, 0.0), rounding)


COUNTED = {"arcee_fusion": 2e-3}
COUNTED |= dict.fromkeys(("ties", "breadcrumbs", "breadcrumbs_ties", "sce"), 0.02)
"""Share of entries apart where shares of entries become counts, in vectors of 32 entries."""


def test_what_we_write_for_mergekit_it_merges_to_the_same(three, mergekit, tmp_path):
    jobs = []
    for method in RULES:
        made = drawn(method, 2, _open(three, "abc").groups())
        names = dict(zip(made.parents, "abc", strict=False))
        parents = _open(three, "".join(names.values()))
        made = Recipe.from_dict(made.to_dict() | {"parents": list(names.values())})
        _write_record(made, parents, tmp_path / f"{method}.json")
        merge_files(open_merge(tmp_path / f"{method}.json"), tmp_path / method, card="")
        yaml = tmp_path / method / "mergekit_config.yml"
        jobs.append({"yaml": str(yaml), "out": str(tmp_path / f"{method}-theirs")})
    mergekit(jobs)
    for method in RULES:
        error = tmp_path / f"{method}-theirs.error"
        assert not error.exists(), f"{method}: {error.read_text()}"
        ours, theirs = weights(tmp_path / method), weights(tmp_path / f"{method}-theirs")
        assert ours.keys() == theirs.keys()
        if not METHODS[method].is_random:
            share = COUNTED.get(method, 0.0)
            assert_alike(ours, theirs, share, ARC if method == "slerp" else 2e-6, method)


def _open(family: Family, names: str) -> ParentSet:
    return ParentSet.open(family["base"], {name: family[name] for name in names})


def _write_record(recipe: Recipe, parents: ParentSet, path: Path) -> None:
    digests = parents.digests()
    models = {n: {"path": str(f), "sha256": digests[n]} for n, f in parents.folders.items()}
    record = {"recipe": recipe.to_dict(), "base": models.pop("base"), "parents": models}
    path.write_text(json.dumps(record | {"dtype": "float32"}))


# SmolLM2-135M: the embedding, and the tensors of one layer.
SHAPES = {
    "model.embed_tokens.weight": (49152, 576),
    "model.layers.0.self_attn.q_proj.weight": (576, 576),
    "model.layers.0.self_attn.k_proj.weight": (192, 576),
    "model.layers.0.mlp.up_proj.weight": (1536, 576),
    "model.layers.0.mlp.down_proj.weight": (576, 1536),
    "model.layers.0.input_layernorm.weight": (576,),
}
LARGE = {
    "linear": {"weight": {"base": 0.2, "a": 0.5, "b": 0.3}, "normalize": False},
    "task_arithmetic": {"weight": {"a": 0.5, "b": 0.3}},
    "ties": {"weight": {"a": 0.5, "b": 0.3}, "density": {"a": 0.5, "b": 0.25}},
    "breadcrumbs": {
        "weight": {"a": 0.5, "b": 0.3},
        "density": {"a": 0.5, "b": 0.75},
        "gamma": 0.125,
    },
    "nuslerp": {"weight": {"a": 0.5, "b": 0.3}},
    "model_stock": {},
}
ON_EMBEDDINGS = ("linear", "task_arithmetic", "ties")
"""Merged with the embedding, too; it takes mergekit long to sort its 28 million entries."""


def save(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    for name, own in tensors.items():
        save_file(dict(own), folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in tensors}


def random_models(shapes: Mapping[str, tuple[int, ...]], spread: float = 0.002):
    """A base and two fine-tunes of it, float32: name -> tensor name -> tensor."""
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator) * 0.1 for n, s in shapes.items()}
    tuned = [
        {n: t + torch.randn(t.shape, generator=generator) * spread for n, t in base.items()}
        for _ in "ab"
    ]
    return {"base": base, "a": tuned[0], "b": tuned[1]}


def ours_of(recipe: Recipe, models: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    parents = {p: models[p] for p in recipe.parents}
    return {
        name: merge_tensors(recipe, name, base, {p: own[name] for p, own in parents.items()})
        for name, base in models["base"].items()
    }


def test_tensors_of_the_shapes_of_smollm2_agree(mergekit, tmp_path):
    whole = random_models(SHAPES)
    layer = {n: {k: t for k, t in own.items() if "layers" in k} for n, own in whole.items()}
    (tmp_path / "layer").mkdir()
    paths = {True: save(tmp_path, whole), False: save(tmp_path / "layer", layer)}
    jobs = [
        {"models": paths[m in ON_EMBEDDINGS], "base": "base", "method": m, "parameters": p}
        | {"out": str(tmp_path / f"{m}.out")}
        for m, p in LARGE.items()
    ]
    mergekit(jobs)
    for method, given in LARGE.items():
        models = whole if method in ON_EMBEDDINGS else layer
        weight = {p: given.get("weight", {"a": 1.0, "b": 1.0})[p] for p in "ab"}
        rates = {p: 1 - given.get("density", {"a": 1, "b": 1})[p] for p in "ab"}
        extra = {"gamma": given["gamma"]} if "gamma" in given else None
        groups = Grouping().names(SHAPES)
        recipe = Recipe.uniform(method, "ab", groups, weight, rates, parameters=extra)
        # Where votes cancel to within a rounding, either parent may be elected.
        assert_alike(
            ours_of(recipe, models), load_file(tmp_path / f"{method}.out"), 5e-6, what=method
        )


DROPPED = {"w": (96, 64), "v": (4096,)}
GROUPS = ("head",)
RANDOM = {
    "dare_linear": ({"density": {"a": 0.5, "b": 0.8}}, {}),
    "dare_ties": ({"density": {"a": 0.5, "b": 0.8}, "normalize": True}, {"normalize": 1}),
    "della_linear": ({"density": {"a": 0.5, "b": 0.8}, "epsilon": 1e-3}, {"epsilon": 2e-3}),
    "della": ({"density": {"a": 0.5, "b": 0.8}, "epsilon": 1e-3}, {"epsilon": 2e-3}),
}


def moments(method: str, parameters: Mapping[str, float], models: Any, drop_rate: Any = None):
    """Mean, mean square and share that is not 0 of our merged delta, over mask seeds."""
    found: dict[str, Tensor] = {}
    weight = {p: {"a": 0.6, "b": 0.4}[p] for p in models if p != "base"}
    for seed in range(SEEDS):
        recipe = Recipe.uniform(
            method,
            tuple(weight),
            GROUPS,
            weight,
            drop_rate or {"a": 0.5, "b": 0.2},
            mask_seed=seed,
            parameters=dict(parameters),
        )
        for name, tensor in ours_of(recipe, models).items():
            delta = tensor.double() - models["base"][name].double()
            terms = {name: delta, f"{name}.squares": delta**2, f"{name}.kept": delta != 0}
            for key, term in terms.items():
                found[key] = found.get(key, 0) + term.double() / SEEDS
    return found


@pytest.fixture(scope="module")
def dropped(mergekit, tmp_path_factory):
    """Models, and mergekit's moments by method."""
    folder = tmp_path_factory.mktemp("dropped")
    models = random_models(DROPPED)
    shared = {"models": save(folder, models), "base": "base", "seeds": SEEDS}
    one = {"models": {n: shared["models"][n] for n in ("base", "a")}, "base": "base"}
    jobs = [
        {**shared, "method": m, "out": str(folder / m)}
        | {"parameters": {"weight": {"a": 0.6, "b": 0.4}, **p}}
        for m, (p, _) in RANDOM.items()
    ]
    wide = {"weight": {"a": 0.6}, "density": {"a": 0.5}, "epsilon": 0.3}
    jobs.append({**one, "seeds": SEEDS, "method": "della_linear", "parameters": wide})
    jobs[-1]["out"] = str(folder / "wide")
    mergekit(jobs)
    return models, {path.name: load_file(path) for path in folder.iterdir() if not path.suffix}


@pytest.mark.parametrize("method", RANDOM)
def test_random_merges_agree_in_expectation_and_in_variance(method, dropped):
    models, theirs = dropped
    ours = moments(method, RANDOM[method][1], models)
    for name in DROPPED:
        a, b = ours[name], theirs[method][name]
        first, second = (m[f"{name}.squares"] - m[name] ** 2 for m in (ours, theirs[method]))
        # The mean of differences in units of their standard errors is a normal number's.
        scores = (a - b) / ((first + second) / SEEDS).sqrt().clamp_min(1e-12)
        assert float(scores.pow(2).mean()) == pytest.approx(1.0, abs=0.1)
        assert float(first.sum() / second.sum()) == pytest.approx(1.0, abs=0.05)
        kept = ours[f"{name}.kept"].mean(), theirs[method][f"{name}.kept"].mean()
        assert float(kept[0]) == pytest.approx(float(kept[1]), abs=0.01)


def test_dare_gives_the_delta_in_expectation(dropped):
    models, _ = dropped
    found = moments("dare_linear", {}, models)
    for name in DROPPED:
        delta = 0.6 * (models["a"][name] - models["base"][name])
        delta += 0.4 * (models["b"][name] - models["base"][name])
        spread = (found[f"{name}.squares"] - found[name] ** 2).clamp_min(1e-16).sqrt()
        scores = (found[name] - delta) / spread * SEEDS**0.5
        assert float(scores.pow(2).mean()) == pytest.approx(1.0, abs=0.1)


def test_della_keeps_the_same_ranks_as_often_and_rescales_as_the_paper(dropped):
    models, theirs = dropped
    one = {name: models[name] for name in ("base", "a")}
    ours = moments("della_linear", {"epsilon": 0.6}, one, drop_rate={"a": 0.5})
    for name in DROPPED:
        delta = 0.6 * (models["a"][name] - models["base"][name]).double()
        order = delta.reshape(delta.shape if delta.ndim > 1 else (1, -1)).abs().argsort(dim=1)
        for found in (ours, theirs["wide"]):
            kept = found[f"{name}.kept"].reshape(order.shape).gather(1, order)
            by_rank = [float(part.mean()) for part in kept.chunk(4, dim=1)]
            assert by_rank == pytest.approx([0.275, 0.425, 0.575, 0.725], abs=0.02)
        ratio = [
            float((m[name] * delta).sum() / delta.square().sum()) for m in (ours, theirs["wide"])
        ]
        assert ratio[0] == pytest.approx(1.0, abs=0.02)
        assert 1.02 < ratio[1] < 1.3  # large entries, kept more often, are not scaled back


def test_weights_that_cancel_blow_up_there_and_are_bounded_here(mergekit, tmp_path):
    models = random_models({"w": (64, 64)})
    parameters = {"weight": {"a": 0.5, "b": -0.499}, "normalize": True}
    out = tmp_path / "theirs"
    job = {"models": save(tmp_path, models), "base": "base", "method": "ties", "out": str(out)}
    mergekit([job | {"parameters": parameters}])
    theirs = load_file(out)["w"] - models["base"]["w"]
    largest = max(float((models[p]["w"] - models["base"]["w"]).abs().max()) for p in "ab")
    recipe = Recipe.uniform("ties", "ab", GROUPS, {"a": 0.5, "b": -0.499})
    ours = ours_of(recipe, models)["w"] - models["base"]["w"]
    assert float(theirs.abs().max()) > 20 * largest
    assert float(ours.abs().max()) <= 1.001 * largest


def test_float16_sums_overflow_there_and_not_here(mergekit, tmp_path):
    models = random_models({"w": (512, 512)}, spread=1.0)
    models = {n: {k: t.half() for k, t in own.items()} for n, own in models.items()}
    out = tmp_path / "theirs"
    job = {"models": save(tmp_path, models), "base": "base", "method": "ties", "dtype": "float16"}
    parameters = {"weight": 0.5, "density": 0.5, "rescale": True}
    mergekit([job | {"parameters": parameters, "out": str(out)}])
    assert not torch.isfinite(load_file(out)["w"]).all()
    for method in ("ties", "dare_ties", "della"):
        recipe = Recipe.uniform(method, "ab", GROUPS, 0.5, 0.5)
        assert torch.isfinite(ours_of(recipe, models)["w"]).all()


def test_windows_that_leave_0_and_1_are_refused_before_anything_is_read(mergekit, three, tmp_path):
    own = {"a": "weight: 1, density: 0.9", "b": "weight: 1"}
    text = place(case("della", TWO, own=own), three)
    (tmp_path / "merge.yaml").write_text(text)
    mergekit([{"yaml": str(tmp_path / "merge.yaml"), "out": str(tmp_path / "out")}])
    assert "density +/- epsilon is in (0, 1)" in (tmp_path / "out.error").read_text()
    with pytest.raises(MergekitError, match=r"must stay inside \(0, 1\), got 0.9 -\+ 0.15"):
        open_merge(tmp_path / "merge.yaml")


def test_vocabularies_that_differ_are_refused_with_the_remedy(mergekit, three, tmp_path):
    grown = three | {"b": Path(shutil.copytree(three["b"], tmp_path / "b"))}
    add_tokens(grown["b"], "<new>")
    text = place(case("linear", TWO, own=WEIGHTS).replace(*NO_BASE), grown)
    (tmp_path / "merge.yaml").write_text(text)
    mergekit([{"yaml": str(tmp_path / "merge.yaml"), "out": str(tmp_path / "out")}])
    assert "Tensor size mismatch" in (tmp_path / "out.error").read_text()
    with pytest.raises(ParentError, match=r"tokenizer: union"):
        open_merge(tmp_path / "merge.yaml")
