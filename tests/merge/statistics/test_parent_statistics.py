"""Statistics of a parent set: right, computed once, found again by the models' hashes alone."""

import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from heterosis.merge.parents.parent_set import BASE, ParentError, ParentSet
from heterosis.merge.recipe.groups import LayerGroup
from heterosis.merge.statistics import parent_statistics as module
from heterosis.merge.statistics.gram import DeltaSums, delta_sums
from heterosis.merge.statistics.importance import importance_mask, rank_map
from heterosis.merge.statistics.parent_statistics import ParentStatistics, UncachedStatistics
from heterosis.merge.statistics.quantiles import magnitude_grid
from heterosis.merge.statistics.variance import variance_table
from safetensors.torch import load_file, save_file

from ..conftest import Family, opened
from .deltas import tensors

WEIGHTS = "model.safetensors"
MLP = "model.layers.1.mlp.up_proj.weight"
KINDS = ("largest", "sums", "magnitudes", "spread", "ranks", "chosen")


def of_each_kind(statistics: ParentStatistics, tensor: str = MLP) -> list:
    """One answer of each kind, as plain numbers."""
    one = statistics.of(tensor)
    return [
        one.largest("a"),
        one.gram(["a", "b"]),
        one.magnitude("a", 0.7),
        one.variance(["a", "b"], 0.3),
        one.ranks("a").tolist(),
        one.importance("a").tolist(),
    ]


class Lines(logging.Handler):
    """What the statistics say in the log, INFO and above."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []

    def emit(self, record):
        self.said.append(record.getMessage())

    def computed(self) -> list[str]:
        """Kinds computed since the last call, in order."""
        kinds = [line.split()[2] for line in self.said if line.startswith("computing statistics")]
        self.said.clear()
        return kinds


@pytest.fixture
def lines(monkeypatch):
    handler = Lines()
    monkeypatch.setattr(module.log, "level", logging.INFO)
    module.log.addHandler(handler)
    yield handler
    module.log.removeHandler(handler)


@pytest.fixture
def pair(family: Family, tmp_path: Path) -> Family:
    """A base and two parents that a test may change."""
    names = ("base", "a", "b")
    return {name: Path(shutil.copytree(family[name], tmp_path / name)) for name in names}


def change(folder: Path, tensor: str, value: float) -> None:
    state = load_file(folder / WEIGHTS)
    state[tensor].view(-1)[-1] = value
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("is_cached", [False, True])
def test_facts_are_those_of_the_tensors(parents, tmp_path, is_cached):
    statistics = ParentStatistics(parents, tmp_path if is_cached else None)
    for name in (MLP, "model.norm.weight", "model.embed_tokens.weight"):
        base, a, b, c = (
            parents.tensor(BASE, name),
            *(parents.tensor(p, name) for p in "abc"),
        )
        one = statistics.of(name)
        assert one.largest("base") == float(base.float().abs().max())
        assert one.largest("b") == float(b.float().abs().max())
        gram = DeltaSums.unpack(delta_sums([base, c, a]).numpy(), 2).gram
        assert one.gram(["c", "a"]) == gram.tolist()
        assert one.gram([]) == [[gram[0, 0]]]
        grid, table = magnitude_grid(base, b), variance_table([base, a, c])
        for step in (1, 500, 999):
            assert one.magnitude("b", step / 1000) == float(grid[step])
            smallest, squares = one.variance(["a", "c"], 1 - step / 1000)
            assert [smallest, *squares] == table[:, step].tolist()
        assert torch.equal(one.ranks("a"), rank_map(base, a))
        assert torch.equal(one.importance("c"), importance_mask(base, c))


def test_nothing_is_dropped_at_rate_zero(parents):
    one = ParentStatistics(parents, None).of(MLP)
    assert one.magnitude("a", 0.0) == one.magnitude("a", 0.0004) == 0.0
    assert one.magnitude("a", 0.9999) == one.magnitude("a", 0.999) > 0.0
    assert one.variance(["a", "b"], 1.0)[0] == 0.0
    assert one.variance(["a", "b"], 0.0) == one.variance(["a", "b"], 0.001)
    with pytest.raises(ValueError, match=r"`select_topk` must be in \[0, 1\], got 1.5; use 1 to"):
        one.variance(["a", "b"], 1.5)


def test_fresh_facts_are_the_same(parents):
    kept = ParentStatistics(parents, None)
    fresh = UncachedStatistics(
        MLP, parents.tensor(BASE, MLP), {p: parents.tensor(p, MLP) for p in "cab"}
    )
    assert fresh.gram(["b", "c"]) == kept.of(MLP).gram(["b", "c"])
    assert fresh.magnitude("a", 0.25) == kept.of(MLP).magnitude("a", 0.25)
    assert fresh.variance(["a", "c"], 0.5) == kept.of(MLP).variance(["a", "c"], 0.5)
    assert torch.equal(fresh.ranks("b"), kept.of(MLP).ranks("b"))
    assert torch.equal(fresh.importance("b"), kept.of(MLP).importance("b"))
    assert fresh.largest("base") == kept.of(MLP).largest("base")


def test_fresh_facts_name_what_is_not_finite():
    base, parent = tensors(5)
    parent[3] = math.nan
    with pytest.raises(
        ParentError, match=r"parent a: tensor x holds NaN or infinity; the training"
    ):
        UncachedStatistics("x", base, {"a": parent}).largest("a")


# When things are computed.


def test_each_kind_is_computed_at_the_first_need_only(parents, tmp_path, lines):
    statistics = ParentStatistics(parents, tmp_path)
    one = statistics.of(MLP)
    assert lines.computed() == []
    one.magnitude("a", 0.5)
    assert lines.computed() == ["largest", "largest", "magnitudes"]
    statistics.of("model.norm.weight").magnitude("a", 0.1)
    one.magnitude("a", 0.2)
    assert lines.computed() == []
    one.magnitude("b", 0.5)
    assert lines.computed() == ["largest", "magnitudes"]
    one.variance(["a", "b"], 0.5)
    one.variance(["a"], 0.5)
    assert lines.computed() == ["spread", "spread"]


def test_a_second_run_computes_nothing_and_sees_the_same_bits(parents, tmp_path, lines):
    first = of_each_kind(ParentStatistics(parents, tmp_path))
    assert set(lines.computed()) == set(KINDS)
    again = ParentStatistics(parents, tmp_path)
    assert of_each_kind(again) == first
    assert of_each_kind(ParentStatistics(parents, None)) == first
    assert again.deltas() == ParentStatistics(parents, None).deltas()


def test_names_and_places_of_parents_do_not_matter(pair, tmp_path, lines):
    first = of_each_kind(ParentStatistics(opened(pair), tmp_path / "facts"))
    lines.computed()
    moved = {"base": "b4", "a": "m", "b": "n"}
    folders = {name: pair[name].rename(tmp_path / new) for name, new in moved.items()}
    renamed = ParentSet.open(folders["base"], {"second": folders["b"], "first": folders["a"]})
    one = ParentStatistics(renamed, tmp_path / "facts").of(MLP)
    assert one.gram(["first", "second"]) == first[1]
    assert one.magnitude("first", 0.7) == first[2]
    assert one.variance(["first", "second"], 0.3) == first[3]
    assert lines.computed() == []


def test_changed_weights_are_computed_again(pair, tmp_path, lines):
    first = of_each_kind(ParentStatistics(opened(pair), tmp_path / "facts"))
    lines.computed()
    change(pair["a"], MLP, 5.0)
    second = of_each_kind(ParentStatistics(opened(pair), tmp_path / "facts"))
    assert second[0] == 5.0
    assert first[1] != second[1] and first[3] != second[3]
    assert lines.computed() == list(KINDS)  # base's and b's own statistics are as they were
    change(pair["base"], MLP, -5.0)
    of_each_kind(ParentStatistics(opened(pair), tmp_path / "facts"))
    computed = lines.computed()
    assert computed.count("largest") == 3 and set(computed) == set(KINDS)


def test_another_parent_keeps_what_is_known_of_the_first(parents, family, tmp_path, lines):
    two = ParentSet.open(family["base"], {name: family[name] for name in "ab"})
    of_each_kind(ParentStatistics(two, tmp_path))
    lines.computed()
    of_each_kind(ParentStatistics(parents, tmp_path))
    assert lines.computed() == ["largest", "sums"]


def test_a_damaged_file_is_rebuilt(parents, tmp_path, caplog):
    first = of_each_kind(ParentStatistics(parents, tmp_path))
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:-5] + bytes(5 * [255]))
    caplog.clear()
    assert of_each_kind(ParentStatistics(parents, tmp_path)) == first
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == len(list(tmp_path.iterdir()))


def test_where_nothing_can_be_written_facts_stay_in_memory(parents, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    statistics = ParentStatistics(parents, tmp_path / "file")
    assert of_each_kind(statistics) == of_each_kind(ParentStatistics(parents, None))
    caplog.clear()
    of_each_kind(statistics)
    assert not caplog.records


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_given_back(parents, tmp_path, threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        of_each_kind(ParentStatistics(parents, tmp_path))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_progress_is_logged(parents, lines, monkeypatch):
    monkeypatch.setattr(module, "_PROGRESS", 0.0)
    ParentStatistics(parents, None).check_values()
    n = len(parents.tensors)
    assert f"computing statistics: largest of base, {n} tensors" in lines.said
    assert f"largest: {n} of {n} tensors" in lines.said
    assert lines.said[-1].startswith("largest of c took 0.")


# Values that are not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("owner", ["base", "b"])
def test_nan_and_infinity_are_refused_by_name(pair, tmp_path, owner, value):
    change(pair[owner], MLP, value)
    who = owner if owner == BASE else f"parent {owner}"
    expected = (
        f"{who}: tensor {MLP} in {pair[owner] / WEIGHTS} holds NaN or infinity; the training run "
        f"diverged or the file is damaged, use another checkpoint"
    )
    statistics = ParentStatistics(opened(pair), tmp_path / "facts")
    threads = torch.get_num_threads()
    for question in (
        statistics.check_values,
        statistics.deltas,
        lambda: statistics.of(MLP).ranks("b"),
    ):
        with pytest.raises(ParentError) as caught:
            question()
        assert str(caught.value) == expected
        assert torch.get_num_threads() == threads


def test_finite_values_are_read_once_ever(pair, tmp_path, lines):
    ParentStatistics(opened(pair), tmp_path / "facts").check_values()
    assert lines.computed() == ["largest"] * 3
    ParentStatistics(opened(pair), tmp_path / "facts").check_values()
    assert lines.computed() == []


# Statistics.


def test_statistics_cover_tensors_and_layer_groups(parents):
    statistics = ParentStatistics(parents, None)
    got = statistics.deltas()
    assert set(got.tensors) == set(parents.tensors)
    assert set(got.groups) == set(parents.groups())
    names = list(parents.tensors)
    flat = {
        owner: torch.cat([parents.tensor(owner, n).double().reshape(-1) for n in names])
        for owner in ("base", *"abc")
    }
    a, b = flat["a"] - flat["base"], flat["b"] - flat["base"]
    assert got.cosine["a", "b"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-6)
    assert got.relative_norm["a"] == pytest.approx(float(a.norm() / flat["base"].norm()), rel=1e-6)
    assert list(got.cosine) == [("a", "b"), ("a", "c"), ("b", "c")]
    by_rule = statistics.deltas(lambda name: LayerGroup(None, "q" if "q_proj" in name else "rest"))
    assert set(by_rule.groups) == {"q", "rest"}
    assert by_rule.cosine == got.cosine
