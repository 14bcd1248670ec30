"""Exports of a study: what is written, that it is what was scored, and what is refused."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from heterosis.evals.scores.store import ItemStore
from heterosis.evals.tasks.splits import CONFIRM, SEARCH
from heterosis.merge.files.export import read_record
from heterosis.merge.files.file_merge import merge_files, open_merge
from heterosis.merge.files.writer import ExportError
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.models.export import ExportMismatchError, export
from heterosis.search.storage.journal import Journal, StudyError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..studies import run


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    return export(study, tmp_path_factory.mktemp("out") / "model")


def test_the_winner_is_exported_and_verified(study, exported):
    assert exported.row.candidate == read_leaderboard(study).winner.candidate
    assert exported.splits == ("search", "confirm")
    assert read_record(exported.folder).recipe == exported.row.candidate.recipe


def test_its_record_and_mergekits_configuration_merge_it_again(exported, tmp_path):
    merge = open_merge(exported.folder)
    merge_files(merge, tmp_path / "again", card="")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (exported.folder / name).read_bytes()
    read = open_merge(exported.folder / "mergekit_config.yml").recipe
    for group in merge.recipe.coefficients:
        ours, theirs = merge.recipe.setting(group), read.setting(group)
        assert (ours.weights, ours.lambda_) == (theirs.weights, theirs.lambda_)


def test_transformers_loads_it(exported):
    model = AutoModelForCausalLM.from_pretrained(exported.folder)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    assert model.dtype == torch.float32
    ids = tokenizer('py "abc"[::-1]', return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_the_card_names_parents_scores_and_the_check_without_local_paths(study, exported):
    card = (exported.folder / "README.md").read_text()
    assert "- java: `java` (licence: not stated, identified by its weights: SHA-256 " in card
    assert f"{exported.row.confirm_tasks['quickstart_java'].value:.4f}" in card
    assert 'cd "$TASKS" && lm-eval run' in card
    assert str(exported.folder) not in card
    record = json.loads((exported.folder / "recipe.json").read_text())
    assert record["provenance"]["trial"] == exported.row.candidate.number
    assert set(record["parents"]) == {"python", "java"}


def test_files_are_readable_by_others_as_any_new_file_is(exported, tmp_path):
    (tmp_path / "new").write_text("")
    mode = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in exported.folder.iterdir()} == {mode}


def test_a_baseline_can_be_exported_by_its_number(study, tmp_path):
    done = export(study, tmp_path / "python", trial=1)
    assert done.row.candidate.name == "parent:python"


@pytest.mark.parametrize(
    ("trial", "message"), [(99, r"there is no trial 99; numbers are 0 to \d+"), (-1, "no trial -1")]
)
def test_a_trial_that_is_not_there(study, tmp_path, trial, message):
    with pytest.raises(StudyError, match=message):
        export(study, tmp_path / "model", trial=trial)


def test_a_taken_directory_is_refused_before_anything_is_loaded(study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("heterosis.search.models.export.open_parts", None)
    with pytest.raises(ExportError, match="exists and is not empty, nothing is overwritten"):
        export(study, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_give_other_scores_are_withdrawn(study, tmp_path, monkeypatch):
    from heterosis.search.models import export as module

    verify = module._verify

    def spoil_then_verify(parts, scored, saved, *rest):
        tensors = load_file(saved / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"].mul_(-1)
        save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
        verify(parts, scored, saved, *rest)

    monkeypatch.setattr(module, "_verify", spoil_then_verify)
    match = r"must reproduce the candidate's scores, but \d+ of"
    with pytest.raises(ExportMismatchError, match=match):
        export(study, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_has_changed_is_refused(small_search, tmp_path):
    shutil.copytree(small_search.data["parents"]["java"], tmp_path / "java")
    parents = small_search.data["parents"] | {"java": str(tmp_path / "java")}
    run(small_search.write(parents=parents, search={"trials": 1, "finalists": 1}))
    file = tmp_path / "java/model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"].add_(0.125)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"parents must not .* study; parents.java was"):
        export(small_search.results, tmp_path / "model")


@pytest.fixture
def copied(study, tmp_path):
    """A copy of the study, to be damaged."""
    return Path(shutil.copytree(study, tmp_path / "study"))


def test_items_that_are_lost_are_not_called_verified(copied, tmp_path):
    store = ItemStore(copied / "items")
    items = {key: store.read(*key) for key in store.fingerprints() if key != (0, SEARCH)}
    shutil.rmtree(copied / "items")
    for (trial, split), scores in items.items():
        ItemStore(copied / "items").append(trial, split, scores)
    with pytest.raises(StudyError, match=r"the search items of trial .* are not in the item store"):
        export(copied, tmp_path / "model", trial=0)
    assert list(tmp_path.glob("model*")) == []


def test_a_candidate_that_was_scored_otherwise_is_refused(copied, tmp_path):
    store = ItemStore(copied / "items")
    for trial, split in list(store.fingerprints()):
        kept = store.read(trial, split)
        other = re.sub(r"max_length=\d+", "max_length=7", kept.fingerprint)
        store.append(trial, split, replace(kept, fingerprint=other))
    journal = Journal(copied, write=True)
    requests = journal.manifest["identity"]["requests"] | {"max_length": "7"}
    identity = journal.manifest["identity"] | {"requests": requests}
    journal.write_manifest(journal.manifest | {"identity": identity})
    match = "must be scored as the candidate was, but max_length differ; restore what the study"
    with pytest.raises(ExportMismatchError, match=match):
        export(copied, tmp_path / "model", trial=0)
    assert list(tmp_path.glob("model*")) == []


def test_a_size_that_is_none_is_refused(study, tmp_path):
    with pytest.raises(ExportError, match=r"`max_shard_size` must be a size such as .*got `abc`"):
        export(study, tmp_path / "model", max_shard_size="abc")


def test_a_link_is_refused(study, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match="is a symbolic link"):
        export(study, tmp_path / "link")


def test_commands_survive_blanks_and_cards_name_no_place(study, tmp_path):
    done = export(study, tmp_path / "a b'c", trial=0)
    assert f"pretrained={shlex.quote(str(done.folder))} " in done.commands[0]
    card = (done.folder / "README.md").read_text()
    assert str(tmp_path) not in card
    assert 'pretrained="$MODEL"' in card


@pytest.mark.slow
def test_lm_evals_own_command_line_gives_the_confirm_score(study, exported, tmp_path):
    (command,) = exported.commands
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        f"{command} --output_path {tmp_path / 'out.json'}",
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = tmp_path.glob("**/*.json")
    theirs = json.loads(result.read_text())["results"]
    scores = ItemStore(study / "items").read(exported.row.candidate.number, CONFIRM)
    for task in ("quickstart_python", "quickstart_java"):
        assert theirs[task]["acc,none"] == np.mean(scores.value[scores.rows(task)])
        assert theirs[task]["acc,none"] == exported.row.confirm_tasks[task].value
    assert re.search(r"--samples \S+confirm_samples.json", command)
