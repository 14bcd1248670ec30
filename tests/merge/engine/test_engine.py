"""The engine: in place, replayable, the same bytes in any order, process and sharding."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from heterosis.merge.engine.engine import MergeEngine, MergeFailure
from heterosis.merge.kernels.launcher import merge_tensors
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from heterosis.merge.recipe.methods import METHODS
from heterosis.merge.recipe.recipe import Coefficients, Recipe
from safetensors.torch import load_file, save_file

from tests.families import tiny_family

from ..conftest import Family, opened

every_method = pytest.mark.parametrize("method", sorted(METHODS))


def recipe(method: str, parents: ParentSet, shift: float = 0.0, seed: int = 3) -> Recipe:
    """Coefficients that differ between layer groups and parents."""
    row = METHODS[method]
    coefficients = {}
    most = row.most_parents or len(parents.names)
    for g, group in enumerate(parents.groups()):
        weights = [0.3 + 0.1 * i + (0.02 * g + shift) * (i + 1) for i in range(most)]
        weights += [0.0] * (len(parents.names) - most)
        rates = [0.5 * row.uses_drop_rate for _ in parents.names]
        coefficients[group] = Coefficients(tuple(weights), tuple(rates))
    return Recipe(method, parents.names, coefficients, 0.9 if row.uses_lambda else 1.0, seed)


def digest(model: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def engine(parents: ParentSet) -> MergeEngine:
    return MergeEngine(parents, dtype="bfloat16")


@every_method
def test_load_replays_to_the_bit_and_keeps_addresses(method, parents, engine):
    a, b = recipe(method, parents), recipe(method, parents, shift=0.2)
    addresses = {name: t.data_ptr() for name, t in engine.model.state_dict().items()}
    first = digest(engine.load(a))
    assert digest(engine.load(b)) != first
    assert digest(engine.load(a)) == first
    assert {name: t.data_ptr() for name, t in engine.model.state_dict().items()} == addresses


@every_method
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_model_holds_what_merge_tensors_says(method, dtype, parents):
    engine = MergeEngine(parents, dtype=dtype)
    made = recipe(method, parents)
    state = engine.load(made).state_dict()
    for name in parents.tensors:
        sources = {p: parents.tensor(p, name) for p in parents.names}
        base = parents.tensor("base", name).to(state[name].dtype)
        assert torch.equal(state[name], merge_tensors(made, name, base, sources)), name


@every_method
def test_weights_zero_and_one_give_base_and_parents(method, parents, engine):
    def loaded(**weights: float) -> dict[str, torch.Tensor]:
        every = dict.fromkeys(parents.names, 0.0) | weights
        neutral = METHODS[method].neutral
        made = Recipe.uniform(
            method, parents.names, parents.groups(), every, parameters=neutral or {}
        )
        return engine.load(made).state_dict()

    for name, tensor in load_file(parents.folders["base"] / "model.safetensors").items():
        assert torch.equal(loaded()[name], tensor)
    if METHODS[method].neutral is None:
        return
    for name, tensor in load_file(parents.folders["b"] / "model.safetensors").items():
        assert torch.equal(loaded(b=1.0)[name], tensor)


@pytest.mark.slow
def test_another_process_and_order_of_loads_gives_the_same_bytes(family, parents, tmp_path):
    made = [recipe(method, parents, shift) for method in METHODS for shift in (0.0, 0.2)]
    engine = MergeEngine(parents, dtype="float32")
    here = [digest(engine.load(r)) for r in made]
    (tmp_path / "recipes").write_text("\n".join(r.to_json() for r in reversed(made)))
    code = (
        "import sys; from pathlib import Path; from tests.merge.engine.test_engine import *\n"
        "base, a, b, c, recipes = map(Path, sys.argv[1:])\n"
        "parents = ParentSet.open(base, {'c': c, 'a': a, 'b': b})\n"
        "engine = MergeEngine(parents, dtype='float32')\n"
        "for line in recipes.read_text().splitlines():\n"
        "    print(digest(engine.load(Recipe.from_json(line))))\n"
    )
    folders = [family[name] for name in ("base", "a", "b", "c")]
    command = [sys.executable, "-c", code, *map(str, (*folders, tmp_path / "recipes"))]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.split() == here[::-1], done.stderr
    assert len(set(here)) == len(made)


@every_method
def test_sharding_changes_no_bit(method, parents, engine, sharded):
    split = opened(sharded)
    assert len({info.file for info in split.tensors.values()}) > 1
    made = recipe(method, parents)
    assert digest(MergeEngine(split, dtype="bfloat16").load(made)) == digest(engine.load(made))


def test_tied_embeddings_stay_tied(parents, engine):
    model = engine.load(recipe("linear", parents))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_untied_head_has_its_own_coefficients(untied: Family):
    parents = opened(untied)
    engine = MergeEngine(parents, dtype="float32")
    weights = dict.fromkeys(parents.groups(), Coefficients((0.0, 0.0), (0.0, 0.0)))
    weights["head"] = Coefficients((0.0, 1.0), (0.0, 0.0))
    state = engine.load(Recipe("linear", parents.names, weights)).state_dict()
    embed = "model.embed_tokens.weight"
    assert torch.equal(state["lm_head.weight"], parents.tensor("b", "lm_head.weight"))
    assert torch.equal(state[embed], parents.tensor("base", embed))


@pytest.mark.parametrize("arch", ["qwen2", "gpt2"])
def test_other_architectures_load(arch, tmp_path):
    paths = tiny_family(tmp_path, arch=arch, dtype="float16")
    _strip_prefix(paths, "transformer.")
    parents = opened(paths)
    state = MergeEngine(parents, dtype="float32").load(recipe("dare_ties", parents)).state_dict()
    prefix = "transformer." if arch == "gpt2" else ""
    for name in parents.tensors:
        sources = {p: parents.tensor(p, name) for p in parents.names}
        base = parents.tensor("base", name).float()
        expected = merge_tensors(recipe("dare_ties", parents), name, base, sources)
        assert torch.equal(state[prefix + name], expected), name


def _strip_prefix(paths: Family, prefix: str) -> None:
    # The hub's own GPT-2 files have no prefix.
    for folder in paths.values():
        file = folder / "model.safetensors"
        renamed = {n.removeprefix(prefix): t for n, t in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16")])
def test_parents_may_differ_in_dtype(dtypes, tmp_path):
    one, two = (tiny_family(tmp_path / d, n_parents=1, dtype=d) for d in dtypes)
    mixed = ParentSet.open(one["base"], {"a": two["a"]})
    made = Recipe.uniform("linear", ("a",), mixed.groups(), 1.0)
    state = MergeEngine(mixed, dtype="float32").load(made).state_dict()
    for name in mixed.tensors:
        assert torch.equal(state[name], mixed.tensor("a", name).float())


def test_unchanged_tensors_are_not_rewritten(parents):
    engine = MergeEngine(parents, dtype="bfloat16")
    a = recipe("dare_ties", parents)
    changed = dict(a.coefficients) | {"layers.1.attn": Coefficients((1.0,) * 3, (0.1,) * 3)}
    b = Recipe(a.method, a.parents, changed, a.lambda_, a.mask_seed)
    engine.load(a)
    before = {name: p._version for name, p in engine.model.named_parameters()}
    engine.load(b)
    touched = [n for n, p in engine.model.named_parameters() if p._version != before[n]]
    assert touched
    assert all("layers.1.self_attn" in name for name in touched)


def test_inputs_on_disk_and_in_memory_are_left_unchanged(family, parents, engine):
    files = {name: (path / "model.safetensors").read_bytes() for name, path in family.items()}
    copies = {name: parents.tensor("base", name).clone() for name in parents.tensors}
    engine.load(recipe("ties", parents))
    for name, path in family.items():
        assert (path / "model.safetensors").read_bytes() == files[name]
    assert all(torch.equal(parents.tensor("base", name), copies[name]) for name in copies)


def test_overflow_is_a_failure_that_names_the_tensor_and_heals(parents):
    engine = MergeEngine(parents, dtype="float16")
    good = recipe("linear", parents)
    expected = digest(engine.load(good))
    coefficients = dict(good.coefficients) | {"layers.2.mlp": Coefficients((1e30,) * 3, (0.0,) * 3)}
    bad = Recipe("linear", parents.names, coefficients)
    with pytest.raises(
        MergeFailure, match=r"merged tensor model\.layers\.2\.mlp\.\w+\.weight holds NaN"
    ) as caught:
        engine.load(bad)
    assert "in torch.float16 (recipe" in str(caught.value)
    assert "layer group layers.2.mlp" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert digest(engine.load(good)) == expected


def test_threads_are_given_back(parents, engine):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine.load(recipe("linear", parents, shift=0.11))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_recipes_that_do_not_fit_are_refused(parents, engine):
    groups = parents.groups()
    with pytest.raises(ValueError, match="name the opened parents, got a, b for a, b, c"):
        engine.load(Recipe.uniform("linear", ("a", "b"), groups, 0.5))
    with pytest.raises(ValueError, match=r"each of the 11 layer groups .* got 10: head is missing"):
        engine.load(Recipe.uniform("linear", parents.names, groups[:-1], 0.5))
    with pytest.raises(ValueError, match=r"got 12: layers\.9\.attn is unknown"):
        engine.load(Recipe.uniform("linear", parents.names, (*groups, "layers.9.attn"), 0.5))


def test_unknown_dtype_is_refused(parents):
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, float16, got 'int8'"):
        MergeEngine(parents, dtype="int8")


def test_a_base_that_lacks_a_tensor_is_refused(tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    for folder in paths.values():
        file = folder / "model.safetensors"
        state = load_file(file)
        del state["model.norm.weight"]
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ParentError, match=r"base: .* lacks tensor model\.norm\.weight of its arch"):
        MergeEngine(opened(paths), dtype="float32")


def test_a_tensor_unknown_to_the_architecture_is_refused(tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    for folder in paths.values():
        file = folder / "model.safetensors"
        save_file(load_file(file) | {"odd": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ParentError, match=r"base: .* has unknown tensor odd of its architecture"):
        MergeEngine(opened(paths), dtype="float32")


def test_a_parent_that_untied_its_head_is_refused(tmp_path):
    paths = tiny_family(tmp_path, n_parents=1)
    for folder in paths.values():
        file = folder / "model.safetensors"
        state = load_file(file)
        head = state["model.embed_tokens.weight"].clone()
        head[0] += folder.name == "a"
        save_file(state | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    with pytest.raises(ParentError, match=r"parent a: tensors .* differ, in the base they are one"):
        MergeEngine(opened(paths), dtype="float32")
