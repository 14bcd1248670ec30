"""Which room may import which, which words are used, what importing the command line costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MERGE, EVALS = "merge", "evals"
MOST_FILES = 15
"""In one folder, beside its `__init__.py`."""
ARROWS: dict[str, tuple[str, ...]] = {
    "search/cli": ("search/run", "search/check", "search/report", "search/models"),
    "search/run": ("search/report", "search/leaderboard", "search/study"),
    "search/check": ("search/parents_summary", "search/study"),
    "search/report": ("search/leaderboard",),
    "search/models": ("search/leaderboard",),
    "search/leaderboard": ("search/study",),
    "search/study": ("search/gradient",),
    "search/gradient": ("search/propose", "search/evaluate"),
    "search/propose": ("search/storage", "search/config", "search/format"),
    "search/evaluate": ("search/storage", "search/config", "search/format"),
    "search/parents_summary": ("search/config",),
    "search/storage": (),
    "search/config": (),
    "search/format": (),
    "merge/files": ("merge/engine", "merge/mergekit"),
    "merge/gradient": ("merge/engine",),
    "merge/engine": ("merge/kernels",),
    "merge/kernels": ("merge/statistics",),
    "merge/statistics": ("merge/parents",),
    "merge/parents": ("merge/recipe", "merge/blocks"),
    "merge/mergekit": ("merge/recipe", "merge/strict_yaml"),
    "merge/recipe": ("merge/hints",),
    "merge/blocks": (),
    "merge/hints": (),
    "merge/strict_yaml": (),
    "evals/lm_eval_run": ("evals/tasks",),
    "evals/gradient": ("evals/scorer",),
    "evals/scorer": ("evals/tasks",),
    "evals/tasks": ("evals/scores",),
    "evals/stats": ("evals/scores",),
    "evals/scores": ("evals/quiet",),
    "evals/quiet": (),
}
"""Sub-room -> the sub-rooms right below it. It may import these and all below them."""
GROUND = ("search/storage", "search/config", "search/format")
"""Every other sub-room of search may import these, the merge room and the evals room."""


def below(room: str) -> set[str]:
    """All sub-rooms that one may import."""
    reached: set[str] = set()
    waiting = [room]
    while waiting:
        for lower in ARROWS[waiting.pop()]:
            if lower not in reached:
                reached.add(lower)
                waiting.append(lower)
    return reached


def files_of(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        yield from (ROOT / room).rglob("*.py")


def module_file(parts: tuple[str, ...]) -> Path | None:
    """The file of a module below the package `heterosis`, if it is one."""
    path = ROOT.joinpath(*parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported_files(path: Path) -> set[Path]:
    """Our files that a file imports anywhere: at its top, in a function, for types alone."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = tuple((node.module or "").split(".")) if node.module else ()
            if not node.level and module[:1] != ("heterosis",):
                continue
            assert node.level <= len(path.relative_to(ROOT).parts), f"{path} leaves the package"
            module = module if node.level else module[1:]
            for name in node.names:
                file = module_file((*base, *module, name.name)) or module_file((*base, *module))
                assert file is not None, f"{path}: line {node.lineno}"
                files.add(file)
        elif isinstance(node, ast.Import):
            assert not [n for n in node.names if n.name.startswith("heterosis")], path
    return files - {path}


def sub_room(path: Path) -> str:
    """`search/study` of a file in it, `search/run` of the file run.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[:2])


IMPORTS = {path: imported_files(path) for path in files_of("search", MERGE, EVALS)}


@pytest.mark.parametrize("room", ARROWS)
def test_sub_rooms_import_only_what_lies_below(room):
    files = [path for path in IMPORTS if sub_room(path) == room]
    assert files
    allowed = below(room) | {room}
    for path in files:
        for target in IMPORTS[path]:
            other = sub_room(target)
            is_ground = room.startswith("search/") and room not in GROUND and other in GROUND
            is_library = room.startswith("search/") and not other.startswith("search/")
            assert other in allowed or is_ground or is_library, (path, target)


def test_every_sub_room_is_in_the_table():
    rooms = {sub_room(path) for path in IMPORTS}
    assert rooms - {f"{room}/__init__" for room in ("search", MERGE, EVALS)} == {
        *ARROWS,
        "search/__main__",
    }


def test_no_circle_between_files_nor_between_sub_rooms():
    TopologicalSorter(IMPORTS).prepare()
    TopologicalSorter(ARROWS).prepare()


def test_no_folder_has_too_many_files():
    for folder in {path.parent for path in IMPORTS}:
        assert len([f for f in folder.glob("*.py") if f.stem != "__init__"]) <= MOST_FILES, folder


def test_every_file_opens_by_saying_what_it_knows():
    for path in IMPORTS:
        assert ast.get_docstring(ast.parse(path.read_text())), path


DIALECT = (
    r"whom",
    r"alike",
    r"so many",
    r"(is|be|are|was) had",
    r"in flight",
    r"flights?",
    r"taken apart",
    r"takes? .{1,20} apart",
    r"dissections?",
    r"(ends?|end of) the night",
    r"(is|are|was|were) told",
    r"told (by|apart)",
    r"(has|have) met",
    r"lands|landed",
    r"rivals?",
    r"none such",
    r"held against",
    r"a person",
    r"kept true",
    r"judged",
    r"stands? (in|for|beside|there)",
    r"honou?red",
    r"begun with",
    r"such in all",
)
"""What this project used to say in place of the field's words: docs/glossary.md has those."""
PROSE = ("*.py", "*.md", "*.j2", "*.js", "*.yaml")
QUOTED = {"CHANGELOG.md", "test_house.py", "snippets.py"}
"""Files that quote old words, or generate tasks from a fixed list of words."""


def prose_files() -> Iterator[Path]:
    for folder in ("search", MERGE, EVALS, "docs", "tests", "benchmarks", "configs"):
        for pattern in PROSE:
            yield from (p for p in (ROOT / folder).rglob(pattern) if "vendor" not in p.parts)
    yield from ROOT.glob("*.md")


def test_files_use_the_words_of_the_field():
    pattern = re.compile(rf"\b({'|'.join(DIALECT)})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in prose_files()
        if path.name not in QUOTED
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_path_on_the_map_exists():
    text = (ROOT / "docs/map.md").read_text()
    paths = set(re.findall(r"\b(?:search|merge|evals|tests|docs)/[\w/]+(?:\.py|/)", text))
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


HEAVY = ("torch", "transformers", "lm_eval", "datasets", "optuna", "scipy", "numpy", "pandas")


@pytest.mark.parametrize("module", ["heterosis.search.cli.main", "heterosis.search.config.load"])
def test_importing_the_command_line_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_leaderboard_imports_no_torch():
    code = "import sys, heterosis.search.leaderboard.board; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
