"""`run_lm_eval` gives lm-eval's numbers, and mistakes are found before a model is loaded."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from heterosis.evals.lm_eval_run import (
    EvalOptions,
    check_chat,
    open_tasks,
    read_samples,
    read_seeds,
    read_settings,
    run_lm_eval,
    tables,
)
from heterosis.evals.tasks.chat import Chat, ChatOptions
from heterosis.evals.tasks.rendering import show_task
from heterosis.evals.tasks.task_files import TaskError

from .choice_tasks import choice_task
from .tiny_models import metric_list, tiny_model


def evaluated(tasks, tokenizer, model=None, **options) -> tuple[dict[str, Any], Path | None]:
    told = EvalOptions(**options)
    objects = open_tasks([str(task) for task in tasks], told, Chat(told.chat))
    return run_lm_eval(objects, model or tiny_model(), tokenizer, told, name="tiny")


@pytest.fixture(scope="module")
def suite(tasks_folder) -> Path:
    """A group with an aggregate, over files beside it."""
    path = tasks_folder["mc"].with_name("suite.yaml")
    path.write_text(
        "group: suite\ntask: [mc, {group: inner, task: [letters]}]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return path


def test_numbers_are_those_of_lm_eval_on_the_same_files(
    tasks_folder, suite, tokenizer, tmp_path, monkeypatch
):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    names = ["mc_5shot", "ll", "gen", "rolling"]
    ours, _ = evaluated([*(tasks_folder[name] for name in names), suite], tokenizer, limit=10)
    monkeypatch.chdir(suite.parent)  # lm-eval reads data files from the working directory
    call: Any = simple_evaluate
    theirs = call(
        model="hf",
        model_args={"pretrained": str(tmp_path), "device": "cpu", "softmax_dtype": "float32"},
        tasks=[*names, "suite"],
        limit=10,
        fewshot_as_multiturn=False,
        task_manager=TaskManager(include_path=".", include_defaults=False),
    )
    for name in (*names, "mc", "letters", "suite"):
        one, other = ours["results"][name], theirs["results"][name]
        numbers = {key for key, value in other.items() if isinstance(value, float)}
        assert numbers
        assert {key: one[key] for key in numbers} == {key: other[key] for key in numbers}
    assert ours["groups"]["suite"] == theirs["groups"]["suite"]
    assert ours["n-shot"]["mc_5shot"] == 5


def test_results_and_samples_are_written_as_lm_eval_does(tasks_folder, tokenizer, tmp_path):
    options = {"output_path": tmp_path / "new/out.json", "log_samples": True, "batch_size": "auto"}
    results, written = evaluated([tasks_folder["mc"]], tokenizer, **options)
    assert written is not None
    read = json.loads(written.read_text())
    assert read["results"]["mc"]["acc,none"] == results["results"]["mc"]["acc,none"]
    told = {"pretrained": "tiny", "dtype": "float32", "softmax_dtype": "float32"}
    assert read["config"]["model_args"] == told
    (answers,) = written.parent.glob("samples_mc_*.jsonl")
    assert len(answers.read_text().splitlines()) == 24


def test_tables_are_lm_evals(tasks_folder, suite, tokenizer):
    results, written = evaluated([suite], tokenizer, limit=4)
    assert written is None
    of_tasks, of_groups = tables(results)
    assert "|letters|" in of_tasks.replace(" ", "").replace("-letters", "letters")
    assert of_groups.startswith("|Groups|")


def test_options_reach_lm_eval(tasks_folder, tokenizer):
    rows = {"gen": [1, 5]}
    results, _ = evaluated(
        [tasks_folder["gen"]],
        tokenizer,
        samples=rows,
        gen_kwargs={"max_gen_toks": 3},
        seeds=[7] * 4,
    )
    assert results["n-samples"]["gen"]["effective"] == 2
    assert results["configs"]["gen"]["generation_kwargs"]["max_gen_toks"] == 3
    assert (results["config"]["random_seed"], results["config"]["fewshot_seed"]) == (7, 7)


def test_a_task_with_zero_examples_keeps_them_with_a_warning(tasks_folder, tokenizer, caplog):
    results, _ = evaluated([tasks_folder["mc"]], tokenizer, num_fewshot=3, limit=2)
    assert results["n-shot"]["mc"] == 0
    assert "task 'mc' has `num_fewshot: 0`, which lm-eval keeps" in caplog.text


def test_the_prompt_that_is_shown_is_the_first_that_is_asked(tasks_folder, tokenizer, tmp_path):
    path = tasks_folder["mc_5shot"]
    evaluated([path], tokenizer, limit=1, log_samples=True, output_path=tmp_path)
    (written,) = tmp_path.rglob("samples_mc_5shot_*.jsonl")
    asked = list(json.loads(written.read_text())["arguments"].values())
    head, _, prompt, _, *choices = show_task(str(path))
    assert head == "mc_5shot: multiple_choice, 5-shot, 24 documents, metrics: acc, acc_norm"
    assert [prompt] * 4 == [each["arg_0"] for each in asked]
    assert choices == [f"{'*' if i == 0 else ' '} {e['arg_1']!r}" for i, e in enumerate(asked)]


def test_what_is_shown_of_other_kinds(tasks_folder):
    lines = show_task(str(tasks_folder["gen"]))
    assert lines[-2].startswith("--- the model continues it; settings {'until': ")
    assert lines[-1] == "--- right answer: '0'"
    assert show_task(str(tasks_folder["rolling"]))[-1] == "--- every token is scored"
    group = tasks_folder["mc"].with_name("two.yaml")
    group.write_text("group: two\ntask: [ll, mc]\n")
    assert show_task(str(group))[0].endswith("two.yaml: 2 tasks: ll, mc; of the first:")
    shot = show_task(str(tasks_folder["mc"]), num_fewshot=2)
    assert shot[2].count("Question:") == 3


def test_a_prompt_in_a_chat_template_is_asked_as_it_is_shown(tasks_folder, tokenizer, tmp_path):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}<assistant>"
    chat = check_chat(ChatOptions(True, "Be brief."), chatty, "tiny")
    told = EvalOptions(limit=1, log_samples=True, output_path=tmp_path, chat=chat.options)
    path = str(tasks_folder["mc_5shot"])
    run_lm_eval(open_tasks([path], told, chat), tiny_model(), chatty, told, name="tiny")
    (written,) = tmp_path.rglob("samples_*.jsonl")
    prompt = json.loads(written.read_text())["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("<system>Be brief.<user>Question: ")
    assert prompt.count("<user>") == 6
    assert prompt.endswith("<assistant>")
    assert show_task(path, chat=chat)[2] == prompt


# Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_fewshot": -1}, "`num_fewshot` must be at least 0, got -1"),
        ({"limit": 0}, "`limit` must be above 0, got 0; leave it out for all"),
        ({"limit": 2, "samples": {"a": [1]}}, "`limit` and `samples` exclude each other"),
        ({"samples": {"a": []}}, "`samples` must name rows of each task, got none for 'a'"),
        ({"log_samples": True}, "`log_samples` needs `output_path`"),
        ({"batch_size": "0"}, "`batch_size` must be at least 1, `auto` or `auto:N`, got 0"),
        ({"batch_size": "many"}, "`batch_size` must be at least 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        EvalOptions(**options)


def test_what_is_read_from_the_command_line(tmp_path):
    assert read_seeds("3") == (3, 3, 3, 3)
    assert read_seeds("0, None,2,3") == (0, None, 2, 3)
    settings = {"max_gen_toks": 3, "temperature": 0.5, "until": ["a", "b"]}
    assert read_settings('max_gen_toks=3,temperature=0.5,until=["a","b"]') == settings
    assert read_settings(json.dumps(settings)) == settings
    (tmp_path / "rows.json").write_text('{"mc": [2]}')
    assert read_samples(str(tmp_path / "rows.json")) == read_samples('{"mc": [2]}') == {"mc": [2]}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_seeds, "1,2", "`seed` must be one whole number, or four .* got 1,2"),
        (read_seeds, "x", "`seed` must be one whole number"),
        (read_settings, "abc", "`gen_kwargs` must be settings .* got abc"),
        (read_settings, "{abc", "`gen_kwargs` must be settings"),
        (read_samples, "nowhere.json", "`samples` must be a JSON object .*FileNotFoundError"),
        (read_samples, '{"a": ["b"]}', "`samples` must be .*rows must be whole numbers"),
        (read_samples, "[1]", "`samples` must be a JSON object"),
    ],
)
def test_words_that_cannot_be_read(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def refused(tasks, match: str, **options) -> None:
    told = EvalOptions(**options)
    with pytest.raises(TaskError, match=match) as caught:
        open_tasks([str(task) for task in tasks], told, Chat(told.chat))
    assert "\n" not in str(caught.value)


def test_tasks_that_cannot_be_run(tasks_folder, tmp_path):
    refused([], "no tasks are given; name some, or see `heterosis tasks`")
    refused([tmp_path], "a task is a YAML file, got the folder .*; files in it: none")
    copy = choice_task(tmp_path, "mc")
    refused([tasks_folder["mc"], copy], "task names must differ, got 'mc' 2 times")
    rows = {"ll": [1]}
    refused([tasks_folder["mc"]], "must name the tasks asked for, .*: 'll'", samples=rows)
    refused([choice_task(tmp_path, "bad", doc_to_text="{{qq}}")], "a template fails on its data")


def test_too_many_examples_are_refused_before_a_model_is_needed(tmp_path):
    path = choice_task(tmp_path, validation_split="test")
    refused([path], "the prompt of doc 0 cannot be built: ValueError", num_fewshot=30)


def test_code_of_a_model_runs_only_where_it_may(tmp_path):
    generation = {"output_type": "generate_until", "doc_to_choice": None, "unsafe_code": True}
    path = choice_task(tmp_path, metric_list=metric_list("exact_match"), **generation)
    refused([path], "task 'small' runs code that the model writes; .*--confirm-run-unsafe-code")
    told = EvalOptions(confirm_run_unsafe_code=True)
    assert open_tasks([str(path)], told, Chat(ChatOptions()))


def test_a_place_that_cannot_be_written_to(tasks_folder, tmp_path):
    (tmp_path / "file").write_text("")
    match = "`output_path` must be a writable folder, .* got .*file"
    refused([tasks_folder["mc"]], match, output_path=tmp_path / "file")


def test_a_template_that_is_not_there(tokenizer):
    with pytest.raises(TaskError, match="a tokenizer with a chat template, and tiny's has none"):
        check_chat(ChatOptions(apply_chat_template=True), tokenizer, "tiny")
