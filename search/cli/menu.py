"""What happens after a complete search: the actions of its flags, or a menu.

The menu needs a terminal for input and output, and no CI. Each choice is also a flag of `heterosis
search` and a command of its own, which is printed.
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

from .common import FAILED

if TYPE_CHECKING:
    from ..config.config import Config

CHOICES = {
    "e": ("export", "export the winner"),
    "c": ("chat", "chat with the winner"),
    "w": ("show", "show the winner: its recipe, and the items it won and lost"),
    "v": ("compare", "compare the winner with another candidate or baseline"),
    "m": ("more", "search more candidates"),
    "q": ("quit", "quit"),
}
"""Key -> the word that also chooses it, and its meaning."""


def can_ask() -> bool:
    """Return whether a user can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


@dataclass(frozen=True)
class EndActions:
    """Actions after a search that were requested by flags.

    Attributes:
        show: Whether to show the winner.
        compare: Trial or name to compare the winner with.
        export: Directory to export the winner to.
        chat: Whether to chat with the winner.
    """

    show: bool = False
    compare: str | None = None
    export: Path | None = None
    chat: bool = False

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return self != EndActions()

    def check(self) -> None:
        """Refuse before the search what would fail after it.

        Raises:
            ValueError: If the directory cannot be written to, or there is no terminal to chat on.
        """
        if self.chat and not sys.stdin.isatty():
            raise ValueError(
                "`search --chat` needs a terminal; without one use "
                "`heterosis chat STUDY --prompt TEXT` after the search"
            )
        if self.export is not None:
            from ...merge.files.writer import check_goal

            check_goal(self.export)

    def run(self, study: Path) -> None:
        """Run the actions in the order of the attributes."""
        if self.show:
            _show(study)
        if self.compare is not None:
            _compare(study, self.compare)
        if self.export is not None:
            _export(study, self.export)
        if self.chat:
            _chat(study)


def ask_what_next(study: Path, run: Callable[[Config], None]) -> None:
    """Show the menu until the user quits; does nothing if no user can answer.

    An error is printed and the menu shown again: the study is safe on disk.

    Args:
        study: Results folder of the study.
        run: Runs a search.
    """
    while can_ask():
        try:
            if not _ask(study, run):
                return
        except (KeyboardInterrupt, EOFError):
            typer.echo()
            return
        except typer.Exit:  # a search that ended early has said so
            continue
        except SystemExit as ended:  # and so has one that failed
            if ended.code != FAILED:
                raise
        except (ValueError, RuntimeError, OSError) as error:
            typer.echo(f"heterosis: error: {error}")


def _ask(study: Path, run: Callable[[Config], None]) -> bool:
    """Ask once and run the choice; return whether to ask again."""
    for key, (_, meaning) in CHOICES.items():
        typer.echo(f"  {key}  {meaning}")
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
        _more(study, input("how many? [50] ").strip() or "50", run)
    return key != "q"


def _export(study: Path, out: Path) -> None:
    from .export import export

    _print_command("export", study, "--out", str(out))
    export(study, out)


def _chat(study: Path) -> None:
    from .chat import chat

    _print_command("chat", study)
    chat(study)


def _show(study: Path) -> None:
    from .show import show

    _print_command("show", study)
    show(study)


def _compare(study: Path, other: str | None) -> None:
    """Compare the winner with another; None: with the best parent."""
    from ..leaderboard.board import read_leaderboard
    from ..leaderboard.compare import WINNER
    from .show import compare

    other = other or read_leaderboard(study).best_parent
    if other is None:
        raise ValueError(f"{study}: no parent is confirmed; name a trial to compare with")
    _print_command("compare", study, WINNER, other)
    compare(str(study), WINNER, other)


def _more(study: Path, count: str, run: Callable[[Config], None]) -> None:
    from ..study.resume import continued

    if not count.isdigit():
        raise ValueError(f"the number of candidates must be a whole number, got {count!r}")
    _print_command("search --continue", study, "--trials", count)
    run(continued(study, int(count)))


def _print_command(name: str, study: Path, *words: str) -> None:
    """Print the command that does the same."""
    typer.echo(f"heterosis {name} {shlex.join([str(study), *words])}")
