"""Cards of merges, as the hub and mergekit's users read them: lineage, licences, configuration."""

from typing import Any

import pytest
import yaml
from heterosis.search.models.licences import Licence, kept_files, licence_of
from heterosis.search.models.reproduce import _packages
from huggingface_hub import ModelCard

from tests.families import tiny_family

APACHE = "\n                      Apache License\n             Version 2.0, January 2004\n\nTERMS\n"
MIT = "MIT License\n\nCopyright (c) 2026 somebody\n"
OWN = "---\nlicense: other\nlicense_name: my-own-1.0\n---\n"
YAML = """
merge_method: {method}
base_model: {base}
dtype: float32
models:
- {{model: {a}, parameters: {{weight: 0.25, density: 0.5}}}}
- {{model: {b}, parameters: {{weight: 0.5, density: 0.5}}}}
"""


@pytest.fixture
def models(tmp_path):
    """Base, a and b in folders of these names."""
    return tiny_family(tmp_path / "models")


@pytest.fixture
def merged(heterosis, tmp_path):
    """Merge by the command; return the directory and its card."""

    def call(models, method="dare_ties") -> tuple[Any, Any]:
        source, out = tmp_path / "merge.yaml", tmp_path / "out"
        source.write_text(YAML.format(method=method, **models))
        code, _, err = heterosis("merge", source, "--out", out)
        assert code == 0, err
        return out, ModelCard.load(out / "README.md")

    return call


def in_cache(path, hub_id):
    """The same model where the hub's client keeps it."""
    goal = path.parent / f"models--{hub_id.replace('/', '--')}" / "snapshots" / ("0" * 40)
    goal.parent.mkdir(parents=True)
    path.rename(goal)
    return goal


def test_folders_are_no_lineage_on_the_hub_and_are_identified_by_their_weights(models, merged):
    _, card = merged(models)
    assert card.data.get("base_model") is None
    assert card.data.get("base_model_relation") is None
    assert card.data.tags[0] == "merge"
    assert "- a: `a` (licence: not stated, identified by its weights: SHA-256 " in card.text


def test_models_of_the_hub_are_lineage(models, merged):
    models["a"] = in_cache(models["a"], "some-org/a-1b")
    _, card = merged(models)
    assert card.data.base_model == ["some-org/a-1b"]
    assert card.data.base_model_relation == "merge"
    assert "`some-org/a-1b` (licence: not stated)" in card.text


def test_mergekits_configuration_names_models_and_no_places(models, merged, tmp_path):
    models["a"] = in_cache(models["a"], "some-org/a-1b")
    _, card = merged(models)
    text = card.text.partition("```yaml\n")[2].partition("```")[0]
    found = yaml.safe_load(text)
    assert found["merge_method"] == "dare_ties"
    assert found["base_model"] == "base"
    assert [m["model"] for m in found["models"] if m["model"] != "base"] == ["some-org/a-1b", "b"]
    assert str(tmp_path) not in card.text
    assert "Replace base, b by your own directories." in card.text


def test_a_recipe_that_mergekit_has_no_words_for_says_why(models, merged, monkeypatch):
    monkeypatch.setattr("heterosis.merge.files.export.write_mergekit", _no_words)
    _, card = merged(models)
    assert "mergekit cannot express this recipe (it rhymes)" in card.text


def _no_words(*_, **__):
    from heterosis.merge.files.export import InexpressibleError

    raise InexpressibleError("it rhymes")


def test_a_licence_of_its_own_is_written_as_the_hub_wants_it(models, merged):
    for path in models.values():
        (path / "README.md").write_text(OWN)
        (path / "LICENSE.md").write_text("My own licence")
    out, card = merged(models)
    assert (card.data.license, card.data.license_name) == ("other", "my-own-1.0")
    assert card.data.license_link == "LICENSE.md"
    assert (out / "LICENSE.md").read_text() == "My own licence"
    assert "All of them are under my-own-1.0." in card.text


def test_a_link_on_the_network_stays_and_one_to_a_file_leads_to_the_hub(models, merged):
    linked = OWN.replace("1.0\n---", "1.0\nlicense_link: {}\n---")
    for path in models.values():
        (path / "README.md").write_text(linked.format("https://example.org/licence"))
    out, card = merged(models)
    assert card.data.license_link == "https://example.org/licence"
    for path in models.values():
        (path / "README.md").write_text(linked.format("LICENSE"))
    models["base"] = in_cache(models["base"], "some-org/base")
    for path in out.iterdir():
        path.unlink()
    _, card = merged(models)
    assert card.data.license_link == "https://huggingface.co/some-org/base/blob/main/LICENSE"


def test_a_licence_is_identified_by_the_title_of_its_file(models, merged):
    for path in models.values():
        (path / "LICENSE").write_text(APACHE)
    (models["b"] / "LICENSE").write_text(MIT)
    out, card = merged(models)
    assert card.data.license == "apache-2.0"
    assert "`b` (licence: mit," in card.text
    assert (out / "LICENSE").read_text() == APACHE
    assert (out / "LICENSE-b").read_text() == MIT


def test_a_file_of_another_title_is_pointed_at_and_not_guessed(models, merged):
    for path in models.values():
        (path / "LICENSE").write_text("Somebody's agreement; not the Apache License, Version 2.0")
    _, card = merged(models)
    assert card.data.get("license") is None
    assert "licence: not named; see its LICENSE" in card.text
    assert "because base, a and b do not name one: ask the authors" in card.text


def test_one_model_without_a_licence_is_named(models, merged):
    for name in ("base", "a"):
        (models[name] / "LICENSE").write_text(MIT)
    _, card = merged(models)
    assert "because b does not name one: ask the authors" in card.text


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"LICENSE": APACHE}, Licence("apache-2.0")),
        ({"LICENSE": APACHE, "NOTICE": "MIT License"}, Licence("apache-2.0")),
        ({"LICENSE": APACHE, "LICENSE.txt": MIT}, None),
        ({"COPYING": "  GNU GENERAL PUBLIC LICENSE\n   Version 3, 29"}, Licence("gpl-3.0")),
        ({"LICENSE": "# META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n"}, Licence("llama3")),
        ({"LICENSE": "Creative Commons Attribution 4.0 International\n"}, Licence("cc-by-4.0")),
        ({"LICENSE": APACHE, "README.md": "---\nlicense: mit\n---\n"}, Licence("mit")),
        ({"LICENSE": APACHE, "README.md": "---\nlicense: other\n---\n"}, None),
        ({"LICENSE": APACHE, "README.md": "---\nlicense: unknown\n---\n"}, None),
        ({"LICENSE": APACHE, "README.md": "---\ntags: [x]\n---\n"}, Licence("apache-2.0")),
        (
            {"README.md": "---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\n---\n"},
            Licence("x", is_own=True, link="LICENSE"),
        ),
        ({"LICENSE": b"\xff\xfe\x00"}, None),
        ({}, None),
    ],
)
def test_what_a_folder_states(tmp_path, files, licence):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert licence_of(tmp_path) == licence


def test_files_of_one_name_and_other_texts_are_all_kept(tmp_path):
    folders = {name: tmp_path / name for name in ("base", "a", "b", "c")}
    for name, text in (("base", "x"), ("a", "x"), ("b", "y")):
        folders[name].mkdir()
        (folders[name] / "NOTICE.txt").write_text(text)
    folders["c"].mkdir()
    assert kept_files(folders) == {"NOTICE.txt": "x", "NOTICE-b.txt": "y"}


def test_requirements_name_versions_that_the_index_has():
    told = _packages({"torch": "2.13.0+cpu", "safetensors": "0.5.0"})
    assert told == (
        "torch==2.13.0 safetensors==0.5.0",
        "\n\nBuilds used: torch 2.13.0+cpu.",
    )
    assert _packages({"torch": "2.13.0"}) == ("torch==2.13.0", "")
