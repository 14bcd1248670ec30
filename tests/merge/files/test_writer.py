"""Model directories: every bit as made, one tensor in memory, whole or not at all."""

import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from heterosis.merge.files import writer
from heterosis.merge.files.writer import ExportError, Weight, check_goal, shard_bytes, write_model
from heterosis.merge.parents.parent_set import ParentSet
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def weight(name: str, tensor: torch.Tensor) -> Weight:
    return Weight(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def as_saved(parents: ParentSet) -> list[Weight]:
    return [weight(name, parents.tensor("base", name)) for name in parents.tensors]


DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
)


def test_every_dtype_and_shape_keeps_its_bits(parents, tmp_path):
    shapes = ((3, 5), (7,), (), (0, 4), (1, 2, 3))
    tensors = {
        f"t.{i}.{k}": (torch.randn(shape) * 50).to(dtype)
        for i, dtype in enumerate(DTYPES)
        for k, shape in enumerate(shapes)
    }
    out = write_model(tmp_path / "out", [weight(n, t) for n, t in tensors.items()], parents)
    saved = load_file(out / "model.safetensors")
    assert saved.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert saved[name].dtype == tensor.dtype
        assert saved[name].shape == tensor.shape
        assert torch.equal(saved[name], tensor)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_views_and_strides_are_written_as_they_read(parents, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    out = write_model(
        tmp_path / "out", [weight("a", whole.T), weight("b", whole[1:3, ::2])], parents
    )
    saved = load_file(out / "model.safetensors")
    assert torch.equal(saved["a"], whole.T)
    assert torch.equal(saved["b"], whole[1:3, ::2])


def test_shards_are_those_of_transformers(parents, tmp_path):
    out = write_model(tmp_path / "out", as_saved(parents), parents, max_shard_size="20KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    saved = {}
    for shard in shards:
        tensors = load_file(out / shard)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        assert all(index["weight_map"][name] == shard for name in tensors)
        saved |= tensors
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in saved.values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in saved.values())
    assert saved.keys() == parents.tensors.keys()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(
        model.state_dict()["model.norm.weight"], parents.tensor("base", "model.norm.weight")
    )


def test_one_tensor_is_in_memory_at_a_time(parents, tmp_path):
    alive: list[weakref.ref] = []

    def make() -> torch.Tensor:
        assert [ref for ref in alive if ref() is not None] == []
        tensor = torch.ones(1000)
        alive.append(weakref.ref(tensor))
        return tensor

    weights = [Weight(f"t{i}", (1000,), torch.float32, make) for i in range(6)]
    write_model(tmp_path / "out", weights, parents, max_shard_size="9KB")
    assert len(alive) == 6


@pytest.mark.parametrize(
    ("size", "count"),
    [("5GB", 5e9), ("500MB", 5e8), ("1.5 kb", 1500), ("2KiB", 2048), ("1GiB", 2**30), ("7B", 7)],
)
def test_sizes_are_read_as_transformers_reads_them(size, count):
    assert shard_bytes(size) == count


@pytest.mark.parametrize("size", ["abc", "5", "", "-1GB", "0GB", "5GBs", "0.1B"])
def test_what_is_no_size_is_refused(size, parents, tmp_path):
    with pytest.raises(
        ExportError, match=r"`max_shard_size` must be a size such as `5GB` or `500MB`, got"
    ):
        write_model(tmp_path / "out", as_saved(parents), parents, max_shard_size=size)
    assert not (tmp_path / "out").exists()


def test_settings_are_the_bases_with_the_dtype_written(parents, tmp_path):
    base = json.loads((parents.folders["base"] / "config.json").read_text())
    out = write_model(tmp_path / "out", as_saved(parents), parents, dtype=torch.float16)
    assert json.loads((out / "config.json").read_text()) == base | {"dtype": "float16"}
    kept = write_model(tmp_path / "kept", as_saved(parents), parents)
    assert json.loads((kept / "config.json").read_text()) == base


def opened_with(parents: ParentSet, folder: Path, settings: dict, **changes) -> ParentSet:
    """The same parents over a base with other settings, and what `open` would make of them."""
    (folder / "config.json").write_text(json.dumps(settings))
    places = {"base": parents.places["base"].__class__(folder, "base", str(folder))}
    config = {**parents.config, **changes}
    return ParentSet(places, {"base": parents._sources["base"]}, config, parents.tokenizer_files())


def test_old_and_nested_dtypes_and_vocabularies_follow(parents, tmp_path):
    raw = {
        "torch_dtype": "float32",
        "vocab_size": 9,
        "text_config": {"dtype": "x", "vocab_size": 9},
    }
    changed = opened_with(parents, tmp_path, raw, vocab_size=11, text_config={"vocab_size": 12})
    out = write_model(tmp_path / "out", as_saved(parents), changed, dtype=torch.bfloat16)
    assert json.loads((out / "config.json").read_text()) == {
        "torch_dtype": "bfloat16",
        "vocab_size": 11,
        "text_config": {"dtype": "bfloat16", "vocab_size": 12},
    }


def test_tokenizer_settings_and_licences_come_along(parents, tmp_path):
    base = parents.folders["base"]
    other = opened_with(parents, tmp_path, json.loads((base / "config.json").read_text()))
    for name in (
        "LICENSE",
        "LICENCE.md",
        "NOTICE.txt",
        "preprocessor_config.json",
        "modeling_x.py",
    ):
        (tmp_path / name).write_text(name)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7, "do_sample": false}')
    out = write_model(tmp_path / "out", as_saved(parents), other)
    for name in ("LICENSE", "LICENCE.md", "NOTICE.txt", "preprocessor_config.json"):
        assert (out / name).read_text() == name
    assert not (out / "modeling_x.py").exists()
    assert (out / "generation_config.json").read_bytes() == (
        tmp_path / "generation_config.json"
    ).read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    chat = [{"role": "user", "content": "hello"}]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "user: hello\n"


def test_tokenizer_files_may_be_contents_and_folders(parents, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "tool.jinja").write_text("t")
    made = ParentSet(
        {"base": parents.places["base"]},
        {"base": parents._sources["base"]},
        parents.config,
        {"tokenizer.json": b"{}", "additional_chat_templates": tmp_path / "templates"},
    )
    out = write_model(tmp_path / "out", as_saved(parents), made)
    assert (out / "tokenizer.json").read_bytes() == b"{}"
    assert (out / "additional_chat_templates" / "tool.jinja").read_text() == "t"


def test_texts_win_over_the_bases_files(parents, tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    texts = {"chat_template.jinja": template, "README.md": "# x\n"}
    out = write_model(tmp_path / "out", as_saved(parents), parents, texts=texts)
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hello!"
    assert (out / "README.md").read_text() == "# x\n"


@pytest.mark.parametrize("name", ["../x", "/x", "sub/x", "", "config.json", "x.safetensors"])
def test_texts_stay_inside_and_off_the_weights(parents, tmp_path, name):
    with pytest.raises(ExportError, match="an extra file needs a plain name of its own, got"):
        write_model(tmp_path / "out", as_saved(parents), parents, texts={name: "x"})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(parents, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in (
        ("full", "exists and is not empty, nothing is overwritten; give another name"),
        ("file", "is a file; give the name of a directory to create"),
        ("link", "is a symbolic link; give the directory's own path"),
    ):
        with pytest.raises(ExportError, match=message):
            check_goal(tmp_path / name)
        with pytest.raises(ExportError, match=message):
            write_model(tmp_path / name, as_saved(parents), parents)
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", as_saved(parents), parents)
    assert (tmp_path / "full" / "mine").read_text() == "keep"


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/m cannot be created: .*/file is not a directory"):
        check_goal(tmp_path / "file/m")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).exists() and mode == os.F_OK)
    with pytest.raises(ExportError, match=rf"{tmp_path}/a/m cannot be created: {tmp_path} is not"):
        check_goal(tmp_path / "a/m")


def test_files_have_the_mode_of_any_new_file(parents, tmp_path):
    (tmp_path / "new").write_text("")
    out = write_model(tmp_path / "out", as_saved(parents), parents)
    assert {path.stat().st_mode for path in out.iterdir()} == {(tmp_path / "new").stat().st_mode}


@pytest.mark.parametrize("step", ["_write_weights", "_write_settings", "_keep_files"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_midway_leaves_nothing(parents, tmp_path, monkeypatch, step, error):
    original = getattr(writer, step)

    def fail(*args):
        original(*args)
        raise error

    monkeypatch.setattr(writer, step, fail)
    with pytest.raises(type(error)):
        write_model(tmp_path / "out", as_saved(parents), parents)
    assert list(tmp_path.iterdir()) == []


def test_what_verify_raises_withdraws_the_model(parents, tmp_path):
    seen = []

    def verify(draft: Path) -> None:
        seen.append(sorted(path.name for path in draft.iterdir()))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_model(tmp_path / "out", as_saved(parents), parents, verify=verify)
    assert "model.safetensors" in seen[0]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_refused_before_anything_is_made(parents, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    made = []
    weights = [Weight("a", (10,), torch.float32, lambda: made.append(1) or torch.zeros(10))]
    with pytest.raises(
        ExportError, match=r"the weights take 0.00 GB, the disk of .* has 0.00 GB free"
    ):
        write_model(tmp_path / "out", weights, parents)
    assert (made, list(tmp_path.iterdir())) == ([], [])


def test_a_file_that_grows_too_large_leaves_nothing(parents, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_model(tmp_path / "out", as_saved(parents), parents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(parents, tmp_path):
    def make() -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return torch.zeros(10)

    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "out", [Weight("a", (10,), torch.float32, make)], parents)
    assert list(tmp_path.iterdir()) == []


# A process that holds a draft as `write_model` does, until it is killed.
HOLDER = """
import fcntl, os, sys, time
os.mkdir(sys.argv[1])
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_drafts_of_the_dead_are_removed_those_of_the_living_are_not(parents, tmp_path):
    out = tmp_path / "out"
    draft = tmp_path / f"{writer._prefix(out)}1"
    command = [sys.executable, "-c", HOLDER, str(draft)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        write_model(out, as_saved(parents), parents)
        assert draft.is_dir()
        holder.kill()
    assert draft.is_dir()
    out.rename(tmp_path / "first")
    write_model(out, as_saved(parents), parents)
    assert not draft.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]
