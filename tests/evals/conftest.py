"""Shared by the tests of evals/: a private datasets cache, one tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _private_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache of data sets out of the tests, and the tests out of it."""
    from datasets import config

    patch = pytest.MonkeyPatch()
    patch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    patch.setattr(config, "HF_HUB_OFFLINE", True)
    patch.setattr(config, "HF_DATASETS_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-pair tokenizer of 320 tokens at most."""
    from .tiny_models import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One task of every kind, 24 documents each: name -> YAML."""
    from .tiny_models import write_tasks

    return write_tasks(tmp_path_factory.mktemp("tasks"))
