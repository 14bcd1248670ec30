"""`heterosis merge`: what a user of mergekit types, reads and gets wrong."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from heterosis.search.cli.main import main
from heterosis.search.models.licences import Licence, licence_of
from safetensors.torch import load_file

from tests.families import tiny_family

YAML = """
merge_method: dare_ties
base_model: base
dtype: bfloat16
models:
- {model: a, parameters: {weight: [0.2, 1.0], density: 0.6}}
- {model: b, parameters: {weight: 0.4, density: 0.5}}
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> dict[str, Path]:
    return tiny_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def config(family, tmp_path) -> Path:
    """mergekit's YAML with the models beside it."""
    for name, path in family.items():
        (tmp_path / name).symlink_to(path)
    (tmp_path / "merge.yaml").write_text(YAML)
    return tmp_path / "merge.yaml"


@pytest.fixture
def merge(monkeypatch, capsys):
    """Call the command; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heterosis", "merge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def refused(outcome: tuple[int, str, str], code: int = 2) -> str:
    """The one line of a refusal."""
    assert outcome[0] == code, outcome
    (line,) = outcome[2].splitlines()
    assert line.startswith("heterosis: error: ")
    return line


def test_a_merge_says_what_it_did_and_what_is_not_as_in_mergekit(merge, config):
    out = config.parent / "out"
    code, said, err = merge(config, "--out", out)
    assert (code, err) == (0, "")
    lines = said.splitlines()
    assert lines[:3] == [f"{name}: {config.parent / name}" for name in ("base", "a", "b")]
    assert lines[3].startswith("recipe: dare_ties | a 0.53 (0.20..1.00) drop 0.40 | b 0.40")
    assert sum(line.startswith("note: ") for line in lines) == 4
    assert lines[-1].startswith(f"wrote {out}: 0.1 MB in 1 weight file, ")
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "recipe.json", "mergekit_config.yml", "config.json", "model.safetensors"),
        *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        "chat_template.jinja",
    }


def test_the_card_names_models_and_differences_but_no_places(merge, config):
    for name in ("base", "a", "b"):
        (config.parent / name).unlink()
    config.write_text(YAML)
    family = tiny_family(config.parent)
    for path in family.values():
        (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")
    merge(config, "--out", config.parent / "mine")
    card = (config.parent / "mine" / "README.md").read_text()
    assert "base_model" not in card.partition("# mine")[0]
    assert "license: apache-2.0\n" in card
    assert "All of them are under apache-2.0." in card
    assert "- a: `a` (licence: apache-2.0, identified by its weights: SHA-256 " in card
    assert "## Differences from mergekit's result for `merge.yaml`" in card
    assert str(config.parent) not in card


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n", Licence("mit")),
        ("no front matter", None),
        ("---\nlicense: [a]\n---\n", None),
        ("---\na: [\n---\n", None),
        ("text\n---\nlicense: mit\n---\n", None),
    ],
)
def test_licences_are_read_from_cards(tmp_path, text, licence):
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == licence


def test_its_record_merges_again_to_the_same_bytes(merge, config):
    folder = config.parent
    merge(config, "--out", folder / "one", "--mask-seed", 5)
    for source in ("one", "one/recipe.json"):
        out = folder / f"again{len(source)}"
        code, said, _ = merge(folder / source, "--out", out)
        assert (code, "note:" in said) == (0, False)
        assert (out / "model.safetensors").read_bytes() == (
            folder / "one" / "model.safetensors"
        ).read_bytes()


def test_options(merge, config):
    out = config.parent / "out"
    options = ("--max-shard-size", "50KB", "--dtype", "float32", "--device", "cpu")
    code, said, _ = merge(config, "-o", out, *options, "--tokenizer", "union")
    assert code == 0
    assert "weight files, " in said
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {
        torch.float32
    }


def test_what_mergekit_has_no_words_for_is_said(merge, config):
    folder = config.parent
    merge(config, "--out", folder / "one")
    path = folder / "one" / "recipe.json"
    record = json.loads(path.read_text())
    record["recipe"]["coefficients"]["embed"]["method"] = "ties"
    path.write_text(json.dumps(record))
    code, said, _ = merge(path, "--out", folder / "two")
    assert code == 0
    assert said.splitlines()[-1] == (
        "no mergekit_config.yml: mergekit cannot express this recipe (recipe.json says why)"
    )
    assert not (folder / "two" / "mergekit_config.yml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("merge_method", "merge_metod"),
            "unknown key `merge_metod`; did you mean `merge_method`?",
        ),
        (("dare_ties", "dare_tie"), "`dare_tie` is unknown; did you mean `dare_ties`?"),
        (("density", "densty"), "models[0].parameters: unknown key `densty`; did you mean"),
        (("weight: 0.4", "weight: .nan"), "models[1].parameters.weight must be a finite number"),
        (("{model: b", "{model: nowhere"), "nowhere: no directory nowhere in "),
        (("{model: b", "{model: no/where"), "the hub id no/where is not in the local cache"),
        (("dtype: bfloat16", "dtype: int8"), "`dtype` must be one of float32, bfloat16, float16"),
        (("density: 0.5", "density: [0.5"), "not readable as YAML: "),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(merge, config, change, message):
    config.write_text(YAML.replace(*change))
    line = refused(merge(config, "--out", config.parent / "out"))
    assert message in line
    assert not (config.parent / "out").exists()


def test_wrong_options_are_one_line(merge, config):
    out = config.parent / "out"
    assert "no such file" in refused(merge(config.parent / "no.yaml", "--out", out))
    assert "is not empty" in refused(merge(config, "--out", config.parent))
    for option, value, message in (
        ("--max-shard-size", "5", "must be a size such as `5GB`"),
        ("--dtype", "int4", "`dtype` must be one of float32, bfloat16, float16"),
        ("--dtype", "bf16", "got 'bf16'; did you mean `bfloat16`?"),
        ("--tokenizer", "unoin", "or left out, got 'unoin'; did you mean `union`?"),
        ("--device", "cuda:9", "`device` must be cpu or a device that torch supports here"),
        ("--tokenizer", "both", "`tokenizer` must be base, union or left out"),
        ("--mask-seed", 2**64, "`mask_seed` must be an integer in [0, 2**64)"),
    ):
        assert message in refused(merge(config, "--out", out, option, value))
    assert not out.exists()


def test_a_truncated_parent_is_one_line(merge, config):
    cut = config.parent / "cut"
    cut.mkdir()
    for path in (config.parent / "b").iterdir():
        data = path.read_bytes()
        (cut / path.name).write_bytes(data[:-100] if path.suffix == ".safetensors" else data)
    config.write_text(YAML.replace("{model: b", "{model: cut"))
    assert "parent cut: " in refused(merge(config, "--out", config.parent / "out"))


def test_a_merge_that_overflows_fails_with_code_1(merge, config):
    config.write_text(YAML.replace("bfloat16", "float16").replace("0.4", "1.0e8"))
    line = refused(merge(config, "--out", config.parent / "out"), code=1)
    assert "holds NaN or infinity in float16; use smaller weights" in line


def test_ctrl_c_says_so_and_leaves_nothing(merge, config, monkeypatch):
    from heterosis.merge.files import writer

    write = writer._write_tensor

    def interrupted(file, weight):
        write(file, weight)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(writer, "_write_tensor", interrupted)
    line = refused(merge(config, "--out", config.parent / "out"), code=130)
    assert line.endswith("interrupted; nothing was written")
    assert sorted(p.name for p in config.parent.iterdir()) == ["a", "b", "base", "merge.yaml"]


def test_a_full_disk_says_so_and_leaves_nothing(merge, config):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        outcome = merge(config, "--out", config.parent / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = refused(outcome, code=1)
    assert line.endswith("File too large; nothing was written")
    assert not (config.parent / "out").exists()


def test_help_is_instant_and_says_where_paths_are_taken_from():
    code = "import sys; sys.argv = ['heterosis', 'merge', '--help']\n"
    code += "import heterosis.search.cli.main as cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'yaml' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False False"
    assert "RECIPE's directory, then from the working directory" in " ".join(run.stdout.split())
