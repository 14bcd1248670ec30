"""The menu at the end of a search, on a terminal of its own; and the flags that do without it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from heterosis.search.cli import menu
from heterosis.search.cli.common import FAILED
from heterosis.search.leaderboard.board import read_leaderboard

from ..conftest import refused

pexpect = pytest.importorskip("pexpect", reason="no pty")


@pytest.fixture
def again(study, tmp_path):
    """A copy of the study, to go on with."""
    return shutil.copytree(study, tmp_path / "again")


@pytest.fixture
def search(monkeypatch, tmp_path):
    """Call `heterosis search` on a terminal."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)

    def spawn(*words):
        code = "from heterosis.search.cli.main import main; main()"
        return pexpect.spawn(
            sys.executable,
            ["-c", code, "search", *map(str, words)],
            timeout=180,
            dimensions=(60, 250),
            encoding="utf8",
        )

    return spawn


def ended(child) -> str:
    """What was printed until the end, which must be a good one."""
    child.expect(pexpect.EOF)
    said = child.before
    child.close()
    assert child.exitstatus == 0, said
    assert "Traceback" not in said
    return said


def test_every_choice_of_the_menu_its_errors_and_ctrl_c(search, again):
    child = search("--continue", again)
    child.expect("what next")
    child.sendline("w")
    child.expect(f"heterosis show {re.escape(str(again))}")
    child.expect("items won: ")
    child.expect("what next")
    child.sendline("compare")  # the word does as well
    child.expect("with which trial or name")
    child.sendline("")
    best = read_leaderboard(again).best_parent
    child.expect(f"heterosis compare {re.escape(str(again))} winner {best}")
    child.expect(f"minus {best}, on the same")
    child.expect("what next")
    child.sendline("v")
    child.expect("with which trial or name")
    child.sendline("nobody")
    child.expect("error: .* there is no trial `nobody`")
    child.expect("what next")
    child.sendline("e")
    child.expect("directory to write")
    child.sendline("/dev/null/model")  # as a full disk: the system refuses to write
    child.expect("heterosis: error: ")
    child.expect("what next")
    child.sendline("e")
    child.expect("directory to write .exports/again.")
    child.sendline("")
    child.expect(f"heterosis export {re.escape(str(again))} --out exports/again")
    child.expect("score the same on all .* items")
    child.expect("what next")
    child.sendline("c")
    child.expect("Ctrl-D or /exit ends")
    child.expect("> ")
    child.sendline('py "ab"')
    child.expect("> ")
    child.sendline("/exit")
    child.expect("what next")
    child.sendline("z")
    child.expect("there is no choice `z`; give one of e, c, w, v, m, q")
    child.expect("what next")
    child.sendline("m")
    child.expect("how many")
    child.sendline("many")
    child.expect("error: the number of candidates must be a whole number, got 'many'")
    child.expect("what next")
    child.sendline("m")
    child.expect("how many")
    child.sendline("1")
    child.expect(f"heterosis search --continue {re.escape(str(again))} --trials 1")
    child.expect("what next")
    child.sendintr()
    ended(child)
    assert Path("exports/again/model.safetensors").is_file()
    assert sum(row.candidate.is_searched for row in read_leaderboard(again).rows) == 7


@pytest.mark.parametrize("code", [FAILED, 130])
def test_a_search_that_fails_ends_no_menu_and_one_that_is_interrupted_does(
    monkeypatch, again, code
):
    answers = iter(["m", "1", "q"])
    monkeypatch.setattr(menu, "can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))

    def run_search(_):
        sys.exit(code)

    if code == FAILED:
        menu.ask_what_next(again, run_search)
        assert next(answers, None) is None
    else:
        with pytest.raises(SystemExit):
            menu.ask_what_next(again, run_search)


def test_a_full_disk_is_an_error_and_the_menu_comes_again(monkeypatch, capsys, again):
    answers = iter(["e", "", "q"])
    monkeypatch.setattr(menu, "can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("heterosis.search.cli.export.export", full)
    menu.ask_what_next(again, lambda _: None)
    assert "heterosis: error: [Errno 28] No space left on device" in capsys.readouterr().out


@pytest.mark.slow
def test_every_choice_is_a_flag_that_replaces_the_menu(search, again):
    words = ("--show", "--compare", "base", "--export", "out", "--chat")
    child = search("--continue", again, "--trials", "1", *words)
    child.expect(f"heterosis show {re.escape(str(again))}")
    child.expect(f"heterosis compare {re.escape(str(again))} winner base")
    child.expect(f"heterosis export {re.escape(str(again))} --out out")
    child.expect("score the same on all .* items")
    child.expect("Ctrl-D or /exit ends")
    child.expect("> ")  # before the prompt the terminal would swallow the end of the input
    child.sendeof()
    assert "what next" not in ended(child)
    assert Path("out/model.safetensors").is_file()


def test_flags_do_without_a_terminal(heterosis, again, tmp_path):
    words = ("--compare", "uniform", "--export", tmp_path / "out")
    code, out, _ = heterosis("search", "--continue", again, *words)
    assert code == 0
    assert "minus uniform, on the same" in out
    assert "what next" not in out
    assert (tmp_path / "out" / "recipe.json").is_file()


def test_what_cannot_be_done_at_the_end_is_refused_at_the_start(heterosis, again, tmp_path):
    message = refused(heterosis("search", "--continue", again, "--chat"))
    assert "`search --chat` needs a terminal; without one use `heterosis chat STUDY" in message
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    message = refused(heterosis("search", "--continue", again, "--export", tmp_path / "there"))
    assert str(tmp_path / "there") in message


def test_no_menu_on_a_terminal_that_wants_none(search, again):
    assert "what next" not in ended(search("--continue", again, "--no-menu"))
