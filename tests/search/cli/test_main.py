"""The command line: searches, checks, and messages for wrong input."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest
import torch
from heterosis.search.storage.journal import Journal
from safetensors.torch import load_file, save_file

from ..conftest import QUICKSTART, refused


def test_help_names_every_command(heterosis):
    code, out, _ = heterosis("--help")
    assert code == 0
    for command in ("search", "check", "leaderboard", "export", "merge", "tasks", "eval", "report"):
        assert command in out


def test_help_of_check_names_a_studys_folder(heterosis):
    code, out, _ = heterosis("check", "--help")
    assert code == 0
    assert "or a study's folder" in " ".join(out.replace("│", " ").split())


def test_version(heterosis):
    code, out, _ = heterosis("--version")
    assert (code, out.strip()) == (0, importlib.metadata.version("heterosis"))


def test_search_leaderboard_and_their_formats(heterosis, small_search):
    path = small_search.write(search={"trials": 2, "finalists": 1})
    code, out, _ = heterosis("search", path, "--trials", 3)
    assert code == 0
    assert "search 3/3" in out
    assert f"export the winner: heterosis export {small_search.results}" in out
    assert " for the best baseline" in out
    assert f"report: {small_search.results}/report.html" in out
    assert "candidate 9" in (small_search.results / "report.html").read_text()

    code, out, _ = heterosis("leaderboard", small_search.results)
    assert code == 0
    assert "parent:python *" in out
    _, page, _ = heterosis("leaderboard", small_search.results.parent, "--format", "md")
    assert page == (small_search.results / "leaderboard.md").read_text()
    _, sheet, _ = heterosis("leaderboard", small_search.results, "--format", "csv")
    assert sheet == (small_search.results / "leaderboard.csv").read_text()


def test_a_search_names_only_the_files_that_it_wrote(heterosis, study, tmp_path, monkeypatch):
    from heterosis.search import run

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(run, "write_report", full)
    folder = shutil.copytree(study, tmp_path / "again")
    code, out, err = heterosis("search", "--continue", folder, "--trials", 0)
    assert code == 0, err
    assert "report.html" not in out
    assert f"leaderboard: {folder}/leaderboard.md and leaderboard.csv" in out


def test_check_says_what_is_to_come_and_writes_nothing(heterosis, small_search):
    path = small_search.write()
    code, out, _ = heterosis("check", path)
    assert code == 0
    for word in ("parents: python, java match", "relative norm", "cosine", "sign conflict"):
        assert word in out
    for word in ("40 items", "space: 8 genes", "forecast: 7 baselines and 12 candidates", "ready:"):
        assert word in out
    for word in ("early attn", "DARE is safe to drop rate 0.0", "memory: placement mapped: base"):
        assert word in out
    for word in ("memory: host memory: ", "kernels: eager (the model has 8", "s longer)"):
        assert word in out
    assert f"kept in {os.environ['HETEROSIS_CACHE']}" in out
    assert {p.name for p in small_search.folder.iterdir()} == {"search.yaml"}


def test_check_of_a_study_says_whether_it_can_continue(heterosis, study):
    code, out, _ = heterosis("check", study, "--layers")
    assert code == 0
    assert "layers.3.attn" in out
    assert "early attn" not in out
    assert "study: 6 of 6 candidates finished; parents, tasks, space and versions are" in out


def test_check_advises_when_the_budget_is_too_small(heterosis, small_search):
    space = {"depth": "layers", "weight": [0, 0.8], "method": ["ties", "linear"]}
    path = small_search.write(space=space, merge={"compile": False})
    _, out, _ = heterosis("check", path)
    assert "advice: 12 trials are few for 24 genes" in out
    assert "advice: CmaEsSampler draws the 8 choices of a method at random" in out
    assert "method: linear: weighted average of the parents" in out
    assert "kernels: eager, as configured" in out
    assert "advice: the middle of `weight`, where the search starts, is 0.4, not the uniform" in out


@pytest.mark.parametrize("command", ["search", "check"])
def test_a_configuration_that_is_not_there(heterosis, command):
    assert "no such configuration: `nowhere.yaml`" in refused(heterosis(command, "nowhere.yaml"))


def test_a_misspelt_key(heterosis, small_search):
    path = small_search.write(seach={"trials": 3})
    assert "unknown key `seach`; did you mean `search`?" in refused(heterosis("search", path))


def test_a_results_folder_without_a_study(heterosis, tmp_path):
    assert "holds no study" in refused(heterosis("leaderboard", tmp_path))
    assert "holds no study" in refused(heterosis("export", tmp_path, "--out", tmp_path / "m"))


def test_a_missing_task_file(heterosis, small_search):
    path = small_search.write(tasks=[{"task": "tasks/none.yaml"}])
    assert "none.yaml does not exist" in refused(heterosis("search", path))


def test_a_space_with_nothing_to_search(heterosis, small_search):
    path = small_search.write(space={"weight": 0.5})
    assert "leaves nothing to search" in refused(heterosis("search", path))


@pytest.mark.parametrize("command", ["search", "check"])
def test_a_layer_group_whose_pattern_matches_no_tensor(heterosis, small_search, command):
    groups = {"*.layers.{layer}.*.q_porj.*": "layers.{layer}.q"}
    line = refused(heterosis(command, small_search.write(merge={"layer_groups": groups})))
    assert "must match tensors of the base, got `*.layers.{layer}.*.q_porj.*`, which" in line
    assert "(a tensor near it: model.layers.0.self_attn.q_proj.weight)" in line


def test_missing_parents_name_the_command_that_makes_them(heterosis, small_search):
    path = small_search.write(base="nowhere", made_by="python make.py")
    line = refused(heterosis("search", path))
    assert "nowhere; make it by: python make.py" in line


def test_a_hub_id_that_is_in_no_cache(heterosis, small_search):
    parents = small_search.data["parents"] | {"java": "some-org/java-model"}
    line = refused(heterosis("check", small_search.write(parents=parents)))
    assert "parent java: no directory some-org/java-model" in line
    assert "in the local cache" in line
    path = small_search.write(parents=parents, made_by="python make.py")
    assert refused(heterosis("check", path)).endswith("; or make it by: python make.py")


def damaged(folder, change) -> None:
    """A copy of the quickstart's Java parent whose tensors are changed."""
    shutil.copytree(QUICKSTART / "parents/java", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_parent_with_a_nan(heterosis, small_search, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    damaged(tmp_path / "nan", lambda tensors: tensors[name][0].fill_(torch.nan))
    parents = small_search.data["parents"] | {"java": str(tmp_path / "nan")}
    line = refused(heterosis("search", small_search.write(parents=parents)))
    assert "parent java" in line
    assert name in line


def test_a_parent_with_a_tensor_missing(heterosis, small_search, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    damaged(tmp_path / "short", lambda tensors: tensors.pop(name))
    parents = small_search.data["parents"] | {"java": str(tmp_path / "short")}
    line = refused(heterosis("search", small_search.write(parents=parents)))
    assert "parent java" in line
    assert name in line


def test_a_truncated_parent(heterosis, small_search, tmp_path):
    shutil.copytree(QUICKSTART / "parents/java", tmp_path / "cut")
    file = tmp_path / "cut/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    parents = small_search.data["parents"] | {"java": str(tmp_path / "cut")}
    line = refused(heterosis("search", small_search.write(parents=parents)))
    assert "parent java" in line
    assert "model.safetensors" in line


def test_a_parent_with_another_vocabulary(heterosis, small_search, tmp_path):
    shutil.copytree(QUICKSTART / "parents/java", tmp_path / "words")
    file = tmp_path / "words/tokenizer.json"
    text = file.read_text()
    assert '"<|end|>"' in text
    file.write_text(text.replace('"<|end|>"', '"<|stop|>"'))
    parents = small_search.data["parents"] | {"java": str(tmp_path / "words")}
    line = refused(heterosis("search", small_search.write(parents=parents)))
    assert "parent java" in line
    assert "token" in line


def test_the_results_folder_cannot_be_made(heterosis, small_search):
    (small_search.folder / "file").write_text("")
    path = small_search.write(results=str(small_search.folder / "file/results"))
    line = refused(heterosis("search", path))
    assert "not a folder that can be written to" in line
    assert "--results" in line


def test_a_device_that_is_not_there(heterosis, small_search):
    path = small_search.write(merge={"device": "cuda:7"})
    assert "merge.device must be there, got `cuda:7`" in refused(heterosis("search", path))


def test_a_base_without_a_tokenizer(heterosis, small_search, tmp_path):
    places = {}
    for name in ("base", "python", "java"):
        places[name] = shutil.copytree(QUICKSTART / "parents" / name, tmp_path / name)
        for file in places[name].glob("tokenizer*"):
            file.unlink()
    parents = {name: str(places[name]) for name in ("python", "java")}
    path = small_search.write(base=str(places["base"]), parents=parents)
    code, _, err = heterosis("search", path)
    assert code == 2
    assert "holds no tokenizer that transformers loads" in err.splitlines()[-1]


def test_one_study_that_has_not_begun_does_not_hide_the_others(heterosis, small_search):
    results = small_search.folder / "many"
    heterosis("search", small_search.write(results=str(results / "b"), search={"trials": 0}))
    (results / "a").mkdir()
    Journal(results / "a", write=True)
    code, out, err = heterosis("leaderboard", results)
    assert code == 0
    assert err == ""
    assert "only baselines so far" in out
    assert "a (not begun): " in out
    assert "this study has not begun yet; run its search again" in out


@pytest.mark.slow
def test_a_search_continues_after_its_output_is_closed(small_search):
    path = small_search.write(search={"trials": 3, "finalists": 1})
    command = [sys.executable, "-m", "heterosis.search", "search", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert len(Journal(small_search.results).trials) == 10
    assert (small_search.results / "leaderboard.md").is_file()
