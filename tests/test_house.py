"""The rooms' import rules, and what importing the command line may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("search", "merge", "evals")
MAY_IMPORT = {"search": {"search", "merge", "evals"}, "merge": {"merge"}, "evals": {"evals"}}


def rooms_imported(path: Path, room: str) -> set[str]:
    """Rooms that a file imports, relatively or by the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1:
                found.add(room)
            elif node.level == 2:
                found.add(module.split(".")[0] or "?")
            elif module.startswith("heterosis"):
                found.add([*module.split("."), "?"][1])
            assert node.level <= 2, f"{path} imports from outside the rooms"
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("heterosis")]
            found |= {[*name.split("."), "?"][1] for name in names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    files = list((ROOT / room).glob("**/*.py"))
    assert files
    for path in files:
        assert rooms_imported(path, room) <= MAY_IMPORT[room], path


def test_every_file_opens_by_saying_what_it_knows():
    for room in ROOMS:
        for path in (ROOT / room).glob("**/*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path


HEAVY = ("torch", "transformers", "lm_eval", "datasets", "optuna", "scipy", "numpy", "pandas")


@pytest.mark.parametrize("module", ["heterosis.search.cli", "heterosis.search.config"])
def test_importing_the_command_line_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_leaderboard_imports_no_torch():
    code = "import sys, heterosis.search.leaderboard; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
