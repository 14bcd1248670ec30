"""`heterosis tasks`: what can run here, and one prompt as a model meets it."""

import json
import shutil

import pytest
import yaml

from ..conftest import QUICKSTART, refused

TASKS = QUICKSTART / "tasks"


@pytest.fixture
def away(tmp_path):
    """A task whose data are not on this machine."""
    config = yaml.safe_load((TASKS / "java.yaml").read_text())
    del config["dataset_kwargs"]
    path = tmp_path / "away.yaml"
    path.write_text(yaml.safe_dump(config | {"dataset_path": "nobody/nothing"}))
    return path


def test_a_folder_of_tasks(heterosis):
    code, out, err = heterosis("tasks", TASKS)
    assert (code, err) == (0, "")
    assert f"{TASKS}/java.yaml" in out
    assert "2 of 2 can run here" in out


def test_what_cannot_run_is_listed_with_the_remedy(heterosis, away, monkeypatch):
    code, out, _ = heterosis("tasks", away.parent)
    assert code == 0
    assert "away.yaml" not in out
    assert "0 of 1 can run here" in out
    assert "the same command with --all" in out
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = heterosis("tasks", away, TASKS / "java.yaml", "--all")
    assert "data set nobody/nothing is not in the cache" in out
    assert "1 of 2 can run here" in out
    assert "load each data set once while online (datasets.load_dataset(PATH, NAME))" in out


def test_the_list_as_json(heterosis, away):
    _, out, _ = heterosis("tasks", away, TASKS / "java.yaml", "--all", "--format", "json")
    assert [(each["kind"], each["n_tasks"]) for each in json.loads(out)] == [("task", 1)] * 2
    _, out, _ = heterosis("tasks", away, TASKS / "java.yaml", "--format", "json")
    (only,) = json.loads(out)
    assert (only["name"], only["problem"]) == (str(TASKS / "java.yaml"), None)


def test_one_prompt_with_examples(heterosis):
    code, out, _ = heterosis("tasks", TASKS / "java.yaml", "--show", "--num-fewshot", 2)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "quickstart_java: loglikelihood, 2-shot, 2000 documents, metrics: acc"
    assert out.count('java "') == 3
    assert lines[-1].startswith("* ' ")


def test_one_prompt_in_a_models_template(heterosis, tmp_path):
    shutil.copytree(QUICKSTART / "parents/base", tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant]"
    )
    told = ("--apply-chat-template", "--model", tmp_path / "model", "--system-instruction", "Read.")
    code, out, _ = heterosis("tasks", TASKS / "java.yaml", "--show", *told)
    assert code == 0
    assert '\n[system] Read.[user] java "' in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.yaml"], "none.yaml does not exist"),
        ([TASKS.with_name("parents")], "no YAML file there defines a task"),
        (["--show"], "`--show` must have one task to show, got 0"),
        ([TASKS, "--show"], "a task is a YAML file, got the folder"),
        ([TASKS, "-f", 2], "options about prompts need `--show`"),
        ([TASKS / "java.yaml", "--show", "-f", -1], "`num_fewshot` must be at least 0, got -1"),
        ([TASKS / "java.yaml", "--show", "--apply-chat-template"], "needs `--model`"),
        ([TASKS, "--fewshot-as-multiturn", "true"], "needs `apply_chat_template: true`"),
    ],
)
def test_mistakes(heterosis, words, message):
    assert message in refused(heterosis("tasks", *words))


@pytest.mark.slow
def test_lm_evals_own_tasks(heterosis):
    code, out, err = heterosis("tasks", "arc_*")
    assert code == 0
    assert err == "reading lm-eval's index of tasks (5 to 25 s)\n"
    assert "can run here" in out
    code, _, err = heterosis("tasks", "arcc")
    assert code == 2
    assert "lm-eval has no task that matches 'arcc'; did you mean 'arc_" in err
