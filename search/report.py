"""A study as one HTML page that needs no network, and the page that lists studies.

Knows rows, templates and the vendored scripts in ``pages``; computes no statistics. What a person
named (parents, tasks, the study) and what an error says is escaped: by the template where it is
text, by `_embedded` where it is data of the plots.
"""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evals.comparison import Difference
from .format import duration, score
from .journal import Journal
from .leaderboard import Leaderboard, read_leaderboard
from .report_data import failures, in_points, kind_of, plots
from .report_table import (
    Columns,
    bare,
    difference_cell,
    score_cell,
    shown_rows,
    with_interval,
)
from .views import luck_lines, verdict_sentence, write_whole

REPORT, INDEX = "report.html", "index.html"
PLOTS, TABLES = "plotly-cartesian.min.js", "dataTables.min.js"


def write_report(
    board: Leaderboard, begun: Mapping[str, Any], out: Path | None = None, drawn: str | None = None
) -> Path:
    """Write a study's page, whole or not at all.

    Args:
        board: What to show.
        begun: The study's manifest.
        out: The file; default: ``report.html`` in the study's folder.
        drawn: When it was drawn; default: now.
    """
    path = out or board.folder / REPORT
    write_whole(path, page(board, begun, drawn))
    return path


def draw(folder: Path, out: Path | None = None) -> tuple[Leaderboard, Path]:
    """Read a study and write its page.

    Raises:
        StudyError: If there is no study in the folder, or it has not begun, or it is damaged.
    """
    board = read_leaderboard(folder)
    return board, write_report(board, Journal(folder).begun, out)


def page(board: Leaderboard, begun: Mapping[str, Any], drawn: str | None = None) -> str:
    """The page of a study: verdict, table, plots, failures, and how to do it again."""
    shown, columns = shown_rows(board.rows), Columns.of(board)
    return _render(
        "report.html.j2",
        title=board.name,
        finished=board.finished,
        drawn=drawn or _now(),
        sentences=[verdict_sentence(board), *interval_sentences(board)],
        luck=list(luck_lines(board)),
        told=_told(board),
        figures=list(_figures(board)),
        objective=board.objective.phrase,
        points=columns.points,
        confirmed=columns.confirmed,
        head=columns.head,
        rows=[(kind_of(board, row), columns.cells(row)) for row in shown],
        left_out=len(board.rows) - len(shown),
        failures=failures(board),
        facts=_facts(begun),
        commands=_commands(board),
        config=yaml.safe_dump(begun.get("config", {}), sort_keys=False, allow_unicode=True),
        data=_embedded({**plots(board), "finished": board.finished}),
        scripts=[script(PLOTS), script(TABLES), _text("report.js")],
    )


def index_page(entries: Sequence[Mapping[str, Any]], drawn: str | None = None) -> str:
    """The page that lists studies.

    Args:
        entries: Of each study, from `index_entry`, or ``{"name", "error"}``.
        drawn: When; default: now.
    """
    return _render(
        "index.html.j2",
        title="Studies",
        drawn=drawn or _now(),
        entries=entries,
        data=_embedded({}),
        scripts=[script(TABLES), _text("report.js")],
    )


def index_entry(board: Leaderboard, link: str) -> dict[str, Any]:
    """One line of the page that lists studies."""
    winner, baseline = board.winner, board.best_baseline
    return {
        "name": board.name,
        "link": link,
        "state": "finished" if board.finished else "unfinished",
        "verdict": verdict_sentence(board),
        "winner": winner.candidate.name if winner else "-",
        "confirm": score_cell(winner.confirm if winner else None),
        "baseline": score_cell(baseline.confirm if baseline else None),
        "to_parent": difference_cell(winner.to_parent if winner else None, in_points(board)),
        "candidates": sum(row.candidate.is_searched for row in board.rows),
    }


def interval_sentences(board: Leaderboard) -> Iterator[str]:
    """By how much the winner is above the best parent and the uniform merge, with intervals."""
    winner = board.winner
    if winner is None:
        return
    for found, other in (
        (winner.to_parent, f"the best parent ({bare(board.best_parent)})"),
        (winner.to_uniform, "the uniform merge"),
    ):
        if found is not None:
            yield (
                f"{_above(found)} {other} by {with_interval(found, in_points(board), sign=False)} "
                f"on {found.n} unseen items (95 % interval, paired)."
            )


def _above(found: Difference) -> str:
    if found.low > 0:
        return "It beats"
    return "It loses to" if found.high < 0 else "It is not told apart from"


def _told(board: Leaderboard) -> str:
    """What was done, for someone who has never seen such a page."""
    whole = [r.candidate for r in board.rows if r.search is not None and not r.candidate.raced]
    parents = [bare(r.candidate.name) for r in board.rows if r.candidate.kind == "parent"]
    tried = sum(row.candidate.is_searched for row in board.rows)
    items = max((c.items for c in whole), default=0)
    again = board.winner.confirm.n if board.winner and board.winner.confirm else 0
    text = f"{tried} merges of {', '.join(sorted(parents)) or 'the parents'} were tried on up to "
    text += f"{items} search items"
    if again:
        text += f"; the best, and every baseline (what anyone would try first), on {again} others"
    return f"{text}."


def _figures(board: Leaderboard) -> Iterator[tuple[str, str]]:
    """The few numbers at the head of the page: label, value."""
    winner, baseline = board.winner, board.best_baseline
    is_confirmed = winner is not None and winner.confirm is not None
    for label, row in (("winner", winner), ("best baseline", baseline)):
        found = (row.confirm if is_confirmed else row.search) if row else None
        if found is not None:
            items = "confirm" if is_confirmed else "search"
            yield f"{label}, {items} items", score(found.value, found.se)
    own = [row.candidate for row in board.rows if row.candidate.is_searched]
    raced = sum(c.raced for c in own)
    yield "candidates", f"{len(own)}" + (f" ({raced} stopped early)" if raced else "")
    spent = sum(row.candidate.items for row in board.rows)
    yield "search items spent", f"{spent:,}"
    yield "scoring time", duration(sum(row.candidate.seconds for row in board.rows))


def _facts(begun: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was searched, with what: label, text."""
    config, identity = begun.get("config", {}), begun.get("identity", {})
    machine = begun.get("machine", {})
    facts = [("base", str(config.get("base", "-")))]
    facts += [(f"parent {name}", str(path)) for name, path in config.get("parents", {}).items()]
    facts += [("run seed", str(config.get("search", {}).get("run_seed", "-")))]
    facts += [("device", f"{machine.get('device', '-')}, {machine.get('threads', '-')} thread(s)")]
    versions = identity.get("versions", {})
    facts += [("versions", ", ".join(f"{name} {v}" for name, v in versions.items()))]
    hashes = identity.get("parents", {})
    return facts + [(f"SHA-256 of {name}", str(digest)) for name, digest in hashes.items()]


def _commands(board: Leaderboard) -> list[str]:
    folder = shlex.quote(str(board.folder))
    lines = ["heterosis search search.yaml    # the configuration below, saved under that name"]
    if board.winner is not None:
        number = board.winner.candidate.number
        lines += [f"heterosis export {folder} --trial {number} --out merged"]
    return [*lines, f"heterosis report {folder}"]


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")


def _embedded(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _text(name: str) -> Markup:
    files = resources.files("heterosis.search") / "pages"
    return Markup((files / name).read_text(encoding="utf-8"))


def script(name: str) -> Markup:
    """A vendored script, with its licence's first lines as they are."""
    return _text(f"vendor/{name}")


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _render(template: str, **values: Any) -> str:
    source = str(_text(template)).replace("{# style #}", str(_text("page.css")))
    return _environment().from_string(source).render(**values)
