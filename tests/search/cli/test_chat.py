"""What users do with a finished study: continue, reproduce, chat, open the dashboard."""

import json
import re
import shutil
import threading
import urllib.request
from typing import Any

import pytest
import yaml
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.models.chat import ChatSettings, Conversation
from heterosis.search.models.export import export
from heterosis.search.models.licences import strictest
from heterosis.search.models.source import open_source
from heterosis.search.report.dashboard import mirrored
from heterosis.search.storage.journal import Journal
from huggingface_hub import ModelCard

from ..conftest import refused


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    return export(study, tmp_path_factory.mktemp("out") / "model").folder


def test_more_candidates_by_the_studys_own_configuration(heterosis, study, tmp_path):
    again = shutil.copytree(study, tmp_path / "again")
    code, out, _ = heterosis("search", "--continue", again, "--trials", 2)
    assert code == 0
    board = read_leaderboard(again)
    assert sum(row.candidate.is_searched for row in board.rows) == 8
    assert board.finished
    assert "what next?" not in out  # no terminal, no question


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a search needs one of CONFIG and --continue STUDY"),
        (("quickstart", "--continue", "x"), "a search needs one of CONFIG and --continue STUDY"),
        (
            ("--continue", "x", "--run-seed", 3),
            "--continue keeps the study's folder, seed and warm start",
        ),
        (("--continue", "nowhere"), "nowhere: holds no study"),
    ],
)
def test_what_cannot_be_continued(heterosis, words, message):
    assert message in refused(heterosis("search", *words))


def test_an_export_is_reproduced_to_the_bit(heterosis, exported, tmp_path):
    code, out, _ = heterosis("reproduce", exported)
    assert code == 0
    count = len(json.loads((exported / "recipe.json").read_text())["weights"])
    assert f"reproduced: all {count} tensors have the recorded SHA-256" in out
    code, out, _ = heterosis("reproduce", exported / "recipe.json", "--out", tmp_path / "again")
    assert code == 0
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_other_weights_are_reported_by_name(heterosis, exported, tmp_path):
    record = json.loads((exported / "recipe.json").read_text())
    name = sorted(record["weights"])[0]
    record["weights"][name] = "0" * 64
    record["versions"]["torch"] = "1.0"
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(record))
    code, _, err = heterosis("reproduce", path)
    assert code == 1
    assert f"1 of {len(record['weights'])} tensors differ" in err
    assert name in err
    assert "there 1.0" in err


def test_moved_and_changed_parents(heterosis, exported, tmp_path):
    record = json.loads((exported / "recipe.json").read_text())
    there, record["base"]["path"] = record["base"]["path"], str(tmp_path / "gone")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(record))
    assert "no directory" in refused(heterosis("reproduce", path))
    assert heterosis("reproduce", path, "--model", f"base={there}")[0] == 0
    other = record["parents"]["java"]["path"]
    changed = refused(heterosis("reproduce", path, "--model", f"base={other}"))
    assert "are not those of" in changed
    unknown = refused(heterosis("reproduce", path, "--model", f"bsae={there}"))
    assert "did you mean `base`?" in unknown
    assert "`--model` must be NAME=PATH" in refused(heterosis("reproduce", path, "--model", "base"))
    del record["weights"]
    path.write_text(json.dumps(record))
    assert "has no SHA-256 of the weights to compare with" in refused(heterosis("reproduce", path))


def test_the_card_is_what_the_hub_reads(study, exported):
    card: Any = ModelCard.load(exported / "README.md")
    assert "merge" in card.data.tags
    winner = read_leaderboard(study).winner
    scores = {result.dataset_name: result for result in card.data.eval_results}
    assert scores.keys() == winner.confirm_tasks.keys()
    for task, found in winner.confirm_tasks.items():
        assert scores[task].metric_value == pytest.approx(found.value, abs=1e-6)
        assert scores[task].metric_args["items"] == found.n
        assert scores[task].metric_type == "acc,none"
    assert "## Parents" in card.text
    configuration = card.text.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(configuration)["merge_method"] == "task_arithmetic"


def test_how_to_make_it_again_is_written(exported):
    text = (exported / "reproduce.md").read_text()
    record = json.loads((exported / "recipe.json").read_text())
    assert record["base"]["sha256"] in text
    assert "heterosis reproduce recipe.json --model base=DIR" in text
    assert record["base"]["path"] not in text
    (line,) = (line for line in text.splitlines() if line.startswith("pip install "))
    assert "torch==" in line
    assert "+" not in line


@pytest.mark.parametrize(
    ("licences", "chosen"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "cc-by-nc-4.0", "gpl-3.0"], "cc-by-nc-4.0"),
        (["mit", None], None),
        (["my-own", "my-own"], "my-own"),
        (["my-own", "mit"], None),
    ],
)
def test_the_strictest_licence(licences, chosen):
    assert strictest(licences) == chosen


def test_one_answer_without_a_terminal(heterosis, study):
    prompt = 'java "abc" + "d" gives '
    code, out, err = heterosis("chat", study, "--prompt", prompt, "--max-new-tokens", 4)
    assert (code, out[-1:]) == (0, "\n"), err
    source = open_source(str(study))
    model, tokenizer = source.load(), source.tokenizer
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert out.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_an_answer_takes_what_is_left_of_the_context(heterosis, study):
    code, out, err = heterosis("chat", study, "--prompt", 'java "abc" + "d" gives ')
    assert (code, out[-1:]) == (0, "\n"), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--prompt", "a", "--max-new-tokens", 128),
            r"context of 128 tokens, got \d+ and 128; shorten the prompt or use a smaller --max-",
        ),
        (("--prompt", "a" * 5000), r"context of 128 tokens, got \d+ and 1; shorten the prompt$"),
    ],
)
def test_what_does_not_fit_the_context(heterosis, study, words, message):
    line = refused(heterosis("chat", study, *words))
    assert re.search(message, line), line


@pytest.fixture(scope="module")
def talker(study):
    source = open_source(f"{study}:0")
    return source.load(), source.tokenizer


def test_turns_are_remembered_by_the_template(talker):
    model, tokenizer = talker
    assert tokenizer.chat_template is None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        heard: list[str] = []
        talk = Conversation(model, tokenizer, ChatSettings(system="ab", max_new_tokens=3))
        assert talk.reply("cd", heard.append) == "".join(heard)
        with pytest.raises(ValueError, match="use /clear to forget earlier turns"):
            talk.reply("a" * 5000, heard.append)
        talk.clear()
        with pytest.raises(ValueError, match=r"; shorten the prompt or use a smaller --max-new-to"):
            talk.reply("a" * 5000, heard.append)
    finally:
        tokenizer.chat_template = None


def test_a_system_text_needs_a_template(heterosis, study):
    outcome = heterosis("chat", study, "--prompt", "a", "--system", "b")
    assert "a system text needs a chat template" in refused(outcome)


def test_an_answer_can_be_stopped(talker):
    def stop(text: str) -> None:
        if text and "[stopped]" not in text:
            raise KeyboardInterrupt

    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        stop(text)

    Conversation(*talker, ChatSettings(max_new_tokens=60)).reply('py "ab"', hear)
    assert said[-1] == " [stopped]"


def test_the_dashboard_shows_a_copy_with_notes_and_leaves_the_study_alone(study):
    wsgi = pytest.importorskip("optuna_dashboard").wsgi
    from wsgiref.simple_server import make_server

    before = (study / "study.journal").read_bytes()
    with mirrored(study) as mirror:
        mirror.follow()
        server = make_server("127.0.0.1", 0, wsgi(mirror.storage))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/api/studies/0"
            shown = json.load(urllib.request.urlopen(url))
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
    trials = Journal(study).trials
    assert len(shown["trials"]) == len(trials)
    notes = [trial["note"]["body"] for trial in shown["trials"]]
    assert notes[0].startswith("# base\n")
    assert "search items" in notes[0]
    assert shown["note"]["body"].startswith(f"# {read_leaderboard(study).name}")
    assert (study / "study.journal").read_bytes() == before


def test_a_dashboard_follows_a_search(study, tmp_path):
    pytest.importorskip("optuna_dashboard")
    folder = shutil.copytree(study, tmp_path / "study")
    whole = (folder / "study.journal").read_bytes()
    lines = whole.splitlines(keepends=True)
    (folder / "study.journal").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    with mirrored(folder) as mirror:
        mirror.follow()
        count = len(mirror.storage.get_all_trials(0))
        (folder / "study.journal").write_bytes(whole)
        mirror.follow()
        assert len(mirror.storage.get_all_trials(0)) == count + 1
