"""For every test: a cache of its own, and checked shapes of tensors."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# Inductor else compiles a probe for every vector width, a quarter of a minute on a fresh machine.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
install_import_hook(
    [
        *(f"heterosis.merge.statistics.{name}" for name in ("gram", "importance", "quantiles")),
        *("heterosis.merge.statistics.variance", "heterosis.merge.parents.checkpoint"),
        *("heterosis.merge.kernels.kernels", "heterosis.merge.kernels.masks"),
        *(f"heterosis.evals.scorer.{name}" for name in ("batches", "forward", "packed")),
    ],
    "beartype.beartype",
)
"""Modules whose annotations, shapes included, are checked at every call; before their import."""
RECORDED = Path(__file__).parents[1] / "results/reference/search/quickstart.npz"
"""What merges of the quickstart have answered; `benchmarks/landscape.py` recorded it."""


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETEROSIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def benchmark_scripts():
    """The files that `make bench` and `make bench-search` run; they are part of no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield


@pytest.fixture(scope="module")
def landscape(benchmark_scripts) -> Any:
    return importlib.import_module("landscape")


@pytest.fixture(scope="module")
def quickstart() -> Any:
    """The configuration of the shipped search whose landscape was recorded."""
    from heterosis.search.config.load import find_config, load_config

    return load_config(find_config("quickstart"))


@pytest.fixture(scope="module")
def recorded(landscape) -> Any:
    return landscape.Landscape.read(RECORDED)


@pytest.fixture(scope="module")
def setup(recorded, quickstart) -> Any:
    """What a replay of the recorded landscape needs."""
    return recorded.setup(quickstart)
