"""Chat options from the configuration to the prompts, the study's record and lm-eval's command."""

import pytest
from heterosis.evals.tasks.tasks import TaskError
from heterosis.search.config.config import Config
from heterosis.search.config.load import find_config, load_config
from heterosis.search.models.lm_eval_command import portable_commands
from heterosis.search.study.parts import open_parts
from heterosis.search.study.resume import identity


def with_chat(**options: object) -> Config:
    config = load_config(find_config("quickstart"))
    return config.model_copy(update={"eval": config.eval.model_copy(update=options)})


@pytest.fixture(scope="module", autouse=True)
def _private_datasets_cache(tmp_path_factory):
    from datasets import config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def test_options_reach_the_prompts_the_record_and_the_command():
    plain, told = (open_parts(with_chat(**o)) for o in ({}, {"system_instruction": "Be right."}))
    prompts = [parts.tasks[0].instances("search")[0][0].args[0] for parts in (plain, told)]
    assert prompts[1] == f"Be right.{prompts[0]}"
    one, other = identity(plain), identity(told)
    assert one["tokenizer_digest"] == other["tokenizer_digest"] != ""
    assert one["chat"]["system_instruction"] is None
    assert other["chat"] == {
        "apply_chat_template": False,
        "system_instruction": "Be right.",
        "fewshot_as_multiturn": None,
        "template_sha256": None,
    }
    assert one["tasks"] != other["tasks"]
    assert "--system_instruction 'Be right.'" in portable_commands(told)[0]
    assert "--system_instruction" not in portable_commands(plain)[0]


def test_a_base_without_a_template_is_refused_before_any_model_is_loaded():
    with pytest.raises(TaskError, match="needs a tokenizer with a chat template, and the base's"):
        open_parts(with_chat(apply_chat_template=True))
