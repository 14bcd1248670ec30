"""Chat templates, system instruction and few-shot turns: prompts and scores equal lm-eval's."""

import random
from pathlib import Path
from typing import Any

import pytest
from heterosis.evals.quiet import quiet
from heterosis.evals.scorer.scorer import Scorer
from heterosis.evals.tasks.chat import Chat, ChatOptions
from heterosis.evals.tasks.splits import Splits
from heterosis.evals.tasks.tasks import TaskError, TaskSpec, load_tasks

from ..tiny_models import metric_list, phrase, tiny_model, tiny_tokenizer, write_jsonl, write_task

TEMPLATE = (
    "<s>{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + TEMPLATE
)
BATCH = 4
ROUNDS = [
    {"apply_chat_template": True},
    {"apply_chat_template": True, "fewshot_as_multiturn": False, "system_instruction": "Be red."},
    {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be red."},
    {"system_instruction": "Be red."},
]


def chatty_tokenizer(template: str | None = TEMPLATE) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """A task of choices and one of generation, each with two examples before the prompt."""
    rng, folder = random.Random(7), tmp_path_factory.mktemp("chat")
    docs = [
        {"q": phrase(rng, 3), "options": [phrase(rng, 1), phrase(rng, 2)], "gold": i % 2}
        for i in range(14)
    ]
    files = {
        "test": write_jsonl(folder / "test.jsonl", docs[:8]),
        "train": write_jsonl(folder / "train.jsonl", docs[8:]),
    }
    shared: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "description": "Answer the question.",
        "doc_to_text": "Question: {{q}}\nAnswer:",
    }
    choices = {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "gold",
        "metric_list": metric_list("acc", "acc_norm"),
    }
    texts = {
        "output_type": "generate_until",
        "doc_to_target": "{{options[gold]}}",
        "gen_prefix": "It is",
        "generation_kwargs": {"until": ["\n", "["], "max_gen_toks": 6, "do_sample": False},
        "metric_list": metric_list("exact_match"),
    }
    return {
        "choices": write_task(folder, "choices", **shared, **choices),
        "texts": write_task(folder, "texts", **shared, **texts),
    }


def evaluated(model: Any, tokenizer: Any, paths: dict[str, Path], options: dict[str, Any]) -> Any:
    """lm-eval's own `evaluate()` with HFLM; `simple_evaluate` turns on multiturn by default."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    make: Any = huggingface.HFLM
    run: Any = evaluate
    names = [str(path) for path in paths.values()]
    loaded: Any = TaskManager(include_defaults=False).load(names)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    options = {"fewshot_as_multiturn": options.get("apply_chat_template", False)} | options
    with quiet():
        lm = make(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
        return run(lm, loaded, bootstrap_iters=0, log_samples=True, **options)


def frozen(paths: dict[str, Path], options: dict[str, Any], tokenizer: Any) -> Any:
    specs = [TaskSpec(str(path), guard=True) for path in paths.values()]
    return load_tasks(specs, splits=Splits(), chat=Chat(ChatOptions(**options), tokenizer))


@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM])
@pytest.mark.parametrize("options", ROUNDS)
def test_prompts_and_scores_are_lm_evals(options, template, paths, monkeypatch):
    tokenizer, model = chatty_tokenizer(template), tiny_model(seed=3)
    tasks = frozen(paths, options, tokenizer)
    scorer = Scorer(tasks, model, tokenizer, batch_size=BATCH)
    found = scorer.score("guard")
    monkeypatch.chdir(paths["texts"].parent)
    expected = evaluated(model, tokenizer, paths, options)
    for task in tasks:
        samples = expected["samples"][task.name]
        for own, sample in zip(task.instances("guard"), samples, strict=True):
            assert [i.args for i in own] == [tuple(a) for a in sample["arguments"]]
        theirs = expected["results"][task.name][task.metric.key]
        assert found.task_score(task.name).value == theirs
    texts = [own[0].resps[0] for own in tasks[1].instances("guard")]
    assert texts == [sample["resps"][0][0] for sample in expected["samples"]["texts"]]


def test_a_template_shows_in_the_prompt_and_in_the_fingerprint(paths):
    tokenizer = chatty_tokenizer()
    plain = frozen(paths, {}, tokenizer)
    seen = {plain[0].fingerprint}
    assert plain[0].ingredients["template"] == "none"
    for options in ROUNDS:
        task = frozen(paths, options, tokenizer)[0]
        assert task.fingerprint not in seen
        seen.add(task.fingerprint)
    prompt = frozen(paths, ROUNDS[2], tokenizer)[0].instances("guard")[0][0].args[0]
    assert prompt.startswith("<s>[system] Be red.")
    assert prompt.count("[user]") == 3
    assert prompt.count("[assistant]") == 3


def test_another_template_is_another_digest():
    on = ChatOptions(apply_chat_template=True)
    one, other = (Chat(on, chatty_tokenizer(t)) for t in (TEMPLATE, NO_SYSTEM))
    assert one.digest != other.digest
    assert one.template_sha256 != other.template_sha256
    assert Chat().template_sha256 is None
    assert Chat().render is None


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(TaskError, match="needs a tokenizer with a chat template, and the base's"):
        Chat(ChatOptions(apply_chat_template=True), chatty_tokenizer(None))


def test_turns_need_a_template():
    with pytest.raises(ValueError, match="`fewshot_as_multiturn: true` needs `apply_chat_template"):
        ChatOptions(fewshot_as_multiturn=True)
