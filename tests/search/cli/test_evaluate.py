"""`heterosis eval`: lm-eval's numbers of a directory and of a trial, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..conftest import QUICKSTART, refused
from ..studies import run

JAVA = QUICKSTART / "tasks/java.yaml"
MODEL = QUICKSTART / "parents/java"


def results(folder: Path) -> dict:
    """What lm-eval wrote, the only file."""
    (written,) = folder.rglob("*.json")
    return json.loads(written.read_text())


def test_a_directory(heterosis, tmp_path):
    told = ("--tasks", JAVA, "--limit", 40, "--batch-size", 20, "--output-path", tmp_path)
    code, out, _ = heterosis("eval", MODEL, *told, "--dtype", "float32")
    assert code == 0
    assert "|quickstart_java|      1|none  |     0|acc   |" in out
    assert f"pretrained {MODEL}, dtype float32, softmax_dtype float32" in out
    assert "for a trial run, not for publishing" in out
    read = results(tmp_path)
    assert f"results: {tmp_path}" in out
    assert read["n-samples"]["quickstart_java"] == {"original": 2000, "effective": 40}
    assert read["config"]["limit"] == 40


def test_a_trial_in_memory_equals_its_export_on_disk(heterosis, study, tmp_path):
    told = ("--tasks", f"{JAVA},{JAVA.with_name('python.yaml')}", "-L", 150, "-b", 50, "-s")
    heterosis("export", study, "--out", tmp_path / "model")
    for name, model in (("memory", study), ("disk", tmp_path / "model")):
        assert heterosis("eval", model, *told, "-o", tmp_path / name)[0] == 0
    one, other = results(tmp_path / "memory"), results(tmp_path / "disk")
    assert one["results"] == other["results"]
    assert one["config"]["model_args"]["pretrained"].startswith(f"{study}:")
    answers = [sorted((tmp_path / name).rglob("*.jsonl")) for name in ("memory", "disk")]
    for mine, theirs in zip(*answers, strict=True):
        assert mine.read_text() == theirs.read_text()


def test_a_trial_by_its_number(heterosis, study):
    code, out, _ = heterosis("eval", f"{study}:1", "--tasks", JAVA, "-L", 4, "--dtype", "bfloat16")
    assert code == 0
    assert f"pretrained {study}:1, dtype bfloat16" in out
    assert "no trial 99" in refused(heterosis("eval", f"{study}:99", "--tasks", JAVA))


def test_a_trial_whose_parents_have_changed(heterosis, small_search, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_search.data["parents"]["java"], tmp_path / "java")
    parents = small_search.data["parents"] | {"java": str(tmp_path / "java")}
    run(small_search.write(parents=parents, search={"trials": 0}))
    file = tmp_path / "java/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"].add_(0.125)
    save_file(tensors, file, metadata={"format": "pt"})
    line = refused(heterosis("eval", f"{small_search.results}:0", "--tasks", JAVA))
    assert "parents must not change within a study; parents.java was" in line


def folder_of(path: Path, *names: str) -> Path:
    """A directory that holds some files of the quickstart's Java parent."""
    path.mkdir()
    for name in names:
        shutil.copy(MODEL / name, path)
    return path


def test_folders_that_are_no_model(heterosis, tmp_path):
    def said(folder: Path) -> str:
        return refused(heterosis("eval", folder, "--tasks", JAVA))

    assert "has neither a model (config.json) nor a study (study.journal)" in said(
        folder_of(tmp_path / "a")
    )
    pickled = folder_of(tmp_path / "b", "config.json")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    assert "only pickled weights (pytorch_model.bin), which are never read" in said(pickled)
    adapter = folder_of(tmp_path / "c")
    (adapter / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a model; merge it into its base first" in said(adapter)
    assert "did you mean 'java'?" in said(MODEL.with_name("jav"))
    assert "a model is a directory, got the file" in said(JAVA)


def test_a_model_that_brings_code_is_not_run(heterosis, tmp_path):
    folder = folder_of(tmp_path / "code", "model.safetensors", "tokenizer.json")
    config = json.loads((MODEL / "config.json").read_text()) | {"model_type": "mystery"}
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    line = refused(heterosis("eval", folder, "--tasks", JAVA))
    assert "a model's own code is never run" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "jova.yaml"], "jova.yaml does not exist"),
        (["--tasks", " , "], "no tasks are given"),
        (["--tasks", JAVA, "--limit", 0], "`limit` must be above 0, got 0"),
        (["--tasks", JAVA, "--dtype", "fp16"], "`dtype` must be one of float32, bfloat16"),
        (["--tasks", JAVA, "--softmax-dtype", "half"], "`dtype` must be one of"),
        (["--tasks", JAVA, "--device", "cuda:7"], "`device` must exist, got `cuda:7`"),
        (["--tasks", JAVA, "--device", "cpuu"], "`device` must exist, got `cpuu`"),
        (["--tasks", JAVA, "--apply-chat-template"], "needs a tokenizer with a chat template"),
        (["--tasks", JAVA, "--gen-kwargs", "x"], "`gen_kwargs` must be settings"),
        (["--tasks", JAVA, "--seed", "x"], "`seed` must be one whole number"),
        (["--tasks", JAVA, "-o", JAVA], "`output_path` must be a writable folder"),
    ],
)
def test_mistakes(heterosis, words, message):
    assert message in refused(heterosis("eval", MODEL, *words))


def test_tasks_are_checked_before_weights_are_read(heterosis, monkeypatch, tmp_path):
    monkeypatch.setattr("heterosis.search.models.source.AutoModelForCausalLM", None)
    (tmp_path / "bad.yaml").write_text(JAVA.read_text().replace("metric: acc", "metric: accc"))
    shutil.copytree(JAVA.parent / "data", tmp_path / "data")
    told = ("eval", MODEL, "--tasks")
    assert "did you mean 'acc'?" in refused(heterosis(*told, tmp_path / "bad.yaml"))
    with pytest.raises(AttributeError, match="from_pretrained"):
        heterosis(*told, JAVA)


@pytest.mark.slow
def test_ctrl_c_leaves_no_results(tmp_path):
    command = [sys.executable, "-m", "heterosis.search", "eval", str(MODEL)]
    command += ["--tasks", str(JAVA), "--output-path", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        while "Running loglikelihood" not in seen:
            seen += process.stderr.read(1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 130
    assert last == "heterosis: error: interrupted; no results were written"
    assert list(tmp_path.rglob("*.json")) == []


@pytest.mark.slow
def test_numbers_are_those_of_lm_evals_command_line(heterosis, tmp_path):
    told = ["--limit", "200", "--num_fewshot", "0", "--batch_size", "50"]
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", *told]
    command += ["--model_args", f"pretrained={MODEL},dtype=float32"]
    command += ["--tasks", "quickstart_java", "--include_path", ".", "--output_path"]
    done = subprocess.run(
        [*command, str(tmp_path / "theirs")],
        cwd=JAVA.parent,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours = [word.replace("_", "-") if word.startswith("--") else word for word in told]
    ours += ["--tasks", str(JAVA), "--dtype", "float32", "--softmax-dtype", "auto"]
    assert heterosis("eval", MODEL, *ours, "-o", tmp_path / "ours")[0] == 0
    mine, theirs = results(tmp_path / "ours"), results(tmp_path / "theirs")
    assert mine["results"] == theirs["results"]
    assert mine["n-samples"] == theirs["n-samples"]
    assert mine["results"]["quickstart_java"]["acc,none"] not in (0, 1)
