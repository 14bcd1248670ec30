"""The speed benchmark runs and its rows are consistent; no figure is asserted."""

import importlib
import json
import math
from typing import Any

import pytest
from heterosis.search.study.build import make_scorer

ITEMS = 8


@pytest.fixture(scope="module")
def bench(benchmark_scripts) -> Any:
    return importlib.import_module("bench")


@pytest.fixture(scope="module")
def merging(benchmark_scripts) -> Any:
    return importlib.import_module("merging")


@pytest.fixture(scope="module")
def timing(benchmark_scripts) -> Any:
    return importlib.import_module("timing")


@pytest.fixture(scope="module", autouse=True)
def _private_datasets_cache(tmp_path_factory):
    """Keep the user's data set cache out of the tests."""
    from datasets import config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(config, "HF_HUB_OFFLINE", True)
        patch.setattr(config, "HF_DATASETS_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def tiny(bench) -> Any:
    """The quickstart on a few items, two candidates."""
    return bench.on_cpu(bench.quickstart(trials=2), splits={"search_items": ITEMS})


def assert_sound(rows: list[Any], count: int) -> None:
    assert len(rows) == count
    for row in rows:
        assert len(row.a) == len(row.b) > 0
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in row.ratios), row


@pytest.mark.parametrize("method", ["task_arithmetic", "slerp", "della"])
def test_every_load_changes_every_tensor(method, bench, merging, tiny):
    engine = bench.build_engine(bench.open_parts(tiny))
    targets = list(engine.model.parameters())
    load = merging.loader(engine, method)
    load()
    before = [target._version for target in targets]
    load()
    assert all(t._version > version for t, version in zip(targets, before, strict=True))


def test_copier_restores_the_cloned_weights(bench, merging, tiny):
    engine = bench.build_engine(bench.open_parts(tiny))
    copy_weights = merging.copier(engine)
    targets = list(engine.model.parameters())
    expected = [target.detach().clone() for target in targets]
    for target in targets:
        target.detach().zero_()
    copy_weights()
    assert all(bool((t == e).all()) for t, e in zip(targets, expected, strict=True))


def test_samples_alternate(timing, monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-9)
    calls: list[str] = []
    a, b = timing.interleave(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls).endswith("ababab")
    assert len(a) == len(b) == 3


def test_merge_rows(bench, timing, tiny, monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.002)
    assert_sound(list(bench.merge_rows(tiny, ("linear", "ties"), repeats=1)), 2)


@pytest.mark.slow
def test_score_rows_compare_equal_answers(bench, tiny):
    *rows, forwards = bench.score_rows(tiny, repeats=1)
    assert_sound([*rows, forwards], 3)
    assert all(row.note.startswith(f"{2 * ITEMS} requests") for row in rows)
    assert all("and 0 of score; packed path" in row.note for row in rows)
    assert forwards.b_name == "its forward passes"


def test_few_shot_rows_read_their_examples_once(bench, tiny, tmp_path):
    config = bench.few_shot(tiny, 2, tmp_path)
    assert config.name.endswith("2-shot")
    parts = bench.open_parts(config)
    scorer = make_scorer(parts, bench.build_engine(parts).model)
    plan = scorer._plans["search"].windows.plan("packed")
    (prefix,) = plan.prefixes
    opening = scorer.lm.tok_decode(list(prefix.tokens))
    documents = [group[0].args[0] for group in scorer.tasks[0].instances("search")]
    assert len(documents) == ITEMS
    assert all(document.startswith(opening) for document in documents)


@pytest.mark.slow
def test_generation_rows_compare_equal_texts(bench, tiny):
    rows = list(bench.generation_rows(tiny, repeats=1, docs=4))
    assert_sound(rows, 4)
    assert all(row.note.startswith("4 of 4 texts equal") for row in rows)


def test_search_rows_add_up(bench, tiny, tmp_path):
    rows = list(bench.search_rows(tiny))
    assert_sound(rows, 7)
    share = {row.a_name.strip(): row for row in rows}
    for i in range(2):
        parts = sum(share[name].ratios[i] for name in ("search's own work", "load", "score"))
        assert parts == pytest.approx(1)
    bench.write_json(tmp_path / "out.json", bench.machine(), rows)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"][0]["ratio"] == rows[0].ratio
    assert written["machine"]["torch threads"] >= 1
    assert bench.table(rows).row_count == 7


def test_invalid_options_are_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--repeats", "0"])
    assert "must be an integer of at least 1, got 0" in capsys.readouterr().err


class FakePeer:
    """A stand-in for mergekit's process that records requests."""

    version = "0"

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[str], dict[str, Any]]] = []

    def merge(self, method: str, models: list[str], parameters: dict[str, Any]):
        self.requests.append((method, models, parameters))
        return 0.5, 0.25


@pytest.mark.slow
def test_peer_rows_ask_for_the_recipe_that_is_loaded(merging, tmp_path):
    paths = importlib.import_module("shapes").make_family(tmp_path, 2, n_layers=1)
    engine, peer = merging.open_engine(paths), FakePeer()
    rows = list(merging.peer_rows(peer, engine, ("linear", "slerp", "della")))
    assert_sound(rows, 3)
    asked = {method: (models, parameters) for method, models, parameters in peer.requests}
    assert asked["slerp"] == (["a", "b"], {"t": 0.3 / 0.8})
    assert asked["linear"][1]["weight"] == {"a": 0.5, "b": 0.3, "base": pytest.approx(0.2)}
    assert asked["della"][1]["density"] == {"a": 0.5, "b": 0.5}
    assert asked["della"][1]["epsilon"] == {"a": 0.05, "b": 0.05}


@pytest.mark.slow
def test_the_gpu_script_measures_every_method(benchmark_scripts, tmp_path, monkeypatch, capsys):
    gpu = importlib.import_module("gpu")
    small = {"HIDDEN": 256, "INTERMEDIATE": 640, "VOCABULARY": 512, "PIECE": (128, 128)}
    for name, size in small.items():
        monkeypatch.setattr(gpu, name, size)
    shrink_scoring(monkeypatch)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device=cpu", "--layers=1", f"--out={tmp_path}"])
    gpu.main()
    (path,) = tmp_path.glob("*-cpu.json")
    assert str(path) in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert list(result["methods"]) == list(gpu.METHODS_MEASURED)
    assert all(row["share of copy bandwidth"] > 0 for row in result["methods"].values())
    gaps = result["differences from the CPU"].values()
    assert all(gap["entries"] and not gap["not bit-equal"] for gap in gaps)
    rows = [row for rows in result["scoring"]["shapes"].values() for row in rows.values()]
    assert len(rows) == 2
    for row in rows:
        assert row["largest difference, nats"] < 0.5
        assert row["flat / packed"] > 0
        assert row["hflm / packed"] > 0
        assert 0 < row["share of a large product's FLOP/s"] < 1
        assert row["share of the data sheet's FLOP/s"] is None


def shrink_scoring(monkeypatch) -> None:
    scoring = importlib.import_module("gpu_scoring")
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    }
    small = {"SHAPES": {"tiny": sizes}, "DOCS": 4, "CONTEXT": (10, 20), "EXAMPLES": 40}
    for name, size in (small | {"MATRIX": 256}).items():
        monkeypatch.setattr(scoring, name, size)
