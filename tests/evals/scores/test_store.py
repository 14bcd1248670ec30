"""The item store: round trips, kills at any moment, damaged and foreign files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heterosis.evals.scores.item_table import StoreError, load
from heterosis.evals.scores.scores import AUDIT, COLUMNS, PER_TASK, ItemScores, item_scores
from heterosis.evals.scores.store import ItemStore


def some_scores(seed: int, tasks: tuple[str, ...] = ("mc", "ppl")) -> ItemScores:
    rng = np.random.default_rng(seed)
    n = 5 * len(tasks)
    header = {
        "tasks": tasks,
        "metrics": ["acc,none", "word_perplexity,none"][: len(tasks)],
        "aggregations": ["mean", "perplexity"][: len(tasks)],
        "higher_is_better": [True, False][: len(tasks)],
    }
    columns = {
        "task_index": np.repeat(np.arange(len(tasks)), 5),
        "doc_id": np.arange(n),
        "value": rng.normal(size=n),
        "weight": rng.integers(1, 9, n),
        "margin": np.where(np.arange(n) < 5, rng.normal(size=n), math.nan),
        "length": rng.integers(1, 9, n),
    }
    return item_scores(header, columns, f"items=ab seed={seed}")


def assert_same(a: ItemScores | None, b: ItemScores | None) -> None:
    assert a is not None
    assert b is not None
    for name in (*PER_TASK, "fingerprint"):
        assert getattr(a, name) == getattr(b, name)
    for name in COLUMNS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes()


@pytest.fixture
def store(tmp_path: Path) -> ItemStore:
    return ItemStore(tmp_path / "items")


def test_round_trip_is_bitwise_before_and_after_compaction(store):
    expected = {(t, s): some_scores(t) for t in (0, 7) for s in ("search", "confirm")}
    for (trial, split), value in expected.items():
        store.append(trial, split, value)
    for _ in range(2):
        for (trial, split), value in expected.items():
            assert_same(store.read(trial, split), value)
            assert store.has(trial, split)
        assert store.read(3, "search") is None
        assert not store.has(7, "guard")
        assert store.keys() == set(expected)
        assert store.compact() == store.folder / "items.parquet"
    assert [p.name for p in store.folder.iterdir()] == ["items.parquet"]


def test_a_new_process_reads_the_same(store):
    store.append(1, "search", some_scores(1))
    assert_same(ItemStore(store.folder).read(1, "search"), some_scores(1))


def test_appending_again_replaces_also_what_was_folded(store):
    store.append(1, "search", some_scores(1))
    store.compact()
    store.append(1, "search", some_scores(2))
    assert_same(store.read(1, "search"), some_scores(2))
    store.compact()
    assert_same(store.read(1, "search"), some_scores(2))


def test_splits_with_other_tasks_keep_their_own_headers(store):
    store.append(1, "search", some_scores(1))
    store.append(1, "guard", some_scores(2, ("mc",)))
    store.append(2, "search", some_scores(3))
    store.compact()
    store.append(3, "guard", some_scores(4, ("mc",)))
    store.compact()
    assert_same(store.read(1, "guard"), some_scores(2, ("mc",)))
    assert_same(store.read(2, "search"), some_scores(3))
    assert_same(store.read(3, "guard"), some_scores(4, ("mc",)))


def test_drop_by_set_and_by_law_from_parts_and_folded_file(store):
    for trial in range(6):
        store.append(trial, "search", some_scores(trial))
        if trial == 3:
            store.compact()
    store.drop({1, 5})
    assert store.keys() == {(t, "search") for t in (0, 2, 3, 4)}
    store.drop(lambda trial: trial >= 3)
    assert store.keys() == {(0, "search"), (2, "search")}
    assert_same(store.read(2, "search"), some_scores(2))


def test_an_empty_store_is_empty(store):
    assert store.keys() == set()
    assert store.compact() is None
    store.drop({1})


class Killed(BaseException):
    """Takes the place of kill -9."""


def test_a_kill_between_rename_and_removal_loses_and_doubles_nothing(store, monkeypatch):
    for trial in range(4):
        store.append(trial, "search", some_scores(trial))

    def killed(self: Path, missing_ok: bool = False) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            store.compact()
    assert len(list(store.folder.iterdir())) == 5  # the folded file and all parts
    again = ItemStore(store.folder)
    for _ in range(2):
        assert again.keys() == {(t, "search") for t in range(4)}
        for trial in range(4):
            assert_same(again.read(trial, "search"), some_scores(trial))
        again.compact()
    assert pq.read_table(store.folder / "items.parquet").num_rows == 40


def test_a_kill_before_the_rename_leaves_the_old_state(store, monkeypatch):
    store.append(0, "search", some_scores(0))

    def killed(self: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        for act in (lambda: store.append(1, "search", some_scores(1)), store.compact):
            with pytest.raises(Killed):
                act()
    again = ItemStore(store.folder)
    assert again.keys() == {(0, "search")}
    again.compact()
    assert [p.name for p in store.folder.iterdir()] == ["items.parquet"]  # temporary ones cleared


def test_torn_temporary_files_are_not_looked_at(store):
    store.append(0, "search", some_scores(0))
    (store.folder / ".tmp-trial-000001.search.parquet").write_bytes(b"PAR1 torn")
    (store.folder / "notes.txt").write_text("a user's file stays")
    assert store.keys() == {(0, "search")}
    store.compact()
    assert (store.folder / "notes.txt").exists()


@pytest.mark.parametrize("name", ["items.parquet", "trial-000001.search.parquet"])
def test_a_torn_file_is_named_with_its_remedy(store, name):
    (store.folder / name).write_bytes(b"PAR1 torn")
    with pytest.raises(StoreError, match=rf"{name} must be a readable parquet file.*remove it"):
        store.read(1, "search")


def test_a_foreign_file_is_named(store):
    pq.write_table(pa.table({"x": [1]}), store.folder / "items.parquet")
    with pytest.raises(StoreError, match=r"must hold the item columns trial, split.*got x;"):
        store.keys()


@pytest.mark.parametrize(("trial", "split"), [(-1, "search"), (0, "a/b"), (0, "")])
def test_keys_that_are_no_file_names_are_refused(store, trial, split):
    with pytest.raises(ValueError, match="`trial` must be >= 0 and `split` a-z, got"):
        store.append(trial, split, some_scores(0))


def written_before_audits(store: ItemStore, scores: ItemScores) -> ItemScores:
    """Write trial 0 as the first version of the program did; return what it should read as."""
    path = store.append(0, "search", scores)
    table = pq.read_table(path)
    headers = json.loads(table.schema.metadata[b"heterosis.headers"])
    del headers[0]["fingerprint"]
    plain = table.drop_columns(list(AUDIT))
    pq.write_table(plain.replace_schema_metadata({"heterosis.headers": json.dumps(headers)}), path)
    nothing = np.full(scores.n, math.nan)
    return replace(scores, fingerprint="", **dict.fromkeys(AUDIT, nothing))


def test_a_store_from_before_audits_is_readable_and_has_no_fingerprint(store):
    expected = written_before_audits(store, some_scores(0))
    store.append(1, "search", some_scores(1))
    for _ in range(2):
        assert_same(store.read(0, "search"), expected)
        assert_same(store.read(1, "search"), some_scores(1))
        store.compact()


def test_who_reads_while_a_search_folds_reads_the_same(store, monkeypatch):
    for trial in range(4):
        store.append(trial, "search", some_scores(trial))
    reader = ItemStore(store.folder)
    folding = [store.compact, lambda: store.append(9, "search", some_scores(9)), store.compact]

    def folded_meanwhile(path: Path) -> pa.Table:
        works, folding[:] = folding[:], []
        for work in works:
            work()
        return load(path)

    monkeypatch.setattr("heterosis.evals.scores.store.load", folded_meanwhile)
    for trial in range(4):
        assert_same(reader.read(trial, "search"), some_scores(trial))
    assert not folding
    assert reader.keys() == {(trial, "search") for trial in (0, 1, 2, 3, 9)}


def test_parts_are_folded_when_there_are_enough_of_them(store):
    for trial in range(3):
        assert store.compact(least=3) is None
        store.append(trial, "search", some_scores(trial))
    assert len(list(store.folder.iterdir())) == 3
    assert store.compact(least=3) is not None
    assert store.compact(least=1) is None, "they are counted from the last time"
    assert [path.name for path in store.folder.iterdir()] == ["items.parquet"]


def test_fingerprints_are_read_without_items(store):
    store.append(0, "search", some_scores(0))
    store.append(0, "guard", some_scores(1))
    store.compact()
    store.append(1, "search", some_scores(2))
    store.append(0, "guard", some_scores(3))
    assert store.fingerprints() == {
        (0, "search"): "items=ab seed=0",
        (0, "guard"): "items=ab seed=3",
        (1, "search"): "items=ab seed=2",
    }
