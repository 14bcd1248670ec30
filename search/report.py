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
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evals.comparison import Difference
from ..evals.scores import TaskScore
from .format import duration, p_value, recipe_line, score, signed
from .journal import Journal
from .leaderboard import Leaderboard, Row, read_leaderboard
from .report_data import failures, finite, in_points, kind_of, plots
from .views import luck_lines, verdict_sentence, write_whole

REPORT, INDEX = "report.html", "index.html"
MOST_ROWS = 500
"""Best rows of the page's table, besides the baselines; the CSV file has all."""
PLOTS, TABLES = "plotly-cartesian.min.js", "dataTables.min.js"


@dataclass(frozen=True)
class Cell:
    """A cell of the page's table.

    Attributes:
        text: What is read.
        order: What it is sorted by; None: by the text.
        is_number: Whether it stands to the right.
    """

    text: str
    order: float | None = None
    is_number: bool = False


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
    shown = _shown(board.rows)
    return _render(
        "report.html.j2",
        title=board.name,
        finished=board.finished,
        drawn=drawn or _now(),
        sentences=[verdict_sentence(board), *interval_sentences(board)],
        luck=list(luck_lines(board)),
        figures=list(_figures(board)),
        objective=board.objective.phrase,
        points=in_points(board),
        head=_head(board),
        rows=[(kind_of(board, row), _cells(board, row)) for row in shown],
        left_out=len(board.rows) - len(shown),
        failures=failures(board),
        facts=_facts(begun),
        commands=_commands(board),
        config=yaml.safe_dump(begun.get("config", {}), sort_keys=False, allow_unicode=True),
        data=_embedded({**plots(board), "finished": board.finished, "table": _table_facts(board)}),
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
        "confirm": _score_cell(winner.confirm if winner else None),
        "baseline": _score_cell(baseline.confirm if baseline else None),
        "to_parent": _difference_cell(winner.to_parent if winner else None, in_points(board)),
        "candidates": sum(row.candidate.is_searched for row in board.rows),
    }


def interval_sentences(board: Leaderboard) -> Iterator[str]:
    """By how much the winner is above the best parent and the uniform merge, with intervals."""
    winner = board.winner
    if winner is None:
        return
    for found, other in (
        (winner.to_parent, f"the best parent ({board.best_parent})"),
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


def with_interval(found: Difference, points: bool, *, sign: bool = True) -> str:
    """A difference and its 95 % interval; in points where scores are shares."""
    scale, digits = (100, 1) if points else (1, 4)
    turn = -1 if not sign and found.high < 0 else 1
    value, *ends = (turn * scale * v for v in (found.value, found.low, found.high))
    low, high = sorted(ends)
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return f"{shown} [{low:.{digits}f}, {high:.{digits}f}]" + (" points" if points else "")


def _shown(rows: Sequence[Row]) -> list[Row]:
    """The best rows, all baselines, and failures while there is room."""
    ranked = [r for r in rows if r.candidate.is_baseline or (r.rank and r.rank <= MOST_ROWS)]
    failed = [r for r in rows if r.candidate.failure and not r.candidate.is_baseline]
    return ranked + failed[: max(MOST_ROWS - len(ranked), 0)]


def _figures(board: Leaderboard) -> Iterator[tuple[str, str]]:
    """The few numbers at the head of the page: label, value."""
    winner, baseline = board.winner, board.best_baseline
    if winner is not None and winner.confirm is not None:
        yield "winner, confirmed", score(winner.confirm.value, winner.confirm.se)
    if baseline is not None and baseline.confirm is not None:
        yield "best baseline", score(baseline.confirm.value, baseline.confirm.se)
    own = [row.candidate for row in board.rows if row.candidate.is_searched]
    raced = sum(c.raced for c in own)
    yield "candidates", f"{len(own)}" + (f" ({raced} stopped early)" if raced else "")
    spent = sum(row.candidate.items for row in board.rows)
    yield "search items spent", f"{spent:,}"
    yield "scoring time", duration(sum(row.candidate.seconds for row in board.rows))


def _head(board: Leaderboard) -> list[tuple[str, bool]]:
    """Titles of the table's columns, and whether they hold numbers."""
    titles = ["confirm ± SE"]
    titles += [f"Δ {board.best_parent or 'best parent'} [95 %]", "p", "Δ uniform [95 %]", "p"]
    titles += [f"{task} confirm" for task in board.tasks]
    titles += [f"guard {task}" for task in board.guards]
    titles += ["search ± SE", *(f"{task} search" for task in board.tasks)]
    titles += [f"{task} cut" for task in board.audited] + ["items", "seconds"]
    words = [("rank", True), ("name", False), ("verdict", False)]
    return [*words, *((title, True) for title in titles), ("recipe, or why it failed", False)]


def _cells(board: Leaderboard, row: Row) -> list[Cell]:
    candidate, points = row.candidate, in_points(board)
    cells = [_number_cell(row.rank, "{}"), Cell(candidate.name), Cell(row.verdict)]
    cells += [_score_cell(row.confirm)]
    for found in (row.to_parent, row.to_uniform):
        cells += [_difference_cell(found, points), _p_cell(found)]
    cells += [_score_cell(row.confirm_tasks.get(task)) for task in board.tasks]
    cells += [_score_cell(row.guard.get(task)) for task in board.guards]
    cells += [_score_cell(row.search)]
    cells += [_score_cell(candidate.scores.get(task)) for task in board.tasks]
    audits = [candidate.audit.get(task) for task in board.audited]
    cells += [_number_cell(audit.truncated if audit else None, "{:.0%}") for audit in audits]
    cells += [_number_cell(candidate.items, "{}"), _number_cell(candidate.seconds, "{:.1f}")]
    return [*cells, Cell(candidate.failure or recipe_line(candidate.recipe))]


def _number_cell(value: float | None, form: str) -> Cell:
    order = finite(value)
    return Cell("-" if order is None else form.format(value), order, is_number=True)


def _score_cell(found: TaskScore | None) -> Cell:
    if found is None or finite(found.value) is None:
        return Cell("-", is_number=True)
    return Cell(score(found.value, finite(found.se)), found.value, is_number=True)


def _difference_cell(found: Difference | None, points: bool) -> Cell:
    if found is None:
        return Cell("-", is_number=True)
    is_bare = finite(found.low) is None
    text = signed(found.value) if is_bare else with_interval(found, points)
    return Cell(text.removesuffix(" points"), found.value, is_number=True)


def _p_cell(found: Difference | None) -> Cell:
    return Cell("-" if found is None else p_value(found.p), found and found.p, is_number=True)


def _table_facts(board: Leaderboard) -> dict[str, Any]:
    return {"numbers": [place for place, (_, is_number) in enumerate(_head(board)) if is_number]}


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
