"""For every test: facts are kept in a folder of this run alone."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def facts_of_this_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETEROSIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def benchmark_scripts():
    """The files that `make bench` and `make bench-search` run; they are part of no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield
