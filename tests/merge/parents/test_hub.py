"""Hub ids: found in the local cache, never fetched unasked, and refused in one line."""

import os
import shutil
from pathlib import Path

import pytest
from heterosis.merge.parents import hub
from heterosis.merge.parents.parent_set import ParentError, ParentSet
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a current directory where no path is by accident an id."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache: Path, name: str, source: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Lay out a model as huggingface_hub does: blobs, snapshots of links, refs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", snapshot, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(source.iterdir())):
        blob = repository / "blobs" / f"{commit[:8]}{number}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs" / ref).write_text(commit)
    return snapshot


def refusal(base: Path | str, parent: Path | str, **options: bool) -> str:
    with pytest.raises(ParentError) as caught:
        ParentSet.open(base, {"a": parent}, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_are_found_in_the_cache(cache, sharded):
    base = put(cache, "org/tiny-base", sharded["base"])
    tuned = put(cache, "org/tiny.tuned_1", sharded["a"])
    parents = ParentSet.open("org/tiny-base", {"a": "org/tiny.tuned_1", "b": sharded["b"]})
    assert dict(parents.folders) == {"base": base, "a": tuned, "b": sharded["b"]}
    assert parents.places["base"].text == f"org/tiny-base@{COMMIT}"
    assert parents.places["a"].name == "tiny.tuned_1"
    assert parents.places["b"].text == str(sharded["b"])
    direct = ParentSet.open(sharded["base"], {"a": sharded["a"], "b": sharded["b"]})
    assert parents.digests() == direct.digests()


def test_a_revision_is_a_branch_or_a_commit(cache, family):
    put(cache, "org/tiny", family["a"])
    older = put(cache, "org/tiny", family["b"], OLDER, "v1")
    base = family["base"]
    for text in ("org/tiny@v1", f"org/tiny@{OLDER}"):
        assert ParentSet.open(base, {"a": text}).folders["a"] == older
    assert ParentSet.open(base, {"a": "org/tiny"}).folders["a"] != older
    assert "run `hf download org/tiny --revision v2`" in refusal(base, "org/tiny@v2")


def test_a_path_that_exists_wins(cache, family):
    put(cache, "org/tiny", family["a"])
    shutil.copytree(family["b"], Path("org/tiny"))
    found = ParentSet.open(family["base"], {"a": "org/tiny"}).folders["a"]
    assert found == Path("org/tiny").absolute()


def test_nothing_is_fetched_unasked(cache, family, monkeypatch):
    asked = []

    def fail(name: str, **options: object) -> str:
        asked.append((name, options["local_files_only"]))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert refusal(family["base"], "org/tiny") == (
        "parent a: no directory org/tiny, and the hub id org/tiny is not in the local cache; give "
        "a directory, allow the download, or run `hf download org/tiny`"
    )
    assert "parent a: cannot fetch org/tiny from the hub (LocalEntryNotFoundError: not here" in (
        refusal(family["base"], "org/tiny", download=True)
    )
    assert asked == [("org/tiny", True), ("org/tiny", False)]


def test_a_download_brings_no_pickles_and_no_code(cache, family, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    wanted = {}

    def fetch(name: str, **options: object) -> str:
        wanted.update(options)
        return str(family["a"])

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    ParentSet.open(family["base"], {"a": "org/tiny"}, download=True)
    good = ["model.safetensors", "config.json", "tokenizer.model", "merges.txt", "LICENSE"]
    bad = [
        "pytorch_model.bin",
        "modeling_x.py",
        "original/x.safetensors",
        "a.pt",
        "x.pkl",
        "x.gguf",
    ]
    allowed, ignored = wanted["allow_patterns"], wanted["ignore_patterns"]
    kept = filter_repo_objects(good + bad, allow_patterns=allowed, ignore_patterns=ignored)
    assert list(kept) == good


def test_offline_a_download_is_refused_in_one_line(cache, family):
    message = refusal(family["base"], "org/tiny", download=True)
    assert message.startswith("parent a: cannot fetch org/tiny from the hub (")
    assert message.endswith("the network and, for a gated model, `hf auth login`")


def test_a_snapshot_that_lacks_a_shard(cache, sharded):
    snapshot = put(cache, "org/tiny", sharded["a"])
    shard = "model-00002-of-00004.safetensors"
    (snapshot / shard).unlink()
    assert f"parent a: shard {shard} is missing in {snapshot}" in refusal(
        sharded["base"], "org/tiny"
    )


@pytest.mark.parametrize(
    "text",
    [
        "org/../x",
        "a/b/c",
        "tiny",
        "./org/tiny",
        "/org/tiny",
        "org/tiny.git",
        "org--x/y",
        "~x/y",
        "",
    ],
)
def test_what_is_no_id_is_a_path(cache, family, text):
    message = refusal(family["base"], text)
    assert message.startswith(("parent a: no directory ", "parent a: no model.safetensors nor"))
    assert "hub" not in message


def test_a_path_object_is_never_an_id(cache, family):
    put(cache, "org/tiny", family["a"])
    assert "parent a: no directory " in refusal(family["base"], Path("org/tiny"))
