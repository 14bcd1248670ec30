"""A search small enough for a test: the quickstart's models, few items, few candidates."""

import sys
from pathlib import Path

import pytest
import yaml
from heterosis.search.cli.main import main
from heterosis.search.config.load import find_config

from .studies import run

QUICKSTART = find_config("quickstart").parent


@pytest.fixture
def small_search(tmp_path) -> "SmallSearch":
    return SmallSearch(tmp_path)


class SmallSearch:
    """A configuration with the quickstart's models and tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.data = {
            "name": "small",
            "base": str(QUICKSTART / "parents/base"),
            "parents": {name: str(QUICKSTART / "parents" / name) for name in ("python", "java")},
            "tasks": [{"task": str(QUICKSTART / f"tasks/{n}.yaml")} for n in ("python", "java")],
            "splits": {"search_share": 0.3, "search_items": 20, "confirm_items": 30},
            "merge": {"dtype": "float32", "device": "cpu"},
            "space": {"depth": {"control_points": 2}},
            "search": {"trials": 12, "finalists": 2, "dissect": False},
            "baselines": {
                "lambdas": [0.8],
                "ties_drop_rates": [0.5],
                "dare_ties_drop_rates": [0.5],
            },
            "eval": {"batch_size": 20, "threads": 1},
            "results": str(self.results),
        }

    def write(self, **changes) -> Path:
        """Write search.yaml; a change replaces a key, or is merged into a section."""
        data = dict(self.data)
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(data.get(key), dict)
            data[key] = data[key] | value if both else value
        path = self.folder / "search.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """Results folder of a finished study; a test that changes it takes a copy."""
    small = SmallSearch(tmp_path_factory.mktemp("study"))
    run(small.write(search={"trials": 6, "finalists": 2}))
    return small.results


@pytest.fixture
def heterosis(monkeypatch, capsys):
    """Run a command; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heterosis", *map(str, arguments)])
        capsys.readouterr()  # what was printed before the call
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def refused(outcome: tuple[int, str, str]) -> str:
    """Return the one line on stderr; the exit code must be 2."""
    code, _, err = outcome
    assert code == 2, err
    (line,) = err.splitlines()
    assert line.startswith("heterosis: error: ")
    return line
