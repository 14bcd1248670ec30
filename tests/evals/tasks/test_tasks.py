"""Loading tasks: frozen prompts, splits, and an error for every mistake of a user."""

import shutil
from pathlib import Path

import pytest
import yaml
from heterosis.evals.tasks import catalogue
from heterosis.evals.tasks.splits import Splits, doc_hash
from heterosis.evals.tasks.tasks import FrozenTask, TaskError, TaskSpec, load_tasks

from ..choice_tasks import choice_task, in_a_dictionary
from ..tiny_models import metric_list, write_jsonl, write_task

WHOLE = Splits(1.0)


def load_one(path: Path, splits: Splits = WHOLE, **spec) -> FrozenTask:
    (task,) = load_tasks([TaskSpec(str(path), **spec)], splits=splits)
    return task


def prompts(task: FrozenTask, split: str = "search") -> list[tuple[str, ...]]:
    return [i.args for requests in task.instances(split) for i in requests]


def test_local_tasks_do_not_read_the_index_of_built_in_tasks(tasks_folder, monkeypatch):
    monkeypatch.setattr(catalogue, "builtin_index", lambda: pytest.fail("index was read"))
    assert load_one(tasks_folder["mc"]).name == "mc"


def test_what_a_frozen_task_says(tasks_folder):
    task = load_one(tasks_folder["mc_5shot"], Splits(0.5))
    assert (task.metric.key, task.higher_is_better) == ("acc,none", True)
    assert (task.output_type, task.num_fewshot) == ("multiple_choice", 5)
    assert set(task.doc_ids) == {"search", "confirm"}
    ids = [*task.doc_ids["search"], *task.doc_ids["confirm"]]
    assert sorted(ids) == list(range(24))
    assert task.samples("search") == {"mc_5shot": list(task.doc_ids["search"])}
    doc = task.instances("confirm")[0][0].doc
    assert task.doc_hashes[task.doc_ids["confirm"][0]] == doc_hash(doc)
    assert all(args[0].count("Question:") == 6 for args in prompts(task))


def test_loading_twice_gives_the_same_prompts_and_fingerprint(tasks_folder):
    one, other = (load_one(tasks_folder["mc_5shot"]) for _ in range(2))
    assert prompts(one) == prompts(other)
    assert one.fingerprint == other.fingerprint


def test_fingerprint_sees_metric_splits_prompts_and_data(tmp_path):
    path = choice_task(tmp_path, metric_list=metric_list("acc", "acc_norm"))
    found = [
        load_one(path).fingerprint,
        load_one(path, metric="acc_norm").fingerprint,
        load_one(path, Splits(0.5)).fingerprint,
        load_one(path, max_items=9).fingerprint,
        load_one(choice_task(tmp_path, doc_to_text="{{q}}?")).fingerprint,
    ]
    rows = [{"q": f"other {i}", "gold": 0} for i in range(10)]
    other = choice_task(tmp_path)
    write_jsonl(tmp_path / "small.jsonl", rows)
    assert len({*found, load_one(other).fingerprint}) == 6


def test_data_files_are_relative_to_the_yaml_also_through_include(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    choice_task(tmp_path / "inner", "base")
    outer = tmp_path / "outer.yaml"
    outer.write_text("include: inner/base.yaml\ntask: outer\ndoc_to_text: 'Say {{q}}:'\n")
    monkeypatch.chdir("/")
    task = load_one(outer)
    assert task.name == "outer"
    assert prompts(task)[0] == ("Say word 0:", " yes")


def test_groups_expand_and_share_their_weight(tasks_folder):
    folder = tasks_folder["mc"].parent
    group = folder / "suite.yaml"
    group.write_text("group: suite\ntask: [mc, {group: inner, task: [letters]}]\n")
    both = load_tasks([TaskSpec(str(group), weight=3.0)], splits=WHOLE)
    assert [t.name for t in both] == ["mc", "letters"]
    assert [t.weight for t in both] == [1.5, 1.5]


def test_groups_override_and_define_tasks_inline(tasks_folder):
    folder = tasks_folder["mc"].parent
    group = folder / "own.yaml"
    inline = (
        "{task: fresh, dataset_path: json, dataset_kwargs: {data_files: {test: ll.jsonl}}, "
        "test_split: test, output_type: loglikelihood, doc_to_text: '{{q}}', "
        "doc_to_target: ' {{a}}', metric_list: [{metric: acc, aggregation: mean, "
        "higher_is_better: true}]}"
    )
    group.write_text(f"group: own\ntask: [{{task: mc, description: 'Hear: '}}, {inline}]\n")
    both = load_tasks([TaskSpec(str(group))], splits=WHOLE)
    assert [t.name for t in both] == ["mc", "own::fresh"]
    assert prompts(both[0])[0][0].startswith("Hear: Question:")


def test_guard_tasks_are_not_split_and_caps_hold(tasks_folder):
    guard = load_one(tasks_folder["mc"], Splits(0.5), guard=True)
    assert guard.doc_ids == {"guard": tuple(range(24))}
    few = load_one(tasks_folder["mc"], Splits(0.5), max_items=10)
    assert sum(map(len, few.doc_ids.values())) == 10
    assert set(few.doc_ids) == {"search", "confirm"}
    capped = load_one(tasks_folder["mc"], Splits(0.5, search_items=3, confirm_items=2))
    assert {s: len(i) for s, i in capped.doc_ids.items()} == {"search": 3, "confirm": 2}


def test_copies_of_a_document_land_in_one_split(tmp_path):
    path = choice_task(tmp_path)
    docs = [{"q": f"word {i % 20}", "gold": 0} for i in range(60)]
    write_jsonl(tmp_path / "small.jsonl", docs)
    task = load_one(path, Splits(0.5))
    sides = {i % 20: {s for s, ids in task.doc_ids.items() if i in ids} for i in range(20)}
    for split, ids in task.doc_ids.items():
        assert all(sides[i % 20] == {split} for i in ids)


def test_margins_know_the_gold_choice(tasks_folder):
    task = load_one(tasks_folder["mc"])
    assert task.prompts.gold == {i: (i % 4,) for i in range(24)}


# Mistakes -----------------------------------------------------------------------------------


def refused(path: Path | str, match: str, **spec) -> None:
    with pytest.raises(TaskError, match=match) as caught:
        load_tasks([TaskSpec(str(path), **spec)], splits=Splits(0.5))
    assert "\n" not in str(caught.value)


def test_missing_task_file(tasks_folder):
    path = tasks_folder["mc"].with_name("mcc.yaml")
    refused(path, r"task file .*mcc.yaml does not exist; did you mean 'mc.yaml'\?")


def test_missing_data_file(tmp_path):
    path = choice_task(tmp_path, dataset_kwargs={"data_files": {"test": "gone.jsonl"}})
    refused(path, "data file .*gone.jsonl does not exist; paths are relative to the task's YAML")
    path = choice_task(tmp_path, dataset_kwargs={"data_files": "gone*.jsonl"})
    refused(path, r"no data file matches .*gone\*.jsonl")


def test_broken_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("task: [unclosed\n")
    refused(path, r"broken.yaml must be YAML, got: ParserError: while parsing")
    path.write_text("just words\n")
    refused(path, "broken.yaml must be a mapping of keys to values, got: Expected YAML dict")
    path.write_text("task: x\nprocess_docs: !function nowhere.at_all\n")
    refused(path, "`!function` cannot be loaded: Cannot import module 'nowhere'")


def test_includes_that_fail(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("include: b.yaml\n")
    refused(path, r"task file .*b.yaml does not exist \(included by .*a.yaml\)")
    refused(tmp_path / "none/x.yaml", "does not exist; give the path of a task's YAML file")
    path.write_text("include: a.yaml\n")
    refused(path, "a task file must not include itself")


def test_unknown_key_names_the_nearest(tmp_path):
    path = choice_task(tmp_path, doc_to_txt="x")
    refused(path, r"unknown key 'doc_to_txt'; did you mean 'doc_to_text'\?")


def test_missing_task_name_or_data_path(tmp_path):
    refused(choice_task(tmp_path, task=7), "`task` must be the task's name, got 7")
    refused(choice_task(tmp_path, dataset_path=None), "`dataset_path` is missing; for a JSONL")


def test_unknown_metric_in_the_yaml(tmp_path):
    path = choice_task(tmp_path, metric_list=metric_list("accc"))
    refused(path, r"unknown metric 'accc'; did you mean 'acc'\? known are acc, acc_all")
    path = choice_task(tmp_path, metric_list=[{"metric": "acc", "aggregation": "meen"}])
    refused(path, r"unknown aggregation 'meen'; did you mean 'mean'\? known are")
    path = choice_task(tmp_path, metric_list=[{"aggregation": "mean"}])
    refused(path, "every entry of `metric_list` needs `metric`")


def test_unknown_metric_asked_for(tasks_folder):
    refused(
        tasks_folder["mc"],
        r"task 'mc' has no metric 'acc_nor'; did you mean 'acc_norm,none'\? "
        "known are acc,none, acc_norm,none",
        metric="acc_nor",
    )
    refused(
        tasks_folder["gen"],
        "known are exact_match,strict, exact_match,flexible",
        metric="exact_match,loose",
    )


def test_metric_without_a_value_per_document(tmp_path):
    f1 = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    path = choice_task(tmp_path, metric_list=[f1, *metric_list("acc")])
    refused(path, "metric 'f1' has no value per document.*choose `metric` among acc,none")
    assert load_one(path, metric="acc").metric.key == "acc,none"


def test_sampled_generation_is_refused(tmp_path):
    for options in ({"do_sample": True}, {"temperature": 0.7}):
        path = choice_task(
            tmp_path,
            output_type="generate_until",
            doc_to_choice=None,
            generation_kwargs=options,
            metric_list=metric_list("exact_match"),
        )
        refused(path, "samples its answers, so its scores are not repeatable; set `do_sample")


def test_broken_data_are_reported_once(tmp_path, caplog, capfd):
    path = choice_task(tmp_path)
    (tmp_path / "small.jsonl").write_text('{"q": "cut off')
    refused(path, "task 'small': its data cannot be read: ")
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_template_that_does_not_fit_the_data(tmp_path):
    refused(choice_task(tmp_path, doc_to_text="{{qq}}"), "a template fails on its data.*'qq'")


def test_missing_split_of_the_data(tmp_path):
    refused(choice_task(tmp_path, test_split="tset"), "task 'small' cannot be built: KeyError")


def test_too_few_examples_for_the_shots(tmp_path):
    files = dict.fromkeys(("test", "train"), tmp_path / "small.jsonl")
    data = {"data_files": {name: str(path) for name, path in files.items()}}
    refused(
        choice_task(tmp_path, fewshot_split="train", dataset_kwargs=data),
        "the prompt of doc 0 cannot be built: ValueError: Sample larger than population",
        num_fewshot=30,
    )


def test_duplicate_task_names(tasks_folder, tmp_path):
    copy = tmp_path / "copy.yaml"
    for path in tasks_folder["mc"].parent.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    shutil.copy(tasks_folder["mc"], copy)
    specs = [TaskSpec(str(tasks_folder["mc"])), TaskSpec(str(copy))]
    with pytest.raises(TaskError, match=r"task names must differ, got 'mc' from '.*copy.yaml'"):
        load_tasks(specs, splits=WHOLE)


def test_no_document_left_for_the_search(tmp_path):
    with pytest.raises(
        TaskError, match=r"0 of its 10 documents are search items .* at least 2 are needed"
    ):
        load_one(choice_task(tmp_path), Splits(0.0001))


def test_groups_that_fail(tmp_path):
    choice_task(tmp_path)
    path = tmp_path / "g.yaml"
    path.write_text("group: g\ntask: [g]\n")
    refused(path, "group 'g' must not contain itself")
    path.write_text("group: g\ntask: [3]\n")
    refused(path, "members of group 'g' need a task name, got 3")
    path.write_text("group: g\ntask: []\n")
    refused(path, "the group has no tasks")
    path.write_text("group: g\nnum_fewshot: 2\ntask: [elsewhere]\n")
    refused(path, "no file beside it defines 'elsewhere', and keys of a group cannot override")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_fewshot": -1}, "`num_fewshot` must be at least 0, got -1"),
        ({"weight": 0.0}, "`weight` must be positive and finite, got 0.0"),
        ({"max_items": 0}, "`max_items` must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSpec("x", **options)


def test_the_fingerprint_knows_how_answers_are_scored(tasks_folder, tmp_path):
    text = tasks_folder["mc"].read_text()
    changes = {
        "as it was": text,
        "gold": text.replace("doc_to_target: ", "doc_to_target: 0 #"),
        "direction": text.replace("higher_is_better: true", "higher_is_better: false"),
    }
    prints = {}
    for name, changed in changes.items():
        path = tasks_folder["mc"].parent / "changed.yaml"
        path.write_text(changed)
        prints[name] = load_one(path).fingerprint
        path.unlink()
    assert len(set(prints.values())) == len(changes)
    assert prints["as it was"] == load_one(tasks_folder["mc"]).fingerprint


def test_few_shot_examples_must_not_be_items(tasks_folder):
    config = yaml.safe_load(tasks_folder["mc_first"].read_text())
    for key in ("fewshot_split", "training_split"):
        del config[key]
    path = write_task(tasks_folder["mc"].parent, "leaky", **(config | {"task": "leaky"}))
    with pytest.raises(
        TaskError, match=r"few-shot examples must come from other documents .*'test'"
    ):
        load_tasks([TaskSpec(str(path), num_fewshot=2)], splits=WHOLE)
    assert load_tasks([TaskSpec(str(path), num_fewshot=0)], splits=WHOLE)


def test_a_dictionary_whose_data_are_made_by_a_function():
    config = in_a_dictionary()
    (task,) = load_tasks([TaskSpec(config)], splits=WHOLE)
    assert (task.name, len(task.doc_ids["search"]), task.source) == ("coded", 12, None)
    assert config == in_a_dictionary()
    (again,) = load_tasks([TaskSpec(config)], splits=WHOLE)
    assert again.fingerprint == task.fingerprint


def test_a_function_named_in_a_yaml(tmp_path):
    (tmp_path / "made.py").write_text(
        "from datasets import Dataset, DatasetDict\n"
        "def docs(**kwargs):\n"
        "    rows = [{'q': str(i), 'gold': i % 2} for i in range(10)]\n"
        "    return DatasetDict({'test': Dataset.from_list(rows)})\n"
        "def strict():\n"
        "    return docs()\n"
    )
    path = choice_task(tmp_path, dataset_path=None, dataset_kwargs=None)
    plain = path.read_text()
    path.write_text(f"{plain}custom_dataset: !function made.docs\n")
    assert len(load_one(path).doc_ids["search"]) == 10
    path.write_text(f"{plain}custom_dataset: !function made.strict\n")
    refused(path, r"unexpected keyword argument .*let the function take \*\*kwargs")
    path.write_text(f"{plain}custom_dataset: !function made.nothing\n")
    refused(path, "`!function` cannot be loaded")


def test_dictionaries_that_fail():
    for made, match in (
        (
            {"output_type": "multiple_choice"},
            "a task given as a dictionary needs its name in `task`",
        ),
        (in_a_dictionary(doc_to_txt="x"), "unknown key 'doc_to_txt'; did you mean 'doc_to_text'"),
    ):
        with pytest.raises(TaskError, match=match):
            load_tasks([TaskSpec(made)], splits=WHOLE)
    twice = [TaskSpec(in_a_dictionary())] * 2
    with pytest.raises(TaskError, match="names must differ, got 'coded' from 'dictionary coded'"):
        load_tasks(twice, splits=WHOLE)


@pytest.mark.parametrize(
    ("changes", "column", "found"),
    [
        (
            {"doc_to_target": "{{[7, gold][q != 'word 3']}}"},
            "log_likelihood",
            "0 right and 2 wrong",
        ),
        ({"doc_to_choice": ["yes"], "doc_to_target": "{{0}}"}, "margin", "1 right and 0 wrong"),
    ],
)
def test_what_is_optimised_must_be_there_for_every_document(tmp_path, changes, column, found):
    path = choice_task(tmp_path, **changes)
    with pytest.raises(TaskError, match=f"`optimize: {column}` needs a right .* got {found}"):
        load_one(path, optimize=(column,))
    assert load_one(path).optimize == ("metric",)
