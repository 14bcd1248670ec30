"""The menu at the end of a search on a terminal; each choice is a command, too.

Asks only where a person can answer: standard input and output are terminals, and no CI is set.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .terminal import console, say

if TYPE_CHECKING:
    from .config import Config

CHOICES = {
    "e": "export the winner",
    "c": "chat with the winner",
    "w": "show the winner: its recipe, and the questions it won and lost",
    "m": "more candidates",
    "q": "quit",
}


def can_ask() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI")


def ask_what_next(study: Path, run: Callable[[Config], None]) -> None:
    """Ask until the person quits; does nothing where nobody can answer.

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
        except (ValueError, RuntimeError) as error:  # told, and asked again: nothing is lost
            say(console(), f"heterosis: error: {error}")


def _next(study: Path, run: Callable[[Config], None]) -> bool:
    """Do one thing that is chosen; return whether to ask again."""
    screen, where = console(), shlex.quote(str(study))
    for key, meaning in CHOICES.items():
        say(screen, f"  {key}  {meaning}")
    choice = input("what next? [q] ").strip().lower() or "q"
    if choice == "q":
        return False
    if choice == "e":
        from .cli import export

        out = input(f"directory to write [exports/{study.name}] ") or f"exports/{study.name}"
        say(screen, f"heterosis export {where} --out {shlex.quote(out)}")
        export(study, Path(out))
    elif choice == "c":
        from .morning_commands import chat

        say(screen, f"heterosis chat {where}")
        chat(study)
    elif choice == "w":
        from .show_commands import show

        say(screen, f"heterosis show {where}")
        show(study)
    elif choice == "m":
        more = _whole(input("how many? [50] ") or "50")
        say(screen, f"heterosis search --continue {where} --trials {more}")
        from .continuing import continued

        run(continued(study, more))
    return True


def _whole(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"a number of candidates is a whole number, got {text!r}")
    return int(text)
