"""Families of tiny models shared by the tests of this room (read-only)."""

from pathlib import Path

import pytest
from heterosis.merge.parents.parent_set import ParentSet

from tests.families import tiny_family

Family = dict[str, Path]


def opened(paths: Family) -> ParentSet:
    return ParentSet.open(paths["base"], {n: p for n, p in paths.items() if n != "base"})


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory.mktemp("family"), n_parents=3)


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory.mktemp("untied"), tied=False, dtype="float32")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory.mktemp("sharded"), n_parents=3, max_shard_size="20KB")


@pytest.fixture(scope="session")
def parents(family: Family) -> ParentSet:
    return opened(family)
