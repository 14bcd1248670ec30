"""A small task of two choices, as a file and as a dictionary, with any setting changed."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from .tiny_models import metric_list, write_jsonl, write_task

TWO_CHOICES: dict[str, Any] = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}:",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "gold",
    "metric_list": metric_list("acc"),
}


def documents(n: int = 10) -> list[dict[str, Any]]:
    return [{"q": f"word {i}", "gold": i % 2} for i in range(n)]


def choice_task(folder: Path, name: str = "small", **changes) -> Path:
    """A task of ten documents in a file of their own; None removes a key."""
    file = write_jsonl(folder / "small.jsonl", documents())
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": file}}}
    config = data | TWO_CHOICES | changes
    return write_task(folder, name, **{k: v for k, v in config.items() if v is not None})


def made_by_code(**kwargs):
    """A task's data without any file; lm-eval passes the task's metadata and dataset_kwargs."""
    return DatasetDict({"test": Dataset.from_list(documents(kwargs.get("n", 10)))})


def in_a_dictionary(**changes) -> dict[str, Any]:
    """A task of twelve documents that a function makes."""
    own = {"task": "coded", "custom_dataset": made_by_code, "dataset_kwargs": {"n": 12}}
    return own | TWO_CHOICES | changes
