"""Tasks that can run here, and missing data of the others, without building a task."""

import time
from pathlib import Path

import pytest
from datasets import config
from heterosis.evals.tasks import catalogue
from heterosis.evals.tasks.catalogue import (
    list_tasks,
    missing_data,
    refuse_missing_data,
    task_configs,
)
from heterosis.evals.tasks.task_files import TaskError

from ..choice_tasks import choice_task, in_a_dictionary


def refused(*tasks: object, match: str) -> None:
    with pytest.raises(TaskError, match=match) as caught:
        refuse_missing_data([str(task) for task in tasks])
    assert "\n" not in str(caught.value)


def on_the_hub(folder: Path, name: str = "small", **changes) -> Path:
    """A task with data on the hub."""
    hub = {"dataset_path": "nobody/nothing", "dataset_kwargs": None}
    return choice_task(folder, name, **(hub | changes))


def test_data_not_on_this_machine(tmp_path):
    match = r"data of 1 task.*: data set nobody/nothing is not in .*'small'.*switched off"
    refused(on_the_hub(tmp_path), match=match + r".*load each data set once while online")


def test_all_missing_data_are_named_at_once(tmp_path):
    one = on_the_hub(tmp_path, "one")
    two = on_the_hub(tmp_path, "two", dataset_path="no/where", dataset_name="en")
    here = choice_task(tmp_path)
    refused(one, here, two, match=r"2 task.* nobody/nothing .*'one'.* no/where en .*'two'")


def test_tasks_whose_data_are_here_pass(tmp_path):
    refuse_missing_data([str(choice_task(tmp_path)), in_a_dictionary()])


def test_data_sets_in_the_cache_are_found_by_name_and_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    made = tmp_path / "nobody___many_words" / "en" / "0.0.0" / "abc"
    made.mkdir(parents=True)
    wanted = {"dataset_path": "nobody/ManyWords", "dataset_name": "en"}
    assert str(missing_data(wanted)) == "data set nobody/ManyWords en is not in the cache"
    (made / "dataset_info.json").write_text("{}")
    assert missing_data(wanted) is None
    assert missing_data({"dataset_path": "nobody/ManyWords"}) is None
    assert missing_data(wanted | {"dataset_name": "fr"}) is not None


@pytest.mark.parametrize("offline", [True, False])
def test_files_on_the_web_are_missing_if_it_is_switched_off(monkeypatch, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    kwargs = {"data_files": {"test": ["https://example.org/a.jsonl"]}}
    found = missing_data({"dataset_path": "json", "dataset_kwargs": kwargs})
    said = "data file https://example.org/a.jsonl is on the web, which is switched off"
    assert str(found).startswith(said) if offline else found is None


def test_a_file_that_has_gone_is_named(tmp_path):
    (found,) = task_configs(str(choice_task(tmp_path)))
    (tmp_path / "small.jsonl").unlink()
    assert str(missing_data(found)) == f"data file {tmp_path / 'small.jsonl'} does not exist"


def test_an_unreachable_hub_is_reported_at_once(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    match = r"nobody/nothing is not in the cache .*; the hub cannot be reached \(URLError"
    refused(on_the_hub(tmp_path), match=match)
    assert time.monotonic() - start < 5


def test_a_folder_is_listed_with_what_its_tasks_lack(tmp_path):
    here = choice_task(tmp_path, "here")
    away = on_the_hub(tmp_path, "away")
    (tmp_path / "suite.yaml").write_text("group: suite\ntask: [here, away]\n")
    (tmp_path / "broken.yaml").write_text("task: [unclosed\n")
    (tmp_path / "search.yaml").write_text("name: no task at all\n")
    found = {Path(each.name).stem: each for each in list_tasks(folders=[tmp_path], builtin=False)}
    assert set(found) == {"here", "away", "suite", "broken"}
    assert (found["here"].name, found["here"].problem) == (str(here), None)
    assert found["away"].name == str(away)
    assert found["away"].problem == "data set nobody/nothing is not in the cache"
    assert (found["suite"].kind, found["suite"].n_tasks) == ("group", 2)
    assert found["suite"].problem == found["away"].problem
    assert "broken.yaml must be YAML" in str(found["broken"].problem)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("her", ["here"]),
        ("own", ["own", "suite"]),
        ("*/H*.yaml", ["here"]),
        ("*e.yaml", ["here", "suite"]),
    ],
)
def test_patterns_fit_parts_of_names_and_members(tmp_path, pattern, names):
    choice_task(tmp_path, "here")
    choice_task(tmp_path, "own")
    (tmp_path / "suite.yaml").write_text("group: suite\ntask: [own]\n")
    listed = list_tasks(pattern, folders=[tmp_path], builtin=False)
    assert [Path(each.name).stem for each in listed] == names


@pytest.mark.slow
class TestBuiltIn:
    """One reading of lm-eval's index (5 to 25 s) for all of these."""

    def test_unknown_name_has_its_nearest(self):
        match = r"lm-eval has no task 'helaswag'; did you mean 'hellaswag'\? name your own task"
        refused("helaswag", match=match)

    def test_data_not_on_this_machine_are_a_quick_error(self):
        catalogue.builtin_index()
        start = time.monotonic()
        refused("arc_easy", "piqa", "mmlu", match=r"59 .* ARC-Easy .*'piqa'.* 53 more")
        assert time.monotonic() - start < 5

    def test_the_index_is_listed_with_what_is_missing(self):
        found = {each.name: each for each in list_tasks("arc_*")}
        assert found["arc_easy"].problem == "data set allenai/ai2_arc ARC-Easy is not in the cache"
        (group,) = (each for each in list_tasks("mmlu") if each.name == "mmlu")
        assert (group.kind, group.n_tasks) == ("group", 57)
        assert "and 56 more" in str(group.problem)

    def test_data_that_a_task_loads_by_code_are_not_called_here(self):
        (found,) = (each for each in list_tasks("fda") if each.name == "fda")
        assert "shows when it runs" in str(found.problem)
