"""What a person does with a winner as soon as its search has ended: by flags, or by a menu.

The menu asks only where a person can answer: standard input and output are terminals, and no CI is
set. Each of its choices is a flag of `heterosis search`, and a command; it says which.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .common import FAILED, console, say

if TYPE_CHECKING:
    from ..config.config import Config

CHOICES = {
    "e": ("export", "export the winner"),
    "c": ("chat", "chat with the winner"),
    "w": ("show", "show the winner: its recipe, and the questions it won and lost"),
    "v": ("compare", "compare the winner with another candidate or baseline"),
    "m": ("more", "more candidates"),
    "q": ("quit", "quit"),
}
"""Key -> word that does as well, and what it does."""


def can_ask() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


@dataclass(frozen=True)
class EndActions:
    """What is to be done after a search without being asked.

    Attributes:
        show: Whether to show the winner.
        compare: Trial or name to compare the winner with.
        export: Directory to write the winner to.
        chat: Whether to chat with it.
    """

    show: bool = False
    compare: str | None = None
    export: Path | None = None
    chat: bool = False

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self != EndActions()

    def check(self) -> None:
        """Refuse before the search what could not be done after it.

        Raises:
            ValueError: If the directory cannot be written to, or there is nobody to chat with.
        """
        if self.chat and not sys.stdin.isatty():
            raise ValueError(
                "`search --chat` talks on a terminal; without one use "
                "`heterosis chat STUDY --prompt TEXT` after the search"
            )
        if self.export is not None:
            from ...merge.files.writer import check_goal

            check_goal(self.export)

    def fulfil(self, study: Path) -> None:
        """Do them, in the order of the attributes."""
        if self.show:
            _show(study)
        if self.compare is not None:
            _compare(study, self.compare)
        if self.export is not None:
            _export(study, self.export)
        if self.chat:
            _chat(study)


def ask_what_next(study: Path, run: Callable[[Config], None]) -> None:
    """Ask until the person quits; does nothing where nobody can answer.

    What goes wrong is told, and asked again: the study lies on the disk.

    Args:
        study: The study's results folder.
        run: Goes on with a search.
    """
    while can_ask():
        try:
            if not _next(study, run):
                return
        except (KeyboardInterrupt, EOFError):
            sys.stdout.write("\n")
            return
        except typer.Exit:  # a search that was ended early has said so
            continue
        except SystemExit as ended:  # one that failed, too
            if ended.code != FAILED:
                raise
        except (ValueError, RuntimeError, OSError) as error:
            say(console(), f"heterosis: error: {error}")


def _next(study: Path, run: Callable[[Config], None]) -> bool:
    """Do one thing that is chosen; return whether to ask again."""
    screen = console()
    for key, (_, meaning) in CHOICES.items():
        say(screen, f"  {key}  {meaning}")
    choice = input("what next? [q] ").strip().lower() or "q"
    key = next((key for key, (word, _) in CHOICES.items() if choice in (key, word)), None)
    if key is None:
        raise ValueError(f"there is no choice `{choice}`; give one of {', '.join(CHOICES)}")
    if key == "e":
        out = input(f"directory to write [exports/{study.name}] ") or f"exports/{study.name}"
        _export(study, Path(out))
    elif key == "c":
        _chat(study)
    elif key == "w":
        _show(study)
    elif key == "v":
        _compare(study, input("with which trial or name? [best parent] ").strip() or None)
    elif key == "m":
        _more(study, _whole(input("how many? [50] ") or "50"), run)
    return key != "q"


def _export(study: Path, out: Path) -> None:
    from .export import export

    _say_command("export", study, "--out", str(out))
    export(study, out)


def _chat(study: Path) -> None:
    from .chat import chat

    _say_command("chat", study)
    chat(study)


def _show(study: Path) -> None:
    from .show import show

    _say_command("show", study)
    show(study)


def _compare(study: Path, other: str | None) -> None:
    """Compare the winner with another; None: with the best parent."""
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import WINNER
    from .show import compare

    with_whom = other or read_leaderboard(study).best_parent
    if with_whom is None:
        raise ValueError(f"{study}: no parent has been confirmed; name whom to compare with")
    _say_command("compare", study, WINNER, with_whom)
    compare(str(study), WINNER, with_whom)


def _more(study: Path, count: int, run: Callable[[Config], None]) -> None:
    from ..study.resume import continued

    _say_command("search --continue", study, "--trials", str(count))
    run(continued(study, count))


def _say_command(name: str, study: Path, *words: str) -> None:
    """Print the command that does the same."""
    say(console(), f"heterosis {name} {shlex.join([str(study), *words])}")


def _whole(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"a number of candidates is a whole number, got {text!r}")
    return int(text)
