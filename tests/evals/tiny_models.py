"""Tiny random models, a byte-pair tokenizer and local lm-eval tasks for the tests of evals/."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

WORDS = ["red", "green", "blue", "stone", "river", "cloud", "winter", "summer", "apple", "seven"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair tokens learnt from WORDS: 400 at most, three of them special; no BOS is added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_config(arch: str, *, hidden: int = 32, n_layers: int = 2) -> PretrainedConfig:
    """A configuration of some 50 thousand parameters; soft-caps and sliding windows that bite."""
    shared: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 192,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if arch == "gpt_neox":
        return GPTNeoXConfig(**shared)
    if arch == "mamba":
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")
        names += ("bos_token_id", "eos_token_id")
        return MambaConfig(state_size=4, **{name: shared[name] for name in names})
    shared |= {"num_key_value_heads": 2}
    if arch == "gemma2":
        return Gemma2Config(
            head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0, **shared
        )
    if arch == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * n_layers
        return Gemma3TextConfig(
            head_dim=8, sliding_window=16, layer_types=kinds[:n_layers], **shared
        )
    if arch == "qwen3":
        return Qwen3Config(head_dim=8, **shared)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config, "phi": PhiConfig}[arch](**shared)


def tiny_model(arch: str = "llama", *, seed: int = 0, dtype: str = "float32", **size: int) -> Any:
    """A random model in eval mode; weights are large enough for uneven predictions."""
    config = tiny_config(arch, **size)
    config._attn_implementation = "eager" if arch in ("gemma2", "mamba") else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    return model.to(getattr(torch, dtype)).eval()


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Overwrite all weights in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator)
        parameter.copy_(1.0 + 0.1 * noise if "norm" in name else noise)


def phrase(rng: random.Random, n: int) -> str:
    """n random words."""
    return " ".join(rng.choices(WORDS, k=n))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows and return the file's bare name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def write_task(folder: Path, name: str, **config: Any) -> Path:
    """Write a task's YAML and return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"task": name} | config, sort_keys=False))
    return path


def metric_list(*names: str, higher: bool = True) -> list[dict[str, Any]]:
    """Entries of lm-eval's ``metric_list``."""
    aggregations = {
        "word_perplexity": "weighted_perplexity",
        "byte_perplexity": "weighted_perplexity",
        "bits_per_byte": "bits_per_byte",
        "perplexity": "perplexity",
    }
    return [
        {"metric": n, "aggregation": aggregations.get(n, "mean"), "higher_is_better": higher}
        for n in names
    ]


def write_tasks(folder: Path, n: int = 24) -> dict[str, Path]:
    """Write one task of every kind with n documents each; name -> YAML."""
    rng = random.Random(5)
    return {
        **_write_choices(folder, n, rng),
        **_write_likelihoods(folder, n, rng),
        **_write_generation(folder, n, rng),
    }


def _write_choices(folder: Path, n: int, rng: random.Random) -> dict[str, Path]:
    docs = [
        {"q": phrase(rng, 4), "options": [phrase(rng, k) for k in (1, 2, 3, 2)], "gold": i % 4}
        for i in range(n + 12)
    ]
    files = {
        "test": write_jsonl(folder / "mc.jsonl", docs[:n]),
        "train": write_jsonl(folder / "mc_train.jsonl", docs[n:]),
    }
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "gold",
        "metric_list": metric_list("acc", "acc_norm"),
    }
    letters = shared | {
        "doc_to_text": "{{q}}\nA. {{options[0]}}\nB. {{options[1]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
    }
    first = {"num_fewshot": 5, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    return {
        "mc": write_task(folder, "mc", num_fewshot=0, **shared),
        "mc_5shot": write_task(folder, "mc_5shot", num_fewshot=5, fewshot_split="train", **shared),
        "mc_first": write_task(folder, "mc_first", **first, **shared),
        "letters": write_task(folder, "letters", **letters),
    }


def _write_likelihoods(folder: Path, n: int, rng: random.Random) -> dict[str, Path]:
    docs = [{"q": phrase(rng, 3), "a": phrase(rng, 1)} for _ in range(n)]
    texts = [{"text": phrase(rng, rng.choice((3, 20, 300)))} for _ in range(n)]
    shared = {"dataset_path": "json", "test_split": "test", "output_type": "loglikelihood"}
    files = {"test": write_jsonl(folder / "ll.jsonl", docs)}
    ll = shared | {
        "dataset_kwargs": {"data_files": files},
        "doc_to_target": " {{a}}",
        "metric_list": metric_list("acc", "perplexity"),
    }
    texts_file = {"test": write_jsonl(folder / "texts.jsonl", texts)}
    rolling = shared | {
        "dataset_kwargs": {"data_files": texts_file},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": metric_list(
            "word_perplexity", "byte_perplexity", "bits_per_byte", higher=False
        ),
    }
    return {
        "ll": write_task(folder, "ll", doc_to_text="{{q}} ", **ll),
        "ll_bare": write_task(folder, "ll_bare", doc_to_text="", **ll),
        "rolling": write_task(folder, "rolling", **rolling),
    }


def _write_generation(folder: Path, n: int, rng: random.Random) -> dict[str, Path]:
    docs = [{"q": phrase(rng, 1 + i % 5), "a": str(i % 10)} for i in range(n)]
    config = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": write_jsonl(folder / "gen.jsonl", docs)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}\nAnswer:",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n", "st"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": metric_list("exact_match"),
        "filter_list": [
            {"name": "strict", "filter": [{"function": "take_first"}]},
            {
                "name": "flexible",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            },
        ],
    }
    return {"gen": write_task(folder, "gen", **config)}
